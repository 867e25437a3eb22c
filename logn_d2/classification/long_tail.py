"""Long-tailed parts of balanced sets: how many images of each class, and which.

Shapes: K classes, N images.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from ..errors import UserError

__all__ = ["long_tail_counts", "long_tail_indices"]


def long_tail_counts(
    num_classes: int, largest: int, ratio: float, order: Sequence[int] | None = None
) -> np.ndarray:
    """Images of each class along an exponential profile, as CIFAR-LT (Cao et al., NeurIPS 2019).

        n_r = floor(largest * ratio^(-r / (K - 1))),   r = 0 ... K - 1

    Args:
        num_classes (int): K.
        largest (int): images of the most frequent class.
        ratio (float): of the largest to the smallest number, at least 1.
        order (Sequence[int]): (K,) classes from the most frequent one on; None for 0 ... K - 1.

    Returns:
        ndarray: (K,) int64, each at least 1.

    Raises:
        ValueError: a ratio below 1, or no images.

    Example:
        >>> long_tail_counts(3, largest=100, ratio=100).tolist()
        [100, 10, 1]
    """
    if not ratio >= 1 or largest < 1 or num_classes < 1:
        raise UserError(
            f"A long tail of {num_classes} classes from {largest} images down by a ratio of "
            f"{ratio} does not exist: expected at least one class and image, and a ratio of 1 or "
            "more."
        )
    share = np.arange(num_classes) / max(num_classes - 1, 1)
    # A hair above, so that 100 * 0.01 is 1 and not 0.
    falling = np.floor(largest * ratio**-share * (1 + 1e-12)).astype(np.int64).clip(min=1)
    counts = np.empty_like(falling)
    counts[np.arange(num_classes) if order is None else np.asarray(order)] = falling
    return counts


def long_tail_indices(
    labels: ArrayLike, counts: ArrayLike, seed: int, names: Sequence[str] | None = None
) -> np.ndarray:
    """Which images the part has: for each class the first of a random order.

    The order depends on the seed and the class alone, so that a shorter tail is a part of a longer
    one.

    Args:
        labels (ArrayLike): (N,) int in [0, K).
        counts (ArrayLike): (K,) images to take of each class.
        seed (int): of the order.
        names (Sequence[str]): (K,) of classes, for the error message.

    Returns:
        ndarray: int64 positions, rising.

    Raises:
        ValueError: a class has fewer images; the message names the first, and how many there are.

    Example:
        >>> long_tail_indices([0, 0, 0, 1, 1], [2, 1], seed=0).size
        3
    """
    labels, counts = np.asarray(labels), np.asarray(counts)
    available = np.bincount(labels, minlength=len(counts))
    short = np.flatnonzero(available < counts)
    if short.size:
        first = int(short[0])
        name = names[first] if names is not None else str(first)
        raise UserError(
            f"{short.size} of {len(counts)} classes have fewer images than the long tail asks for; "
            f"the first is class '{name}' with {available[first]} of {counts[first]}. Ask for a "
            "smaller largest class, or a smaller ratio."
        )
    chosen = [
        np.random.default_rng([seed, c]).permutation(np.flatnonzero(labels == c))[:count]
        for c, count in enumerate(counts)
    ]
    return np.sort(np.concatenate(chosen))
