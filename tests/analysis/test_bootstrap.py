"""Bootstrap over images: against data sets whose images are really copied, and its properties."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from logn_d2.analysis.bootstrap import bootstrap_difference, bootstrap_lvis
from logn_d2.lvis.accumulate import _recalls_reached
from logn_d2.lvis.detections import Detections
from logn_d2.lvis.evaluate import evaluate_lvis
from logn_d2.lvis.ground_truth import LvisGroundTruth
from logn_d2.lvis.matches import LvisMatches, match_lvis

from ..lvis.lvis_reference import one_image, random_detections, random_lvis

MAX_DETS = 20


def _random_run(seed: int, **options: Any) -> tuple[dict[str, Any], Detections]:
    """A data set, and detections whose scores are tied between images but not inside one."""
    rng = np.random.default_rng(seed)
    dataset = random_lvis(rng, **options)
    results = random_detections(
        rng, dataset, with_masks="segmentation" in dataset["annotations"][0]
    )
    ids = sorted(category["id"] for category in dataset["categories"])
    detections = Detections.from_json_list(results, ids)
    order = np.argsort(detections.image_id, kind="stable")
    detections = detections.take(order)
    first = np.searchsorted(detections.image_id, detections.image_id)
    detections.score[:] = 1 / (1 + np.arange(len(detections)) - first)
    return dataset, detections


def _copied(
    dataset: dict[str, Any], detections: Detections, weights: np.ndarray
) -> tuple[LvisGroundTruth, Detections]:
    """The data set with as many copies of each image as its weight says, next to each other."""
    images, annotations, parts = [], [], []
    for image, weight in zip(
        sorted(dataset["images"], key=lambda i: i["id"]), weights, strict=True
    ):
        mine = detections.take(detections.image_id == image["id"])
        for copy in range(int(weight)):
            image_id = 1000 * image["id"] + copy
            images.append({**image, "id": image_id})
            annotations += [
                {**a, "id": 100 * a["id"] + copy, "image_id": image_id}
                for a in dataset["annotations"]
                if a["image_id"] == image["id"]
            ]
            parts.append(
                Detections(
                    *(np.full(len(mine), image_id), mine.category, mine.score, mine.box),
                    masks=mine.masks,
                )
            )
    content = {**dataset, "images": images, "annotations": annotations}
    return LvisGroundTruth.from_dict(content), Detections.concatenate(parts)


def _match(dataset: dict[str, Any], detections: Detections, **options: Any) -> LvisMatches:
    return match_lvis(LvisGroundTruth.from_dict(dataset), detections, max_dets=MAX_DETS, **options)


@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
@pytest.mark.parametrize("seed", range(4))
def test_weights_equal_copies_of_the_images(seed: int, iou_type: str) -> None:
    dataset, detections = _random_run(seed)
    matches = _match(dataset, detections, iou_type=iou_type)
    rng = np.random.default_rng(seed)
    weights = rng.integers(0, 4, (3, len(dataset["images"])))
    for each, result in zip(weights, matches.results(weights), strict=True):
        expected = evaluate_lvis(*_copied(dataset, detections, each), iou_type, max_dets=MAX_DETS)
        np.testing.assert_allclose(result.precision, expected.precision, rtol=0, atol=1e-9)
        np.testing.assert_allclose(result.recall, expected.recall, rtol=0, atol=1e-9)
        np.testing.assert_array_equal(result.num_gt, expected.num_gt)
        np.testing.assert_allclose(
            list(result.metrics.values()), list(expected.metrics.values()), rtol=0, atol=1e-9
        )


def test_samples_are_those_of_the_images_that_the_seed_draws() -> None:
    dataset, detections = _random_run(5)
    run = bootstrap_lvis(_match(dataset, detections), resamples=3, seed=9)
    rng = np.random.default_rng(9)
    number = len(dataset["images"])
    for b in range(3):
        weights = np.bincount(rng.integers(number, size=number), minlength=number)
        expected = evaluate_lvis(*_copied(dataset, detections, weights), max_dets=MAX_DETS)
        for name, value in expected.metrics.items():
            np.testing.assert_allclose(run.samples[name][b], value, atol=1e-9)
        for name, value in expected.group_metrics["c"].items():
            np.testing.assert_allclose(run.samples[f"c/{name}"][b], value, atol=1e-9)
        np.testing.assert_allclose(run.per_class_samples[b], expected.per_class_ap, atol=1e-6)


def test_the_estimate_is_that_of_the_images_as_they_are() -> None:
    dataset, detections = _random_run(6)
    run = bootstrap_lvis(_match(dataset, detections), resamples=2)
    expected = evaluate_lvis(LvisGroundTruth.from_dict(dataset), detections, max_dets=MAX_DETS)
    for name, value in expected.metrics.items():
        np.testing.assert_equal(run.estimate[name], value)
    np.testing.assert_equal(run.per_class_estimate, expected.per_class_ap)


def test_a_seed_gives_the_same_samples_and_another_seed_others() -> None:
    dataset, detections = _random_run(7)
    matches = _match(dataset, detections)
    one, same, other = (bootstrap_lvis(matches, resamples=40, seed=s) for s in (0, 0, 1))
    np.testing.assert_array_equal(one.samples["AP"], same.samples["AP"])
    assert not np.array_equal(one.samples["AP"], other.samples["AP"])
    # However many are drawn together.
    fewer = bootstrap_lvis(matches, resamples=33)
    np.testing.assert_array_equal(one.samples["AP"][:33], fewer.samples["AP"])


def test_a_difference_is_of_the_same_images() -> None:
    dataset, detections = _random_run(8)
    worse = detections.take(np.arange(0, len(detections), 2))
    first, second = _match(dataset, worse), _match(dataset, detections)
    difference = bootstrap_difference(first, second, resamples=50, seed=3)
    one, two = (bootstrap_lvis(run, resamples=50, seed=3) for run in (first, second))
    for name in ("AP", "APr", "AR", "f/APs"):
        np.testing.assert_array_equal(
            difference.samples[name], two.samples[name] - one.samples[name]
        )
        np.testing.assert_equal(difference.estimate[name], two.estimate[name] - one.estimate[name])


def test_a_run_does_not_differ_from_itself() -> None:
    dataset, detections = _random_run(9)
    matches = _match(dataset, detections)
    difference = bootstrap_difference(matches, matches, resamples=20)
    assert difference.estimate["AP"] == 0 and difference.intervals["AP"] == (0, 0)


def test_a_group_without_objects_in_a_resample_is_undefined_there_and_counted() -> None:
    dataset = one_image()
    image, annotation = dataset["images"][0], dataset["annotations"][0]
    dataset["images"].append({**image, "id": 8})
    dataset["annotations"].append({**annotation, "id": 2, "image_id": 8, "category_id": 2})
    dataset["categories"][1]["frequency"] = "c"
    detections = Detections([7, 8], [0, 1], [0.9, 0.9], [[0, 0, 40, 40]] * 2)
    run = bootstrap_lvis(_match(dataset, detections), resamples=200)
    # With two images each is missing in a quarter of the resamples, and nothing else varies.
    assert 30 < run.undefined["APr"] < 70 and 30 < run.undefined["APc"] < 70
    assert run.undefined["AP"] == 0 and run.undefined["APf"] == 200
    assert run.intervals["APr"] == pytest.approx((1, 1))
    assert np.isnan(run.intervals["APf"]).all()
    np.testing.assert_allclose(run.per_class_intervals[:, :2], 1)
    assert np.isnan(run.per_class_intervals[:, 2]).all()


def test_one_image_has_no_spread() -> None:
    run = bootstrap_lvis(
        _match(one_image(), Detections([7], [0], [0.9], [[0, 0, 40, 30]])), resamples=5
    )
    low, high = run.intervals["AP"]
    assert low == pytest.approx(high) and low == pytest.approx(run.estimate["AP"])


def test_without_detections_every_sample_is_zero() -> None:
    dataset, _ = _random_run(10)
    run = bootstrap_lvis(_match(dataset, Detections.empty()), resamples=5)
    assert run.intervals["AP"] == (0, 0) and run.intervals["AR"] == (0, 0)


def test_rows_are_in_percent() -> None:
    run = bootstrap_lvis(
        _match(one_image(), Detections([7], [0], [0.9], [[0, 0, 40, 40]])), resamples=5
    )
    rows = {row["figure"]: row for row in run.rows()}
    assert rows["AP"] == {
        "figure": "AP",
        "estimate": pytest.approx(100),
        "low": pytest.approx(100),
        "high": pytest.approx(100),
        "undefined": 0,
    }
    assert "APr" in run.table() and "r/APs" in rows and "r/APs" not in run.table()


def test_a_centred_interval_is_the_percentile_interval_moved_to_the_estimate() -> None:
    dataset, detections = _random_run(11)
    matches = _match(dataset, detections)
    options = {"resamples": 60, "level": 0.8}
    centred = bootstrap_lvis(matches, **options)
    plain = bootstrap_lvis(matches, method="percentile", **options)
    values = plain.samples["AP"]
    np.testing.assert_allclose(plain.intervals["AP"], np.quantile(values, [0.1, 0.9]))
    moved = np.quantile(values, [0.1, 0.9]) + plain.estimate["AP"] - values.mean()
    np.testing.assert_allclose(centred.intervals["AP"], np.clip(moved, 0, 1))
    low, high = centred.per_class_intervals
    assert ((low <= high) | np.isnan(low)).all() and np.nanmin(low) >= 0 and np.nanmax(high) <= 1


def test_resamples_lie_above_the_estimate_and_a_centred_interval_holds_it() -> None:
    rng = np.random.default_rng(12)
    dataset = random_lvis(rng, num_images=150, with_masks=False)
    results = random_detections(rng, dataset, per_image=8, score_digits=9, with_masks=False)
    ids = sorted(category["id"] for category in dataset["categories"])
    run = bootstrap_lvis(_match(dataset, Detections.from_json_list(results, ids)), resamples=64)
    assert run.samples["AP"].mean() > run.estimate["AP"]
    low, high = run.intervals["AP"]
    assert low < run.estimate["AP"] < high


def test_impossible_requests_are_refused() -> None:
    matches = _match(one_image(), Detections.empty())
    for options in ({"resamples": 0}, {"level": 95}):
        with pytest.raises(ValueError, match="expected at least one resample, a level between"):
            bootstrap_lvis(matches, **options)
    with pytest.raises(ValueError, match="method is 'bca'"):
        bootstrap_lvis(matches, method="bca")


def test_runs_that_can_not_be_compared_are_refused() -> None:
    dataset = one_image()
    first = _match(dataset, Detections.empty())
    grouped = _match(dataset, Detections.empty(), class_groups={"odd": [1, 3]})
    with pytest.raises(ValueError, match=r"different groups: .*'odd'"):
        bootstrap_difference(first, grouped)
    dataset["images"][0]["id"] = dataset["annotations"][0]["image_id"] = 8
    with pytest.raises(ValueError, match="different annotations"):
        bootstrap_difference(first, _match(dataset, Detections.empty()))
    dataset["categories"][0]["name"] = "other"
    with pytest.raises(ValueError, match="different classes"):
        bootstrap_difference(first, _match(dataset, Detections.empty()))


def test_recalls_are_counted_as_by_a_search() -> None:
    recalls = np.linspace(0.0, 1.0, 101)
    reached = np.concatenate([np.arange(1, n + 1) / n for n in range(1, 500)])
    expected = np.searchsorted(recalls, reached, side="right")
    np.testing.assert_array_equal(_recalls_reached(reached), expected)
