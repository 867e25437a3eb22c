"""Fixed AP and pooled AP against slow versions, and the memory that they need."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest

from logn_d2.evaluators import detection_limits
from logn_d2.evaluators.detection_store import BestOfEachClass
from logn_d2.lvis.detections import Detections
from logn_d2.lvis.evaluate import evaluate_lvis
from logn_d2.lvis.fixed_ap import evaluate_fixed_ap
from logn_d2.lvis.ground_truth import LvisGroundTruth
from logn_d2.lvis.matches import match_lvis

from ..small_detectors import draw_images, register, small_config, small_model
from .lvis_reference import in_order, random_detections, random_lvis, run_lvis_api, write_json


def _drawn(seed: int, **options: object) -> tuple[dict, list[dict]]:
    rng = np.random.default_rng(seed)
    dataset = random_lvis(rng)
    results = random_detections(rng, dataset, per_image=60, score_digits=2)
    return dataset, results


def _best_of_each_class(results: list[dict], number: int) -> list[dict]:
    """The definition, on dictionaries."""
    kept = []
    for category in {result["category_id"] for result in results}:
        mine = [result for result in results if result["category_id"] == category]
        kept += sorted(in_order(mine), key=lambda result: -result["score"])[:number]
    return [result for result in results if any(result is each for each in kept)]


def _load(dataset: dict, results: list[dict]) -> tuple[LvisGroundTruth, Detections]:
    truth = LvisGroundTruth.from_dict(dataset)
    return truth, Detections.from_json_list(results, truth.category_ids)


@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
@pytest.mark.parametrize(("seed", "number"), [(0, 5), (1, 20), (2, 10_000)])
def test_fixed_ap_is_lvis_api_on_the_best_of_each_class(
    tmp_path: Path, seed: int, number: int, iou_type: str
) -> None:
    dataset, results = _drawn(seed)
    json_file = write_json(tmp_path / "truth.json", dataset)
    kept = _best_of_each_class(results, number)
    expected = run_lvis_api(json_file, kept, iou_type, max_dets=-1)["metrics"]
    truth, detections = _load(dataset, results)
    fixed = evaluate_fixed_ap(truth, detections, iou_type, max_dets_per_class=number)
    for name, value in expected.items():
        assert np.nan_to_num(fixed.result.metrics[name], nan=-1) == pytest.approx(value, abs=1e-9)
    counts = [sum(r["category_id"] == c["id"] for r in results) for c in dataset["categories"]]
    assert fixed.short_classes == sum(count < number for count in counts)


def test_fixed_ap_has_no_limit_for_an_image() -> None:
    dataset, results = _drawn(3)
    truth, detections = _load(dataset, results)
    many = Detections.concatenate([detections] * 8)
    assert np.unique(many.image_id, return_counts=True)[1].max() > 300
    fixed = evaluate_fixed_ap(truth, many).result
    unlimited = evaluate_lvis(truth, many, max_dets=-1)
    np.testing.assert_array_equal(fixed.precision, unlimited.precision)
    assert not np.array_equal(fixed.precision, evaluate_lvis(truth, many).precision, True)


def test_few_detections_of_a_class_are_warned_about(caplog: pytest.LogCaptureFixture) -> None:
    truth, detections = _load(*_drawn(4))
    evaluate_fixed_ap(truth, detections)
    assert "7 of 7 classes have fewer than 10000 detections" in caplog.text
    caplog.clear()
    evaluate_fixed_ap(truth, detections, max_dets_per_class=1)
    assert not caplog.text


@pytest.mark.parametrize("members", [None, [0, 2, 5], [6], []])
def test_pooled_ap_is_that_of_one_ranking(members: list[int] | None) -> None:
    truth, detections = _load(*_drawn(5))
    matches = match_lvis(truth, detections, max_dets=-1)
    pooled = matches.pooled(members).result()
    chosen = range(7) if members is None else members
    for area, threshold in itertools.product(range(4), (0, 5, 9)):
        expected = _slow_pooled(matches, chosen, area, threshold)
        np.testing.assert_allclose(pooled.precision[area, threshold, 0], expected, atol=1e-9)


def _slow_pooled(matches: object, chosen: object, area: int, threshold: int) -> float:
    """Walk down the ranking of all detections of some classes."""
    number = sum(
        bool(counted[area])
        for counted, k in zip(matches.gt_counted, matches.gt_category, strict=True)
        if k in chosen
    )
    if not number:
        return float("nan")
    outcome = dict(zip(matches.rows.tolist(), matches.outcome[:, area, threshold], strict=True))
    rows = [row for row in range(len(matches)) if matches.category[row] in chosen]
    rows.sort(key=lambda row: (-matches.score[row], matches.image[row], matches.category[row]))
    hits, seen, curve = 0, 0, []
    for row in rows:
        if outcome.get(row, 0) == 1:
            hits, seen = hits + 1, seen + 1
        elif outcome.get(row, 0) == 0 and matches.counted[row, area]:
            seen += 1
        curve.append((hits / number, hits / max(seen, 1)))
    best = [max([p for r, p in curve if r >= x], default=0) for x in np.linspace(0, 1, 101)]
    return float(np.mean(best))


def test_results_hold_the_pool_of_all_and_of_each_group() -> None:
    truth, detections = _load(*_drawn(6))
    fixed = evaluate_fixed_ap(truth, detections, class_groups={"first": [truth.category_ids[0]]})
    names = [name for name in fixed.as_dict() if "-" in name]
    expected = ["AP-pooled", "AP-pooled-r", "AP-pooled-c", "AP-pooled-f", "AP-pooled-first"]
    assert names == expected
    np.testing.assert_allclose(
        fixed.as_dict()["AP-pooled-first"], 100 * fixed.result.per_class_ap[0], atol=1e-9
    )


@pytest.mark.parametrize("spare", [0, 7, 1000])
@pytest.mark.parametrize("number", [1, 5, 40])
def test_streaming_keeps_the_best_of_each_class_whatever_the_order(number: int, spare: int) -> None:
    dataset, results = _drawn(7)
    truth, detections = _load(dataset, results)
    expected = Detections.from_json_list(
        _best_of_each_class(results, number), truth.category_ids
    ).canonical()
    rng = np.random.default_rng(0)
    store = BestOfEachClass(number, spare=spare)
    for image_id in rng.permutation(truth.image_ids).tolist():
        store.add([image_id], detections.take(detections.image_id == image_id))
        assert store._waiting <= spare
    kept, seen = store.load()
    assert sorted(seen.tolist()) == truth.image_ids.tolist()
    for name, column in kept.canonical().to_arrays().items():
        np.testing.assert_array_equal(column, expected.to_arrays()[name])


def test_an_image_that_comes_twice_counts_once() -> None:
    store = BestOfEachClass(5)
    for _ in range(2):
        store.add([7], Detections([7], [0], [0.5], [[0, 0, 1, 1]]))
    assert len(store.load()[0]) == 1


def test_no_detections_are_none() -> None:
    store = BestOfEachClass(5)
    store.add([7], Detections.empty())
    detections, seen = store.load()
    assert len(detections) == 0 and seen.tolist() == [7]
    with pytest.raises(ValueError, match="max_dets is 0"):
        BestOfEachClass(0)


def test_limits_of_a_detector_are_lifted_and_put_back(tmp_path: Path) -> None:
    import torch

    register(draw_images(tmp_path))
    model = small_model(small_config(TEST__DETECTIONS_PER_IMAGE=3))
    image = [{"image": torch.full((3, 48, 64), 90.0), "height": 48, "width": 64}]
    with torch.no_grad():
        few = model(image)[0]["instances"]
        with detection_limits(model, detections_per_image=20):
            many = model(image)[0]["instances"]
        again = model(image)[0]["instances"]
    assert len(few) == len(again) == 3 and len(many) == 20
    assert torch.equal(many.scores[:3], few.scores)
    with pytest.raises(ValueError, match="score_threshold is -1"):
        with detection_limits(model, score_threshold=-1):
            pass
