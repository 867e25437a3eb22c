"""No figure depends on the order of detections and images, however many scores are equal."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from logn_d2.analysis import (
    ap_against_threshold,
    bootstrap_difference,
    bootstrap_lvis,
    calibration_quality,
    error_analysis,
)
from logn_d2.evaluators.detection_store import BestOfEachClass
from logn_d2.lvis import (
    Detections,
    LvisGroundTruth,
    RleMasks,
    evaluate_fixed_ap,
    evaluate_lvis,
    match_lvis,
)
from logn_d2.lvis.fixed_ap import pooled_ap
from logn_d2.lvis.order import sort_positions

from .lvis_reference import in_order, random_detections, random_lvis, write_json

Figures = Callable[[LvisGroundTruth, Detections, str], Any]


def _drawn(seed: int, folder: Path) -> tuple[LvisGroundTruth, Detections]:
    """Images with more detections than are kept; scores are of 0, 0.1, ... 1."""
    rng = np.random.default_rng(seed)
    dataset = random_lvis(rng)
    truth = LvisGroundTruth.from_json(write_json(folder / "truth.json", dataset))
    results = random_detections(rng, dataset, per_image=60, score_digits=1)
    detections = Detections.from_json_list(results, truth.category_ids)
    # Half of all boxes occur twice, with other masks: then only the masks tell them apart.
    twin = np.arange(0, len(detections) - 1, 2)
    size = detections.masks.size
    twin = twin[(size[twin] == size[twin + 1]).all(axis=1)]
    for column in (detections.box, detections.category, detections.image_id, detections.score):
        column[twin + 1] = column[twin]
    return truth, detections


def _bootstrap(truth: LvisGroundTruth, found: Detections, iou_type: str) -> list[Any]:
    matches = match_lvis(truth, found, iou_type, max_dets=20)
    other = match_lvis(truth, found, iou_type, max_dets=10)
    return [
        dataclasses.asdict(bootstrap_lvis(matches, resamples=20)),
        dataclasses.asdict(bootstrap_difference(matches, other, resamples=20)),
    ]


def _streamed(truth: LvisGroundTruth, found: Detections, iou_type: str) -> Any:
    store = BestOfEachClass(15, spare=30)
    for image_id in dict.fromkeys(found.image_id.tolist()):
        store.add([image_id], found.take(found.image_id == image_id))
    return evaluate_fixed_ap(truth, store.load()[0], iou_type, max_dets_per_class=15).as_dict()


FIGURES: dict[str, Figures] = {
    "AP": lambda truth, found, iou_type: evaluate_lvis(truth, found, iou_type, max_dets=20),
    "AP of lvis-api": lambda truth, found, iou_type: evaluate_lvis(
        truth, found, iou_type, max_dets=20, engine="lvis"
    ),
    "fixed AP": lambda truth, found, iou_type: evaluate_fixed_ap(
        truth, found, iou_type, max_dets_per_class=15
    ),
    "fixed AP, streamed": _streamed,
    "pooled AP": lambda truth, found, iou_type: pooled_ap(match_lvis(truth, found, iou_type)),
    "bootstrap": _bootstrap,
    "thresholds": lambda truth, found, iou_type: ap_against_threshold(
        truth, found, [0.05, 0.3, 0.5], iou_type=iou_type, max_dets=20
    ).as_dict(),
    "errors": lambda truth, found, iou_type: error_analysis(
        truth, found, iou_type=iou_type, max_dets=20
    ),
    "calibration": lambda truth, found, iou_type: calibration_quality(
        truth, found, iou_type=iou_type, max_dets=20
    ),
}


@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
@pytest.mark.parametrize("name", FIGURES)
def test_shuffled_detections_give_the_same_bits(tmp_path: Path, name: str, iou_type: str) -> None:
    rng = np.random.default_rng(1)
    truth, detections = _drawn(0, tmp_path)
    expected = _plain(FIGURES[name](truth, detections, iou_type))
    for _ in range(3):
        shuffled = detections.take(rng.permutation(len(detections)))
        np.testing.assert_equal(_plain(FIGURES[name](truth, shuffled, iou_type)), expected)


def _plain(figures: Any) -> Any:
    return dataclasses.asdict(figures) if dataclasses.is_dataclass(figures) else figures


@pytest.mark.parametrize("seed", range(3))
def test_the_order_equals_that_of_python(seed: int, tmp_path: Path) -> None:
    truth, detections = _drawn(seed, tmp_path)
    ids = truth.category_ids
    expected = in_order(detections.to_json_list(ids))
    assert detections.canonical().to_json_list(ids) == expected
    part = np.random.default_rng(seed).permutation(len(detections))[::2]
    columns = [-detections.score[part], detections.category[part], detections.image_id[part]]
    chosen = detections.take(part)
    order = sort_positions(detections, columns, part)
    assert chosen.take(order).to_json_list(ids) == in_order(chosen.to_json_list(ids))


def test_only_the_mask_may_differ() -> None:
    rles = RleMasks.from_dicts([{"size": [9, 9], "counts": counts} for counts in ("b1", "a1")])
    detections = Detections([7, 7], [0, 0], [0.5, 0.5], [[0, 0, 4, 4]] * 2, rles)
    for order in ([0, 1], [1, 0]):
        first = detections.take(np.array(order)).canonical().masks.to_dicts()[0]
        assert first["counts"] == b"a1"


@pytest.mark.parametrize("number", [0, 1])
def test_none_and_one_are_sorted(number: int) -> None:
    detections = Detections([7] * number, [0] * number, [0.5] * number, [[0, 0, 4, 4]] * number)
    assert len(detections.canonical()) == number
    assert len(detections.top_per_image(1)) == len(detections.top_per_class(1)) == number


def test_a_score_that_is_not_a_number_is_not_lost_in_a_full_class() -> None:
    store = BestOfEachClass(1, spare=0)
    store.add([7], Detections([7] * 3, [0] * 3, [0.9, np.nan, 0.5], [[0, 0, 1, 1]] * 3))
    assert np.isnan(store.load()[0].score).any()
