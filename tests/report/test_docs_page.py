"""The Python examples of docs/report.md run."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest

import logn_d2.report.make as make
from logn_d2.report import Settings

from .small_runs import SmallRuns

FEW = Settings(resamples=3)
PAGE = Path(__file__).parents[2] / "docs" / "report.md"


@pytest.mark.usefixtures("undrawn")
def test_the_python_example_runs(
    small_runs: SmallRuns, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.S)
    shutil.copytree(small_runs.folder, tmp_path / "output" / "sweep")
    monkeypatch.chdir(tmp_path)
    compare = make.compare
    monkeypatch.setattr(
        make, "compare", lambda *runs, **rest: compare(*runs, **{**rest, "settings": FEW})
    )
    names: dict[str, Any] = {}
    exec(compile(code, str(PAGE), "exec"), names)
    assert (tmp_path / "report.html").is_file() and names["report"].gallery is not None
