"""The numbers behind figures and sentences: rank correlation, label prior, changes with intervals.

Shapes: K foreground classes, L classes that are compared.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from .results import BASELINE, Results

__all__ = ["Change", "ap_change", "label_prior", "spearman"]

_RESAMPLES = 2000


def spearman(x: np.ndarray, y: np.ndarray) -> float:
    """Spearman's rank correlation; ties share their mean rank.

    Args:
        x (ndarray): (L,).
        y (ndarray): (L,).

    Returns:
        float: in [-1, 1]; NaN for fewer than two points or a constant.

    Example:
        >>> round(spearman(np.array([1, 2, 3, 3]), np.array([5.0, 6.0, 8.0, 7.0])), 4)
        0.9487
    """
    x, y = (_ranks(np.asarray(values)) for values in (x, y))
    if len(x) < 2 or x.std() == 0 or y.std() == 0:
        return math.nan
    return float(np.corrcoef(x, y)[0, 1])


def _ranks(values: np.ndarray) -> np.ndarray:
    """Mean ranks from 0, (L,) float64."""
    _, inverse, count = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(count)
    return ((last - count + last - 1) / 2)[inverse]


def label_prior(mean_logit: np.ndarray) -> np.ndarray:
    """The label distribution that a model leans to: softmax of the mean logits.

    Args:
        mean_logit (ndarray): (K,) without background.

    Returns:
        ndarray: (K,), sums to 1.
    """
    shifted = np.exp(mean_logit - np.max(mean_logit))
    return shifted / shifted.sum()


@dataclass(frozen=True)
class Change:
    """How a calibration changes a metric, in points of AP.

    Attributes:
        before (float): uncalibrated.
        after (float): calibrated.
        low, high (float): 95 % interval of the change over a resampling of the classes; NaN where
            the AP of each class is not known. It says what another choice of classes would do,
            not what another training would.
    """

    before: float
    after: float
    low: float = math.nan
    high: float = math.nan

    @property
    def delta(self) -> float:
        """After minus before, of the numbers as printed."""
        return round(self.after - self.before, 1)


def ap_change(results: Results, calibration: str, task: str, metric: str) -> Change:
    """The change of AP, APr, APc or APf against the uncalibrated detector.

    Args:
        results (Results): with per-class AP for an interval.
        calibration (str): a row of ``results``.
        task (str): "bbox" or "segm".
        metric (str): AP, or AP with the letter of a group.

    Returns:
        Change: with NaN where there is nothing to measure.
    """
    before, after = (results.row(name).value(task, metric) for name in (BASELINE, calibration))
    low, high = _interval(results, calibration, task, metric.removeprefix("AP"))
    return Change(before, after, low, high)


def _interval(results: Results, calibration: str, task: str, group: str) -> tuple[float, float]:
    """95 % bootstrap interval of the mean change over the classes of a group ("" for all)."""
    ap = results.class_ap
    if results.classes is None or not all(task in ap.get(n, {}) for n in (BASELINE, calibration)):
        return math.nan, math.nan
    change = ap[calibration][task] - ap[BASELINE][task]
    members = np.array([group in ("", g) for g in results.classes.groups], dtype=bool)
    change = change[members & np.isfinite(change)]
    if len(change) < 2:
        return math.nan, math.nan
    # A fixed seed: a report that is made again says the same.
    picks = np.random.default_rng(0).integers(0, len(change), (_RESAMPLES, len(change)))
    low, high = np.percentile(change[picks].mean(axis=1), [2.5, 97.5])
    return float(low), float(high)
