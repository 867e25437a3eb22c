"""docs/report.md says what is so: its Python runs, its command lines are understood."""

from __future__ import annotations

import importlib.util
import re
import shlex
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


def test_the_commands_are_understood() -> None:
    source = PAGE.parents[1] / "tools" / "report.py"
    spec = importlib.util.spec_from_file_location("report_of_the_page", source)
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    (block,) = re.findall(r"```bash\n(.*?)```", PAGE.read_text(), re.S)
    for line in block.splitlines():
        parsed = tool.parse_args(shlex.split(line, comments=True)[2:])
        assert parsed.runs and parsed.output == "report.html"
