"""The report from the command line."""

from __future__ import annotations

import dataclasses
import shutil
import sys
from pathlib import Path
from types import ModuleType

import pytest

from logn_d2.core import LogitStatistics
from logn_d2.errors import UserError
from logn_d2.report import figures

from ..command import command
from ..report.read_page import Page
from ..report.small_runs import SmallRuns, make_small_runs


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    return command("report")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> SmallRuns:
    return make_small_runs(tmp_path_factory.mktemp("runs"), "report_tool_val", seed=1)


def test_one_command_writes_the_page_and_prints_the_result(
    tool: ModuleType,
    runs: SmallRuns,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # What takes most of the time has tests of its own.
    monkeypatch.setattr(figures, "svg_data_uri", lambda figure: "data:,")
    monkeypatch.setattr(figures, "save_figure", lambda figure, path: Path(path).touch())
    path = tmp_path / "report.html"
    own = LogitStatistics.load(runs.folder / "logn_stats.safetensors")
    dataclasses.replace(own, population="positives").save(tmp_path / "own.safetensors")
    wanted = [f"{runs.folder}:{name}" for name in ("uncalibrated", "logn_mean", "logn")]
    options = ["--resamples", "5", "--pictures", "0", "--level", "0.9"]
    options += ["--figures", f"{tmp_path}/figures", "--stats", f"{tmp_path}/own.safetensors"]
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
    assert (
        "90\u00a0% intervals from 5 bootstrap resamples" in page.text
        and "95\u00a0%" not in page.text
    )
    files = {file.name for file in (tmp_path / "figures").iterdir()}
    assert {"populations.svg", "populations.png", "changes_boxes.svg"} <= files


def test_folders_may_have_a_colon_in_their_name(
    tool: ModuleType, runs: SmallRuns, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "12:30"
    shutil.copytree(runs.folder, folder)
    seen = []
    monkeypatch.setattr(tool, "load_config", seen.append)
    tool.register([f"{folder}:logn"])
    assert seen == [folder / "config.yaml"]


def test_a_module_may_register_the_data_sets(
    tool: ModuleType, runs: SmallRuns, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sets_of_a_user.py").write_text("registered = True\n")
    monkeypatch.chdir(tmp_path)
    words = [str(runs.folder), "--output", "r.html", "--import", "sets_of_a_user"]
    assert tool.parse_args(words).imports == ["sets_of_a_user"]
    tool.register([str(runs.folder)], imports=["sets_of_a_user"])
    assert sys.modules.pop("sets_of_a_user").registered
    with pytest.raises(UserError, match="no module 'nowhere' to import"):
        tool.register([str(runs.folder)], imports=["nowhere"])


def test_annotations_of_a_set_that_nobody_registers(
    tool: ModuleType, runs: SmallRuns, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(figures, "svg_data_uri", lambda figure: "data:,")
    folder = tmp_path / "run"
    shutil.copytree(runs.folder / "sweep", folder / "inference" / "nobody_val" / "sweep")
    json_file = shutil.copy(runs.json_file, tmp_path / "renamed.json")
    args = ["--annotations", str(json_file), "--images", str(runs.json_file.parent)]
    page = tmp_path / "r.html"
    texts = [f"{folder}:uncalibrated", f"{folder}:logn"]
    few = ["--resamples", "2", "--pictures", "1"]
    assert tool.main([*texts, "--output", str(page), *args, *few]) == 0
    text = page.read_text(encoding="utf-8")
    assert "Calibrations on nobody_val" in text and "data:image/jpeg" in text


def test_config_file_names_training_sets_for_runs_without_them(
    tool: ModuleType, runs: SmallRuns, tmp_path: Path
) -> None:
    config = tmp_path / "C.yaml"
    config.write_text("DATASETS: {TRAIN: [somebody_train]}\nVERSION: 2\n")
    shutil.copytree(runs.folder, tmp_path / "run", ignore=shutil.ignore_patterns("config.yaml"))
    texts = [str(runs.folder), str(tmp_path / "run")]
    train_sets = tool.register(texts, str(config))
    assert list(train_sets) == ["somebody_train"]
    opened = tool.open_runs(texts, "report_tool_val", train_sets)
    found = {Path(run.folder.path).name: run.folder.train_sets for run in opened}
    own = tool.open_runs(texts[:1])[0].folder.train_sets
    assert found == {runs.folder.name: own, "run": ("somebody_train",)} and own


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nowhere"], "The folder 'nowhere' does not exist"),
        (["{folder}", "--dataset", "nobody_val"], "'nobody_val', which is not registered"),
        (["{folder}", "--dataset", "report_tool_val", "--focus", "tau"], "Unknown run 'tau'"),
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
