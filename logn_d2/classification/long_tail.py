"""Long-tailed parts of balanced sets: number and choice of the images of each class.

Shapes: K classes, N images.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from ..errors import UserError


def long_tail_counts(
    num_classes: int, largest: int, ratio: float, order: Sequence[int] | None = None
) -> np.ndarray:
    """Number of images of each class, exponential as in CIFAR-LT (Cao et al., NeurIPS 2019).

        n_r = floor(largest * ratio^(-r / (K - 1))),   r = 0 ... K - 1

    Args:
        num_classes (int): K.
        largest (int): images of the most frequent class.
        ratio (float): largest number divided by the smallest, at least 1.
        order (Sequence[int]): (K,) classes, most frequent first; None for 0 ... K - 1.

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
            f"There is no long tail of {num_classes} classes with {largest} images in the largest "
            f"and a ratio of {ratio}: expected at least one class and image, and a ratio of 1 or "
            "more."
        )
    share = np.arange(num_classes) / max(num_classes - 1, 1)
    # Slightly more than the product, which rounding errors may put just below a whole number.
    falling = np.floor(largest * ratio**-share * (1 + 1e-12)).astype(np.int64).clip(min=1)
    counts = np.empty_like(falling)
    counts[np.arange(num_classes) if order is None else np.asarray(order)] = falling
    return counts


def long_tail_indices(
    labels: ArrayLike, counts: ArrayLike, seed: int, names: Sequence[str] | None = None
) -> np.ndarray:
    """Choose the images: for each class the first ones of a random order.

    The order depends only on the seed and the class, so a shorter tail is a part of a longer one.

    Args:
        labels (ArrayLike): (N,) int in [0, K).
        counts (ArrayLike): (K,) number of images to take.
        seed (int): seed of the order.
        names (Sequence[str]): (K,) class names, for the error message.

    Returns:
        ndarray: int64 positions, increasing.

    Raises:
        ValueError: classes have too few images; the message has the first one and their number.

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
            f"{short.size} of {len(counts)} classes have fewer images than the long tail needs; "
            f"the first is class '{name}' with {available[first]} of {counts[first]}. Choose a "
            "smaller largest class, or a smaller ratio."
        )
    chosen = [
        np.random.default_rng([seed, c]).permutation(np.flatnonzero(labels == c))[:count]
        for c, count in enumerate(counts)
    ]
    return np.sort(np.concatenate(chosen))
