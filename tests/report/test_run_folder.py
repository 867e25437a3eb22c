"""Runs are recognised by the programs' files, and every mistake is named."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from logn_d2.lvis.detections import Detections
from logn_d2.report import ResultRow, Results, RunFolder, open_runs

from .small_runs import CALIBRATIONS, SmallRuns


@pytest.fixture
def plain(small_runs: SmallRuns, tmp_path: Path) -> Path:
    """A folder as an evaluation without calibration leaves it."""
    folder = tmp_path / "plain"
    results, ids = small_runs.results["uncalibrated"], small_runs.truth.category_ids
    Detections.from_json_list(results, ids).save(folder / "inference" / "detections.npz")
    shutil.copy(small_runs.folder / "config.yaml", folder)
    return folder


def test_a_folder_stands_for_all_its_calibrations_the_baseline_first(
    small_runs: SmallRuns,
) -> None:
    runs = open_runs([str(small_runs.folder)])
    assert [run.name for run in runs] == [
        "Uncalibrated",
        "LogN",
        "LogN, mean only",
        "NorCal, gamma 0.6",
    ]
    for run in runs:
        scores = [each["score"] for each in small_runs.results[run.calibration]]
        np.testing.assert_allclose(np.sort(run.detections().score), np.sort(scores))
    assert runs[0].folder.dataset == "report_val" and runs[0].has_masks


def test_single_calibrations_are_taken_in_the_order_that_is_asked_for(
    small_runs: SmallRuns,
) -> None:
    texts = [f"{small_runs.folder}:{name}" for name in ("norcal(gamma=0.6)", "uncalibrated")]
    assert [run.calibration for run in open_runs([*texts, texts[0]])] == [
        "norcal(gamma=0.6)",
        "uncalibrated",
    ]


def test_runs_of_two_folders_are_told_apart(small_runs: SmallRuns, plain: Path) -> None:
    runs = open_runs([str(plain), f"{small_runs.folder}:logn"])
    assert [run.name for run in runs] == ["plain: Uncalibrated", "run: LogN"]


def test_folders_of_the_same_name_are_told_apart(small_runs: SmallRuns, tmp_path: Path) -> None:
    copied = tmp_path / "run"
    shutil.copytree(small_runs.folder, copied)
    names = [run.name for run in open_runs([f"{small_runs.folder}:logn", f"{copied}:logn"])]
    assert names == [f"{small_runs.folder}: LogN", f"{copied}: LogN"]


def test_detections_are_found_by_the_name_of_the_data_set(
    small_runs: SmallRuns, tmp_path: Path
) -> None:
    for name in ("one_val", "other_val"):
        shutil.copytree(small_runs.folder / "sweep", tmp_path / "inference" / name / "sweep")
    assert RunFolder.open(tmp_path, "other_val").dataset == "other_val"
    with pytest.raises(ValueError, match=r"several folders of detections: .*one_val.*--dataset"):
        RunFolder.open(tmp_path)
    shutil.rmtree(tmp_path / "inference" / "one_val")
    assert RunFolder.open(tmp_path).dataset == "other_val"


def test_the_data_set_is_the_one_that_the_results_name(
    small_runs: SmallRuns, tmp_path: Path
) -> None:
    shutil.copytree(small_runs.folder / "sweep", tmp_path / "sweep")
    with pytest.raises(ValueError, match="does not name the data set.*--dataset"):
        RunFolder.open(tmp_path)
    metrics = dict.fromkeys(("AP", "APr", "APc", "APf"), 1.0)
    rows = (ResultRow("uncalibrated", {"bbox": metrics}),)
    stats = small_runs.folder / "logn_stats.safetensors"
    Results(rows, {"data set": "named_val", "statistics": str(stats)}).save(
        tmp_path / "results.json"
    )
    folder = RunFolder.open(tmp_path)
    assert folder.dataset == "named_val" and folder.statistics.num_rois == 500


def test_statistics_and_weights_are_those_of_the_run(small_runs: SmallRuns, plain: Path) -> None:
    folder = RunFolder.open(small_runs.folder)
    assert folder.statistics.num_images == 10 and folder.provenance["weights"] == "detector.pth"
    assert RunFolder.open(plain).statistics is None


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("nowhere", FileNotFoundError, "folder 'nowhere' does not exist"),
        (
            "{folder}:tau_norm",
            KeyError,
            "Unknown calibration 'tau_norm' in .*Known: uncalibrated, logn",
        ),
        ("{folder}:logn", ValueError, "a single run, and a report compares at least two"),
        ("{folder}/sweep/..", None, ""),
        ("{empty}", FileNotFoundError, "has no detections"),
    ],
)
def test_mistakes_are_named(
    small_runs: SmallRuns, tmp_path: Path, text: str, error: type | None, message: str
) -> None:
    (tmp_path / "empty").mkdir()
    text = text.format(folder=small_runs.folder, empty=tmp_path / "empty")
    if error is None:
        assert len(open_runs([text])) == len(CALIBRATIONS)
        return
    with pytest.raises(error, match=message):
        open_runs([text])


def test_runs_of_different_data_sets_are_not_compared(
    small_runs: SmallRuns, tmp_path: Path
) -> None:
    shutil.copytree(small_runs.folder / "sweep", tmp_path / "inference" / "other_val" / "sweep")
    with pytest.raises(ValueError, match="evaluated on report_val, .* on other_val"):
        open_runs([str(small_runs.folder), str(tmp_path)])
