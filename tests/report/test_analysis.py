"""Rank correlation and prior against slow or obvious versions."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from logn_d2.analysis.correlation import spearman
from logn_d2.core import LogitMoments, LogitStatistics, PosteriorMoments, StageStatistics
from logn_d2.report.drawings import _drawn_labels
from logn_d2.report.numbers import label_prior


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


@pytest.mark.parametrize(("background", "share"), [("last", 0.375), ("none", None)])
def test_drawn_labels_are_counted_where_the_pass_has_seen_them(background, share) -> None:
    labels = torch.tensor([0, 0, 1, 3, 3, 3, 3, 3])
    logits = torch.zeros(8, 4)
    moments, posteriors = LogitMoments(4), PosteriorMoments(4)
    moments.update(logits)
    posteriors.update(logits, logits.softmax(dim=1), labels)
    stage = StageStatistics.from_moments(moments, posteriors=posteriors)
    names = tuple("abcd") if background == "none" else tuple("abc")
    given = {"class_names": names, "num_images": 1, "background": background}
    drawn, foreground = _drawn_labels(LogitStatistics((stage,), **given))
    assert drawn.tolist() == [2, 1, 0, 5][: len(names)] and foreground == share
    plain = StageStatistics.from_moments(moments)
    assert _drawn_labels(LogitStatistics((plain,), **given)) is None
