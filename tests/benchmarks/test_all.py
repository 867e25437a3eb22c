"""Every benchmark starts: its imports exist, and its help names all options."""

from __future__ import annotations

import sys

import pytest

from ..load_script import ROOT, load_script


def test_every_benchmark_prints_its_help(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = {}
    for path in sorted((ROOT / "benchmarks").glob("*.py")):
        if "\ndef main(" not in path.read_text():
            continue  # a module that benchmarks share
        monkeypatch.setattr(sys, "argv", [path.name, "--help"])
        try:
            load_script(f"benchmarks/{path.name}").main()
        except SystemExit as stop:
            text = capsys.readouterr().out
            if stop.code or "usage:" not in text:
                broken[path.name] = text
        except Exception as error:
            broken[path.name] = repr(error)
    assert not broken
