"""The report from the command line."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest

from logn_d2.report import sections

from ..load_script import load_script
from ..report.read_page import Page
from ..report.small_runs import SmallRuns, make_small_runs


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    return load_script("tools/report.py")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> SmallRuns:
    return make_small_runs(tmp_path_factory.mktemp("runs"), "report_tool_val", seed=1)


def test_one_command_writes_the_page_and_says_the_result(
    tool: ModuleType,
    runs: SmallRuns,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # What takes most of the time has tests of its own.
    monkeypatch.setattr(sections, "svg_data_uri", lambda figure: "data:,")
    path = tmp_path / "report.html"
    wanted = [f"{runs.folder}:{name}" for name in ("uncalibrated", "logn_mean", "logn")]
    options = ["--resamples", "5", "--pictures", "0"]
    code = tool.main([*wanted, "--output", str(path), "--focus", "logn", *options])
    printed = capsys.readouterr().out
    page = Page(path.read_text(encoding="utf-8"))
    assert code == 0 and printed.startswith("LogN against Uncalibrated, boxes: APr ")
    assert printed.splitlines()[0] in page.text and str(path) in printed
    assert [row[0] for row in page.tables["figures-bbox"][1:]] == [
        "Uncalibrated",
        "LogN, mean only",
        "LogN",
    ]
    assert "--focus logn" in page.text and "images" not in page.ids


def test_annotations_of_a_set_that_nobody_registers(
    tool: ModuleType, runs: SmallRuns, tmp_path: Path
) -> None:
    args = ["--annotations", str(runs.json_file), "--images", str(runs.json_file.parent)]
    parsed = tool.parse_args([str(runs.folder), "--output", "r.html", *args])
    assert tool.register(parsed) == "annotations"
    assert tool.open_runs(parsed.runs, "annotations")[0].folder.dataset == "annotations"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nowhere"], "There is no folder 'nowhere'"),
        (["{folder}", "--dataset", "nobody_val"], "'nobody_val', which is not registered"),
        (["{folder}", "--dataset", "report_tool_val", "--focus", "tau"], "is called 'tau'"),
    ],
)
def test_a_mistake_ends_with_one_message_and_no_page(
    tool: ModuleType,
    runs: SmallRuns,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    said: str,
) -> None:
    path = tmp_path / "report.html"
    arguments = [each.format(folder=runs.folder) for each in arguments]
    with pytest.raises(SystemExit) as ended:
        tool.main([*arguments, "--output", str(path), "--resamples", "2", "--pictures", "0"])
    assert ended.value.code == 1 and said in capsys.readouterr().err and not path.exists()
