"""Metrics of how well a score separates known inputs from unknown ones.

A score is higher for inputs that look known (ID). All metrics but AUROC depend on the side that is
called positive. Papers differ in this choice without stating it, so the names of the functions do:

- ID positive, as LogitNorm, VOS and SIREN report: ``fpr95_id_pos`` is the share of OOD inputs that
  are accepted when 95 % of ID inputs are; ``aupr_in``.
- OOD positive, as OpenOOD and pytorch-ood report: ``fpr95_ood_pos`` is the share of ID inputs that
  are rejected when 95 % of OOD inputs are; ``aupr_out``.

Inputs with equal scores are on the same side of every threshold, and count half in AUROC. The
threshold for 95 % is the strictest one whose rate is at least 95 %; rates are not interpolated.

Shapes: N ID inputs, M OOD inputs, U different scores. Results are in [0, 1].
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from ..errors import UserError


def auroc(id_scores: ArrayLike, ood_scores: ArrayLike) -> float:
    """Probability that an ID input has a higher score than an OOD input.

    Args:
        id_scores (ArrayLike): (N,), higher for inputs that look known.
        ood_scores (ArrayLike): (M,).

    Raises:
        ValueError: a side is empty or holds NaN.

    Example:
        >>> auroc([3, 2, 1], [1, 0])
        0.9166666666666666
    """
    ood_rate, id_rate = roc_curve(id_scores, ood_scores)
    return _trapezoid(ood_rate, id_rate)


def fpr95_id_pos(id_scores: ArrayLike, ood_scores: ArrayLike, level: float = 0.95) -> float:
    """Share of OOD inputs that are accepted when 95 % of the ID inputs are (ID positive).

    Args:
        id_scores (ArrayLike): (N,), higher for inputs that look known.
        ood_scores (ArrayLike): (M,).
        level (float): share of the ID inputs to accept, in (0, 1].

    Raises:
        ValueError: a side is empty or holds NaN, or the level is outside its range.

    Example:
        >>> fpr95_id_pos([3, 2, 1], [1, 0])
        0.5
    """
    return _false_positives(*roc_curve(id_scores, ood_scores), level)


def fpr95_ood_pos(id_scores: ArrayLike, ood_scores: ArrayLike, level: float = 0.95) -> float:
    """Share of ID inputs that are rejected when 95 % of the OOD inputs are (OOD positive).

    Args:
        id_scores (ArrayLike): (N,), higher for inputs that look known.
        ood_scores (ArrayLike): (M,).
        level (float): share of the OOD inputs to reject, in (0, 1].

    Raises:
        ValueError: a side is empty or holds NaN, or the level is outside its range.

    Example:
        >>> fpr95_ood_pos([3, 2, 1], [1, 0])
        0.3333333333333333
    """
    return _false_positives(*_rates(_rejected(*score_histograms(id_scores, ood_scores))), level)


def aupr_in(id_scores: ArrayLike, ood_scores: ArrayLike) -> float:
    """Area under precision over recall, ID positive, by the trapezoidal rule.

    It depends on the share of ID inputs, N / (N + M), so compare only sets with equal shares. The
    rule interpolates precision linearly, which is slightly optimistic. `average_precision_in`,
    which scikit-learn recommends, does not interpolate.

    Args:
        id_scores (ArrayLike): (N,), higher for inputs that look known.
        ood_scores (ArrayLike): (M,).

    Raises:
        ValueError: a side is empty or holds NaN.

    Example:
        >>> aupr_in([3, 2], [1, 0])
        1.0
    """
    return _trapezoid(*_precision_curve(*_accepted(*score_histograms(id_scores, ood_scores))))


def aupr_out(id_scores: ArrayLike, ood_scores: ArrayLike) -> float:
    """Area under precision over recall, OOD positive, by the trapezoidal rule; see `aupr_in`.

    Example:
        >>> aupr_out([3, 2], [1, 0])
        1.0
    """
    return _trapezoid(*_precision_curve(*_rejected(*score_histograms(id_scores, ood_scores))))


def average_precision_in(id_scores: ArrayLike, ood_scores: ArrayLike) -> float:
    """Average precision, ID positive: the sum of precision times the step in recall.

    Args:
        id_scores (ArrayLike): (N,), higher for inputs that look known.
        ood_scores (ArrayLike): (M,).

    Raises:
        ValueError: a side is empty or holds NaN.

    Example:
        >>> average_precision_in([3, 1], [2, 0])
        0.8333333333333333
    """
    return _average_precision(*_accepted(*score_histograms(id_scores, ood_scores)))


def average_precision_out(id_scores: ArrayLike, ood_scores: ArrayLike) -> float:
    """Average precision, OOD positive; see `average_precision_in`.

    Example:
        >>> average_precision_out([3, 1], [2, 0])
        0.8333333333333333
    """
    return _average_precision(*_rejected(*score_histograms(id_scores, ood_scores)))


def detection_error(id_scores: ArrayLike, ood_scores: ArrayLike) -> float:
    """Smallest error of any threshold where ID and OOD are equally frequent.

    ``min over thresholds of (share of ID rejected + share of OOD accepted) / 2``, as Lee et al.
    (NeurIPS 2018) report it; ODIN's has the threshold where 95 % of ID inputs are accepted.

    Args:
        id_scores (ArrayLike): (N,), higher for inputs that look known.
        ood_scores (ArrayLike): (M,).

    Raises:
        ValueError: a side is empty or holds NaN.

    Example:
        >>> detection_error([3, 1], [2, 0])
        0.25
    """
    return _smallest_error(*roc_curve(id_scores, ood_scores))


def roc_curve(id_scores: ArrayLike, ood_scores: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Shares of inputs that are accepted, from the strictest threshold to the laxest.

    Args:
        id_scores (ArrayLike): (N,), higher for inputs that look known.
        ood_scores (ArrayLike): (M,).

    Returns:
        tuple[ndarray, ndarray]: (U + 1,) of OOD and of ID inputs, from 0 to 1.

    Raises:
        ValueError: a side is empty or holds NaN.

    Example:
        >>> [rate.tolist() for rate in roc_curve([3, 1], [1])]
        [[0.0, 0.0, 1.0], [0.0, 0.5, 1.0]]
    """
    return _rates(_accepted(*score_histograms(id_scores, ood_scores)))


def score_histograms(id_scores: ArrayLike, ood_scores: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of ID and of OOD inputs with each different score, lowest score first.

    Inputs with equal scores can't be separated by a threshold, whatever their order in a sort.

    Args:
        id_scores (ArrayLike): (N,), higher for inputs that look known.
        ood_scores (ArrayLike): (M,).

    Returns:
        tuple[ndarray, ndarray]: (U,) int64 of each side.

    Raises:
        ValueError: a side is empty or holds NaN.

    Example:
        >>> [count.tolist() for count in score_histograms([3, 1], [1])]
        [[1, 1], [1, 0]]
    """
    known, unknown = _checked(id_scores, "ID"), _checked(ood_scores, "OOD")
    values, place = np.unique(np.concatenate([known, unknown]), return_inverse=True)
    id_place, ood_place = np.split(place, [len(known)])
    number = len(values)
    return np.bincount(id_place, minlength=number), np.bincount(ood_place, minlength=number)


def all_metrics(id_histogram: np.ndarray, ood_histogram: np.ndarray) -> dict[str, float]:
    """Every metric of this module, from `score_histograms`.

    Args:
        id_histogram (ndarray): (U,) counts, which may be 0 as in a resample; not all 0.
        ood_histogram (ndarray): (U,).

    Returns:
        dict: name, as in `OODResult`, -> metric in [0, 1].
    """
    # A score without inputs is no threshold: as the first one, its precision would be 0 / 0.
    present = (id_histogram + ood_histogram) > 0
    known, unknown = id_histogram[present], ood_histogram[present]
    accepted, rejected = _accepted(known, unknown), _rejected(known, unknown)
    ood_rate, id_rate = _rates(accepted)
    return {
        "auroc": _trapezoid(ood_rate, id_rate),
        "aupr_in": _trapezoid(*_precision_curve(*accepted)),
        "aupr_out": _trapezoid(*_precision_curve(*rejected)),
        "ap_in": _average_precision(*accepted),
        "ap_out": _average_precision(*rejected),
        "fpr95_id_pos": _false_positives(ood_rate, id_rate, 0.95),
        "fpr95_ood_pos": _false_positives(*_rates(rejected), 0.95),
        "detection_error": _smallest_error(ood_rate, id_rate),
    }


def _rates(counts: tuple[np.ndarray, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Shares of the negatives and of the positives beyond each threshold, the strictest first."""
    positives, negatives = counts
    return np.append(0, negatives) / negatives[-1], np.append(0, positives) / positives[-1]


def _accepted(known: np.ndarray, unknown: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(U,) numbers of ID and OOD inputs at or above each score, highest score first."""
    return known[::-1].cumsum(), unknown[::-1].cumsum()


def _rejected(known: np.ndarray, unknown: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(U,) numbers of OOD and ID inputs at or below each score, lowest score first."""
    return unknown.cumsum(), known.cumsum()


def _precision_curve(positives: np.ndarray, negatives: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Recall and precision at each threshold; precision is 1 at recall 0, as in scikit-learn."""
    precision = positives / (positives + negatives)
    return np.append(0, positives) / positives[-1], np.append(1, precision)


def _average_precision(positives: np.ndarray, negatives: np.ndarray) -> float:
    recall, precision = _precision_curve(positives, negatives)
    return float((np.diff(recall) * precision[1:]).sum())


def _false_positives(negative_rate: np.ndarray, positive_rate: np.ndarray, level: float) -> float:
    if not 0 < level <= 1:
        raise UserError(f"level is {level!r}, expected a share in (0, 1].")
    # The strictest threshold whose rate reaches the level: rates increase from strict to lax.
    return float(negative_rate[np.searchsorted(positive_rate, level)])


def _smallest_error(ood_rate: np.ndarray, id_rate: np.ndarray) -> float:
    return float((1 - id_rate + ood_rate).min() / 2)


def _trapezoid(x: np.ndarray, y: np.ndarray) -> float:
    # numpy's own function has different names in releases 1 and 2.
    return float((np.diff(x) * (y[1:] + y[:-1]) / 2).sum())


def _checked(scores: ArrayLike, side: str) -> np.ndarray:
    """Scores as a float64 vector."""
    scores = np.asarray(scores, dtype=np.float64)
    if scores.ndim != 1 or not scores.size:
        raise UserError(
            f"The {side} scores have shape {scores.shape}, expected (number of inputs,) with at "
            "least one: separation needs inputs on both sides."
        )
    bad = np.flatnonzero(np.isnan(scores))
    if bad.size:
        raise UserError(
            f"{bad.size} of {len(scores)} {side} scores are NaN, the first is number {bad[0]}. "
            "Check the logits that they come from."
        )
    return scores
