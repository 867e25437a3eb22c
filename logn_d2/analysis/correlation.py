"""Rank correlation, such as of logits with the number of training images.

Shapes: L classes.
"""

from __future__ import annotations

import math

import numpy as np


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
    # By hand, because scipy, which has rank correlations, is not a requirement.
    _, inverse, count = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(count)
    return ((last - count + last - 1) / 2)[inverse]
