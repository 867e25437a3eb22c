"""The expected calibration error of a classifier, and the temperature that reduces it.

Shapes: N inputs, K classes; logits (N, K) in nats, labels (N,) in [0, K).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from ..errors import UserError
from .scores import log_softmax

# Bounds of the search for log T. No sound network needs a temperature outside them.
_LOG_RANGE = (math.log(1e-3), math.log(1e3))
_GOLDEN = (math.sqrt(5) - 1) / 2
_TOLERANCE = 1e-8  # of log T, so relative to T


@dataclass(frozen=True, eq=False)
class Calibration:
    """Compares the predicted classes' probabilities with the accuracy.

    Attributes:
        ece (float): expected calibration error in [0, 1] (Guo et al., ICML 2017).
        count (ndarray): (B,) int64 number of inputs in each bin of confidence.
        confidence (ndarray): (B,) mean confidence of these inputs, NaN for an empty bin.
        accuracy (ndarray): (B,) accuracy on these inputs, NaN for an empty bin.
    """

    ece: float
    count: np.ndarray
    confidence: np.ndarray
    accuracy: np.ndarray


def expected_calibration_error(
    confidence: ArrayLike, correct: ArrayLike, num_bins: int = 15
) -> Calibration:
    """``sum over bins of (share of the inputs) |accuracy - confidence|``; bins of equal width.

    Args:
        confidence (ArrayLike): (N,) probability of the predicted class, in [0, 1].
        correct (ArrayLike): (N,) whether that class is right.
        num_bins (int): B. The upper end of a bin belongs to it.

    Raises:
        ValueError: different lengths, no inputs, or a confidence outside [0, 1].

    Example:
        >>> expected_calibration_error([0.8] * 5, [1, 1, 1, 1, 0]).ece
        0.0
    """
    confidence = np.asarray(confidence, dtype=np.float64)
    correct = np.asarray(correct, dtype=np.float64)
    if confidence.ndim != 1 or confidence.shape != correct.shape or not confidence.size:
        raise UserError(
            f"Confidence has shape {confidence.shape} and correct {correct.shape}, expected one "
            "shape (number of inputs,) with at least one."
        )
    outside = np.flatnonzero(~((confidence >= 0) & (confidence <= 1)))
    if outside.size:
        raise UserError(
            f"{outside.size} of {len(confidence)} confidences are outside [0, 1], the first is "
            f"{confidence[outside[0]]}. Give probabilities, not logits."
        )
    edges = np.linspace(0, 1, num_bins + 1)
    # Left-sided search, as in Guo et al.: a bin is (low, high]. The maximum puts a confidence of 0
    # into the first one.
    bins = np.maximum(np.searchsorted(edges, confidence) - 1, 0)
    count = np.bincount(bins, minlength=num_bins)
    sums = (np.bincount(bins, values, num_bins) for values in (confidence, correct))
    means = [np.divide(s, count, out=np.full(num_bins, np.nan), where=count > 0) for s in sums]
    # An empty bin has the weight 0, but 0 times NaN would be NaN.
    gaps = np.nan_to_num(np.abs(means[0] - means[1]))
    return Calibration(float((gaps * count).sum() / len(confidence)), count, *means)


def fit_temperature(logits: ArrayLike, labels: ArrayLike) -> float:
    """The temperature T that minimises the mean of ``-log softmax(z / T)_y``.

    Fit it on validation data, never on the data that you report. One temperature for all classes
    does not change their ranking.

    Args:
        logits (ArrayLike): (N, K).
        labels (ArrayLike): (N,) int in [0, K).

    Returns:
        float: T in [0.001, 1000]. It is an end of this range if all predictions are right, or if
            none is better than chance.

    Raises:
        ValueError: shapes or labels do not fit, or there are no inputs.

    Example:
        >>> z = np.log([[0.8, 0.2]] * 5)
        >>> round(fit_temperature(2 * z, [0, 0, 0, 0, 1]), 4)
        2.0
    """
    logits, labels = np.asarray(logits, dtype=np.float64), np.asarray(labels)
    _check_labels(logits, labels)
    rows = np.arange(len(labels))

    def cost(log_temperature: float) -> float:
        return -float(log_softmax(logits / math.exp(log_temperature))[rows, labels].mean())

    # The cost is convex in 1 / T, so that it has one minimum in log T as well, and a golden-section
    # search finds it without derivatives.
    low, high = _LOG_RANGE
    left, right = high - _GOLDEN * (high - low), low + _GOLDEN * (high - low)
    costs = [cost(left), cost(right)]
    while high - low > _TOLERANCE:
        if costs[0] <= costs[1]:
            high, right, costs[1] = right, left, costs[0]
            left = high - _GOLDEN * (high - low)
            costs[0] = cost(left)
        else:
            low, left, costs[0] = left, right, costs[1]
            right = low + _GOLDEN * (high - low)
            costs[1] = cost(right)
    return math.exp((low + high) / 2)


def _check_labels(logits: np.ndarray, labels: np.ndarray) -> None:
    if logits.ndim != 2 or labels.shape != logits.shape[:1] or not labels.size:
        raise UserError(
            f"Logits have shape {logits.shape} and labels {labels.shape}, expected (inputs, "
            "classes) and (inputs,), with at least one input."
        )
    outside = np.flatnonzero((labels < 0) | (labels >= logits.shape[1]))
    if outside.size:
        raise UserError(
            f"{outside.size} of {len(labels)} labels are outside [0, {logits.shape[1] - 1}], the "
            f"first is {labels[outside[0]]} of input {outside[0]}."
        )
