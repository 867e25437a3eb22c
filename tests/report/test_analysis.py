"""Rank correlation, prior and intervals against slow or obvious versions."""

from __future__ import annotations

import math

import numpy as np
import pytest

from logn_d2.report import Results
from logn_d2.report.analysis import ap_change, label_prior, spearman


def test_spearman_equals_the_classic_formula_without_ties() -> None:
    generator = np.random.default_rng(0)
    x, y = generator.normal(size=30), generator.normal(size=30)
    rank_x = [sorted(x).index(value) for value in x]
    rank_y = [sorted(y).index(value) for value in y]
    difference = sum((a - b) ** 2 for a, b in zip(rank_x, rank_y, strict=True))
    assert spearman(x, y) == pytest.approx(1 - 6 * difference / (30 * (30**2 - 1)))


def test_spearman_gives_ties_their_mean_rank() -> None:
    x, y = np.array([1, 1, 2, 3]), np.array([4, 2, 2, 9])
    expected = np.corrcoef([0.5, 0.5, 2, 3], [2, 0.5, 0.5, 3])[0, 1]
    assert spearman(x, y) == pytest.approx(expected)


@pytest.mark.parametrize("values", [[], [1.0], [2.0, 2.0, 2.0]])
def test_spearman_of_no_order_is_nan(values: list[float]) -> None:
    assert math.isnan(spearman(np.array(values), np.arange(len(values))))


def test_prior_is_a_distribution_that_ignores_a_common_shift() -> None:
    mean = np.array([-2.0, -3.0, -700.0])
    assert label_prior(mean).sum() == pytest.approx(1)
    np.testing.assert_allclose(label_prior(mean), label_prior(mean + 1000))


def test_change_is_the_difference_of_the_printed_numbers(results: Results) -> None:
    change = ap_change(results, "logn", "bbox", "APr")
    rows = [results.row(name).tasks["bbox"]["APr"] for name in ("uncalibrated", "logn")]
    printed = [float(f"{value:.1f}") for value in rows]
    assert change.delta == pytest.approx(printed[1] - printed[0])


def test_interval_holds_the_change_and_is_the_same_each_time(results: Results) -> None:
    change = ap_change(results, "logn", "bbox", "AP")
    assert change.low < change.delta < change.high
    assert ap_change(results, "logn", "bbox", "AP") == change


def test_classes_without_objects_do_not_count(results: Results) -> None:
    before = ap_change(results, "logn", "bbox", "AP")
    for tasks in results.class_ap.values():
        tasks["bbox"] = np.append(tasks["bbox"][:-1], math.nan)
    after = ap_change(results, "logn", "bbox", "AP")
    assert math.isfinite(after.low) and after.low != before.low


def test_no_interval_without_the_ap_of_each_class(results: Results) -> None:
    bare = Results(results.rows)
    assert math.isnan(ap_change(bare, "logn", "bbox", "AP").low)
