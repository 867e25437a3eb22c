"""Score thresholds: counted one by one, and against a whole evaluation at each threshold."""

from __future__ import annotations

import json

import numpy as np
import pytest

from logn_d2.analysis.thresholds import ThresholdSuggestion, ap_against_threshold, suggest_threshold
from logn_d2.lvis.detections import Detections
from logn_d2.lvis.evaluate import evaluate_lvis
from logn_d2.lvis.ground_truth import LvisGroundTruth

from ..lvis.lvis_reference import random_detections, random_lvis


def _scored(scores: list[float], categories: list[int] | None = None) -> Detections:
    number = len(scores)
    return Detections(np.arange(number), categories or [0] * number, scores, np.zeros((number, 4)))


def _drawn(seed: int) -> tuple[LvisGroundTruth, Detections]:
    rng = np.random.default_rng(seed)
    dataset = random_lvis(rng, num_images=6, with_masks=False)
    truth = LvisGroundTruth.from_dict(dataset)
    results = random_detections(rng, dataset, with_masks=False)
    return truth, Detections.from_json_list(results, truth.category_ids)


@pytest.mark.parametrize("seed", range(5))
def test_as_many_are_kept_overall_and_in_each_group(seed: int) -> None:
    rng = np.random.default_rng(seed)
    groups, category = np.array(["r", "c", "f", "f"]), rng.integers(0, 4, 200).tolist()
    before = _scored(rng.random(200).tolist(), category)
    after = _scored((rng.random(200) ** 2).tolist(), category)
    suggestions = suggest_threshold(before, after, 0.6, num_images=250, groups=groups.tolist())
    assert [each.group for each in suggestions] == ["all", "r", "c", "f"]
    for each in suggestions:
        mine = [each.group in ("all", groups[k]) for k in category]
        old = sum(m and s > 0.6 for m, s in zip(mine, before.score, strict=True))
        new = sum(m and s > each.new_score for m, s in zip(mine, after.score, strict=True))
        same = sum(m and s > 0.6 for m, s in zip(mine, after.score, strict=True))
        assert each.per_image == old / 250 == each.new_per_image == new / 250
        assert each.same_score_per_image == same / 250


@pytest.mark.parametrize(
    ("scores", "wanted", "threshold", "kept"),
    [
        ([0.4, 0.2], 2, 0.0, 2),
        ([0.4, 0.2], 1, 0.3, 1),
        ([0.4, 0.2], 0, 0.4, 0),
        ([0.4, 0.2], 3, 0.0, 2),  # there are no more
        ([], 3, 0.0, 0),
        ([0.4, 0.3, 0.3, 0.3, 0.1], 2, 0.35, 1),  # of equal scores all or none
        ([0.4, 0.3, 0.3, 0.3, 0.1], 3, 0.2, 4),
        ([0.5, 0.5], 1, 0.5, 0),  # as far from both: rather fewer
    ],
)
def test_the_threshold_is_midway(
    scores: list[float], wanted: int, threshold: float, kept: int
) -> None:
    before = _scored([0.9] * wanted + [0.1])
    (found,) = suggest_threshold(before, _scored(scores), 0.5, num_images=10)
    assert found.new_score == pytest.approx(threshold)
    assert found.new_per_image == kept / 10


def test_neighbouring_scores_are_told_apart() -> None:
    low = np.nextafter(0.3, 0)
    (found,) = suggest_threshold(_scored([0.9]), _scored([0.3, low]), 0.5, num_images=2)
    assert low <= found.new_score < 0.3


def test_order_does_not_matter_and_the_same_run_keeps_its_threshold() -> None:
    truth, detections = _drawn(1)
    (one,) = suggest_threshold(detections, detections, 0.45, num_images=truth.num_images)
    turned = detections.take(np.arange(len(detections))[::-1])
    assert [one] == suggest_threshold(turned, turned, 0.45, num_images=truth.num_images)
    assert one.new_score == pytest.approx(0.45)


def test_a_table_and_groups_by_name() -> None:
    before, after = _scored([0.9, 0.8], [0, 1]), _scored([0.4, 0.3], [0, 1])
    groups = {"first": np.array([0])}
    found = suggest_threshold(before, after, 0.5, num_images=2, class_groups=groups)
    lines = ThresholdSuggestion.table([each for each in found if each.per_image]).splitlines()
    assert [line.split("|")[1].strip() for line in lines[2:]] == ["all", "first"]


def test_fewer_images_than_seen_are_refused() -> None:
    with pytest.raises(ValueError, match="num_images is 1, expected at least 2"):
        suggest_threshold(_scored([0.9, 0.8]), _scored([0.9]), 0.5, num_images=1)


@pytest.mark.parametrize("max_dets", [5, 300])
def test_curve_equals_an_evaluation_at_each_threshold(
    max_dets: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("logn_d2.analysis.thresholds._BLOCK", 4)
    truth, detections = _drawn(2)
    thresholds = [0.0, 0.05, 0.3, 0.5, 0.9, 1.0]
    curve = ap_against_threshold(truth, detections, thresholds, max_dets=max_dets)
    for index, threshold in enumerate(thresholds):
        kept = detections.take(detections.top_per_image_mask(max_dets))
        kept = kept.take(kept.score > threshold)
        assert curve.per_image[index] == len(kept) / truth.num_images
        expected = evaluate_lvis(truth, kept).metrics
        found = {name: values[index] for name, values in curve.metrics.items()}
        assert found == pytest.approx(dict(expected), abs=1e-12, nan_ok=True)
    assert json.loads(json.dumps(curve.as_dict()))["threshold"] == thresholds


def test_curve_of_nothing() -> None:
    truth, detections = _drawn(3)
    empty = ap_against_threshold(truth, Detections.empty(), [0.0, 0.5])
    assert empty.metrics["AP50"].tolist() == empty.per_image.tolist() == [0, 0]
    assert ap_against_threshold(truth, detections, []).metrics == {}
