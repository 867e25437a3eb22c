"""Reliability and calibration error recomputed detection by detection."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest

from logn_d2.analysis.calibration_quality import (
    CalibrationQuality,
    calibration_quality,
    calibration_table,
)
from logn_d2.lvis.detections import Detections
from logn_d2.lvis.ground_truth import LvisGroundTruth

from ..lvis.lvis_reference import one_image, random_detections, random_lvis
from .tide_reference import SlowTide

HIT, NEAR, AWAY = [0, 0, 40, 40], [0, 0, 40, 12], [45, 45, 40, 40]


def _drawn(seed: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    rng = np.random.default_rng(seed)
    dataset = random_lvis(rng, num_images=8)
    return dataset, random_detections(rng, dataset, score_digits=2)


def _quality(dataset: dict, results: list[dict], **options: Any) -> CalibrationQuality:
    truth = LvisGroundTruth.from_dict(dataset)
    detections = Detections.from_json_list(results, truth.category_ids)
    return calibration_quality(truth, detections, **options)


def _of_one_image(*entries: tuple[int, float, list[float]], **changes: Any) -> CalibrationQuality:
    category, score, box = zip(*entries, strict=True)
    truth = LvisGroundTruth.from_dict(one_image(**changes))
    return calibration_quality(truth, Detections([7] * len(entries), category, score, box))


def _slow(detections: list[dict[str, Any]], num_bins: int) -> dict[str, Any]:
    """ECE, overconfidence and the content of each bin, one detection after another."""
    bins: list[list[dict]] = [[] for _ in range(num_bins)]
    for detection in detections:
        place = 0
        while detection["score"] > (place + 1) / num_bins:
            place += 1
        bins[place].append(detection)
    ece = over = 0.0
    for content in filter(None, bins):
        confidence = sum(d["score"] for d in content) / len(content)
        precision = sum(d["kind"] == "TP" for d in content) / len(content)
        ece += abs(confidence - precision) * len(content) / len(detections)
        over += (confidence - precision) * len(content) / len(detections)
    counts = [[len(content) for content in bins]]
    for kind in ("TP", "Bkg"):
        counts.append([sum(d["kind"] == kind for d in content) for content in bins])
    return {"ece": ece, "over": over, "counts": counts}


@pytest.mark.parametrize("num_bins", [1, 7, 15])
@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
def test_equals_the_slow_version_in_every_group(iou_type: str, num_bins: int) -> None:
    dataset, results = _drawn(1)
    options = {"max_dets": 20, "iou_type": iou_type}
    quality = _quality(dataset, results, num_bins=num_bins, min_score=0.105, **options)
    labelled = SlowTide(dataset, results, iou_type, max_dets=20).detections
    partial = {
        (image["id"], category_id)
        for image in dataset["images"]
        for category_id in image["not_exhaustive_category_ids"]
    }
    labelled = [
        detection
        for detection in labelled
        if detection["score"] >= 0.105
        and (detection["image_id"], detection["category_id"]) not in partial
    ]
    group_of = {c["id"]: c["frequency"] for c in dataset["categories"]}
    for group in ("all", "r", "c", "f"):
        mine = [d for d in labelled if group in ("all", group_of[d["category_id"]])]
        slow = _slow(mine, num_bins)
        assert quality.ece(group) == pytest.approx(slow["ece"], abs=1e-12)
        assert quality.overconfidence(group) == pytest.approx(slow["over"], abs=1e-12)
        names = ("count", "hits", "background")
        assert [quality.histogram(name, group).tolist() for name in names] == slow["counts"]
    assert quality.as_dict()["all"]["labelled"] == len(labelled)


def test_detections_of_unverified_classes_are_left_out() -> None:
    known = (0, 0.9, HIT), (1, 0.5, HIT), (0, 0.4, AWAY)
    quality, more = _of_one_image(*known), _of_one_image(*known, (2, 0.9, HIT), (2, 0.1, AWAY))
    assert more.ece() == quality.ece()
    assert (quality.unlabelled.tolist(), more.unlabelled.tolist()) == ([0, 0, 0], [0, 0, 2])


def test_not_exhaustive_pairs_are_left_out_whatever_became_of_their_detections() -> None:
    entries = (0, 0.9, HIT), (0, 0.8, HIT), (0, 0.7, AWAY)
    quality = _of_one_image(*entries, not_exhaustive_category_ids=[1])
    assert quality.histogram("count").sum() == 0
    assert quality.unlabelled[0] == 3
    assert _of_one_image(*entries).histogram("count").sum() == 3


def test_perfect_scores_have_no_error_and_reversed_ones_the_largest() -> None:
    perfect = _of_one_image((0, 1.0, HIT), (0, 0.0, AWAY), (1, 0.0, HIT))
    assert (perfect.ece(), perfect.overconfidence()) == (0, 0)
    reverse = _of_one_image((0, 0.0, HIT), (0, 1.0, AWAY), (1, 1.0, NEAR))
    assert reverse.ece() == pytest.approx(1)
    assert reverse.overconfidence() == pytest.approx(1 / 3)


def test_a_bin_holds_its_upper_end() -> None:
    quality = _of_one_image((0, 0.0, HIT), (0, 1 / 15, AWAY), (0, 1.0, AWAY))
    assert np.flatnonzero(quality.histogram("count")).tolist() == [0, 14]
    assert quality.histogram("count")[0] == 2


def test_histograms_separate_objects_and_background() -> None:
    quality = _of_one_image((0, 0.9, HIT), (1, 0.9, HIT), (0, 0.2, NEAR), (0, 0.2, AWAY))
    for name, first, last in (
        ("count", 2, 2), ("hits", 0, 1), ("false", 2, 1), ("background", 1, 0), ("objects", 1, 2),
    ):  # fmt: skip
        histogram = quality.histogram(name)
        assert (histogram[:8].sum(), histogram[8:].sum()) == (first, last)


def test_order_of_detections_does_not_matter() -> None:
    dataset, results = _drawn(2)
    results = [{**r, "score": r["score"] + i * 1e-6} for i, r in enumerate(results)]
    results = [{**r, "score": min(r["score"], 1)} for r in results]
    forward, backward = _quality(dataset, results), _quality(dataset, results[::-1])
    for name in ("count", "hits", "background", "unlabelled"):
        np.testing.assert_array_equal(getattr(forward, name), getattr(backward, name))
    assert forward.ece() == pytest.approx(backward.ece(), abs=1e-12)


def test_without_detections_nothing_is_said() -> None:
    dataset, _ = _drawn(3)
    quality = _quality(dataset, [])
    assert math.isnan(quality.ece()) and math.isnan(quality.overconfidence("r"))
    assert quality.as_dict()["all"]["labelled"] == 0
    assert len(quality.table().splitlines()) == 2


def test_two_runs_side_by_side_and_as_json() -> None:
    dataset, results = _drawn(4)
    before = _quality(dataset, results)
    after = _quality(dataset, [{**r, "score": r["score"] / 2} for r in results])
    lines = calibration_table({"uncalibrated": before, "logn": after}).splitlines()
    assert [line.split("|")[2].strip() for line in lines[2:4]] == ["uncalibrated", "logn"]
    row = json.loads(json.dumps(after.as_dict()))["all"]
    assert lines[3].split("|")[7].strip() == f"{100 * row['ECE']:.1f}"
    # The same ranking, so the same true positives, at half the score.
    assert row["precision"] == before.as_dict()["all"]["precision"]
    assert row["score"] == pytest.approx(before.as_dict()["all"]["score"] / 2)


def test_what_is_no_probability_is_refused() -> None:
    with pytest.raises(ValueError, match=r"1 of 2 detections have a score outside \[0, 1\].*2\.5"):
        _of_one_image((0, 0.9, HIT), (0, 2.5, HIT))
    with pytest.raises(ValueError, match="num_bins is 0"):
        _quality(one_image(), [], num_bins=0)
