"""The numbers behind the figures of logits: rank correlation and label prior.

Shapes: K foreground classes, L classes that are compared.
"""

from __future__ import annotations

import math

import numpy as np

__all__ = ["label_prior", "spearman"]


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
