"""The results file: reading returns the written content, and errors name the mistake."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from logn_d2.report import ResultRow, Results


@pytest.fixture
def content(results: Results) -> dict[str, Any]:
    return json.loads(json.dumps(results.to_dict()))


def test_loading_returns_the_saved_content(results: Results, tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    results.save(path)
    loaded = Results.load(path)
    assert loaded.to_dict() == results.to_dict()
    assert loaded.row("logn").tasks["segm"]["APr"] == results.row("logn").tasks["segm"]["APr"]
    np.testing.assert_array_equal(loaded.classes.image_count, results.classes.image_count)


def test_files_of_early_releases_with_the_ap_of_each_class_are_read(content, tmp_path) -> None:
    path = tmp_path / "results.json"
    path.write_text(json.dumps({**content, "class_ap": {"logn": {"bbox": [1.0, None]}}}))
    assert Results.load(path).to_dict() == content


def test_rows_have_the_promised_form(content: dict[str, Any]) -> None:
    assert [row["calibration"] for row in content["rows"]][:2] == ["uncalibrated", "logn"]
    assert {"AP", "AP50", "APr", "APc", "APf"} <= set(content["rows"][0]["bbox"])


def test_nothing_to_measure_is_null_in_the_file_and_nan_in_memory(tmp_path: Path) -> None:
    metrics = {"AP": 1.0, "APr": math.nan, "APc": 2.0, "APf": 3.0}
    Results((ResultRow("uncalibrated", {"bbox": metrics}),)).save(tmp_path / "r.json")
    text = (tmp_path / "r.json").read_text()
    assert "null" in text and "NaN" not in text
    assert math.isnan(Results.load(tmp_path / "r.json").row("uncalibrated").tasks["bbox"]["APr"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.pop("rows"), "lacks rows"),
        (lambda c: c.update(speed=3), "unknown fields speed"),
        (lambda c: c["rows"][1].pop("bbox"), r"Row 1 \(logn\) lacks bbox"),
        (lambda c: c["rows"][1]["bbox"].pop("AP"), r"Row 1 \(logn\), bbox, lacks AP;"),
        (lambda c: c["rows"][1].update(keypoints={}), "unknown fields keypoints"),
        (lambda c: c["rows"][1].pop("segm"), "Evaluate all for the same tasks"),
        (lambda c: c["rows"].pop(0), "Evaluate it as well"),
        (lambda c: c["rows"].append(c["rows"][1]), "several rows of logn"),
        (lambda c: c["rows"][1]["bbox"].update(AP=[1]), "Expected numbers"),
        (lambda c: c["classes"].pop("groups"), "classes lacks groups"),
        (lambda c: c["classes"]["names"].pop(), "different lengths"),
    ],
)
def test_an_unusable_file_is_named_with_its_problem(
    content: dict[str, Any], tmp_path: Path, change: Any, message: str
) -> None:
    change(content)
    path = tmp_path / "results.json"
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=message) as error:
        Results.load(path)
    assert str(path) in str(error.value)


def test_the_error_of_a_missing_file_names_the_command_that_writes_it(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="logn sweep .* --output"):
        Results.load(tmp_path / "results.json")


def test_a_truncated_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text('{"rows": [')
    with pytest.raises(ValueError, match=r"results\.json' can't be used"):
        Results.load(tmp_path / "results.json")


def test_a_missing_row_lists_the_known_ones(results: Results) -> None:
    with pytest.raises(KeyError, match=r"norcal\(gamma=0.6\)"):
        results.row("tau_norm")
