"""Every row of the paper's table runs once, after its first stage, beside the paper's figures."""

from __future__ import annotations

import json
import types
from pathlib import Path

import pytest

from ..load_script import load_script
from ..paper_table1 import TABLE

R50 = ("--detectors", "Mask R-CNN R-50", "--samplers", "RFS")


@pytest.fixture(scope="module")
def script() -> types.ModuleType:
    return load_script("benchmarks/paper_table1.py")


@pytest.fixture
def started(
    script: types.ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> list[tuple[str, str]]:
    """Stand-ins for commands: each leaves what a training or an evaluation does; the list of them.

    Configs of LOCE fail.
    """
    monkeypatch.chdir(tmp_path)
    calls: list[tuple[str, str]] = []

    def call(command: list[str]) -> types.SimpleNamespace:
        verb, config = command[3], command[command.index("--config-file") + 1]
        name = str(Path(config).relative_to(script.ROOT))
        calls.append((verb, name))
        if "loce" in name:
            return types.SimpleNamespace(returncode=1)
        folder = Path(script.load_config(config).OUTPUT_DIR)
        results = folder / "inference" / "lvis_v1_val" / "results.json"
        results.parent.mkdir(parents=True)
        figures = dict.fromkeys(script.METRICS, 20.0 + len(calls))
        row = {"bbox": figures, "segm": {**figures, "APr": 1.0}}
        rows = [{"calibration": "uncalibrated", **row}]
        if verb == "evaluate":
            rows.append({"calibration": "logn", **row, "bbox": {**figures, "AP": 50.0}})
        results.write_text(json.dumps({"rows": rows}))
        if verb == "train":
            (folder / "config.yaml").touch()
            (folder / "model_final.pth").touch()
            (folder / "metrics.json").write_text('{"time": 0.4}\n{"time": 0.6}\n{"lr": 1}\n')
        return types.SimpleNamespace(returncode=0)

    monkeypatch.setattr(script.subprocess, "run", call)
    return calls


def test_all_rows_of_the_docs_are_read(script: types.ModuleType) -> None:
    rows = script.read_rows()
    assert len(rows) == 48 and len({row.config for row in rows}) == 48
    assert {row.detector for row in rows} == set(TABLE)
    known = sum(
        column is not None for t in TABLE.values() for pair in t.values() for column in pair
    )
    assert sum(row.paper != "ours" for row in rows) == known


def test_what_a_row_starts_from_comes_first_and_once(script: types.ModuleType) -> None:
    jobs = script.make_jobs(script.read_rows())
    names = list(jobs)
    assert len(names) == 48 + 6  # and the linear first stages of BAGS
    for name, job in jobs.items():
        first = script.starts_from(job, jobs)
        assert (first is None) == job.cfg.MODEL.WEIGHTS.startswith("detectron2://")
        assert first is None or names.index(first) < names.index(name)


def test_single_rows_include_their_first_stage(
    script: types.ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    assert script.main(["--dry-run", *R50, "--methods", "LogN", "BAGS"]) == 0
    lines = capsys.readouterr().out.splitlines()
    verbs = [line.split()[1] for line in lines]
    assert verbs == ["train", "train", "train", "evaluate"]
    assert "configs/linear/" in lines[0] and "configs/bags/" in lines[1]


def test_a_finished_row_is_kept_and_a_failure_stops_only_dependent_rows(
    script: types.ModuleType,
    started: list[tuple[str, str]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = [*R50, "--methods", "CE", "LOCE", "LogN"]
    assert script.main(arguments) == 1
    assert [verb for verb, _ in started] == ["train", "train", "evaluate"]
    lines = Path("output/table1.md").read_text().splitlines()
    assert lines[2].endswith(
        "| 24.7 / 23.7 / 13.5 / 22.8 / 29.3 | 21.0 / 21.0 / 1.0 / 21.0 / 21.0 |"
    )
    assert lines[3].endswith("| 27.4 / 26.6 / 18.5 / 26.2 / 30.7 |  |")
    assert lines[4].endswith("| 50.0 / 23.0 / 1.0 / 23.0 / 23.0 |")
    printed = capsys.readouterr().out
    assert "2 trainings left: about 0 h, and 2 trainings that nothing is known of" in printed
    assert "1 trainings left: about " in printed and "failed: configs/loce/" in printed
    started.clear()
    assert script.main(arguments) == 1
    assert [Path(name).parent.name for _, name in started] == ["loce"]


def test_rows_that_start_from_a_failure_are_left_out(
    script: types.ModuleType,
    started: list[tuple[str, str]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    failing = lambda command: types.SimpleNamespace(returncode=1)  # noqa: E731
    monkeypatch.setattr(script.subprocess, "run", failing)
    assert script.main([*R50, "--methods", "LogN"]) == 1
    assert "left out: configs/logn/" in capsys.readouterr().out
