"""Class counts of the training set, and the frequency groups of papers.

Shapes: K foreground classes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from .errors import UserError

__all__ = ["ClassCounts", "CountsSource", "frequency_groups", "shot_groups"]


@dataclass(frozen=True)
class ClassCounts:
    """Class counts of a training set.

    Attributes:
        class_names (tuple[str, ...]): K names.
        image_count (ndarray): (K,) int64, images that contain the class. LVIS's groups, repeat
            factor sampling and NorCal use these.
        instance_count (ndarray): (K,) int64, annotated objects; a far longer tail.
        num_images (int): images in the set that have an object; detectors train on no others.
        groups (ndarray or None): (K,) of "r", "c", "f", if the data set defines groups; None for
            LVIS's, by `image_count`.
        num_records (int or None): all images of the set, including those without an object.
        fractal_dimensions (ndarray or Callable): (K,) fractal dimensions of the positions of each
            class's objects, or a function that returns them, called only when needed; see
            `fractal_dimensions_of`. None if unknown.

    Raises:
        ValueError: names and counts differ in length.

    Example:
        >>> counts = ClassCounts(("axolotl", "bee"), np.array([3, 40]), np.array([3, 90]), 50)
        >>> frequency_groups(counts.image_count).tolist()
        ['r', 'c']
    """

    class_names: tuple[str, ...]
    image_count: np.ndarray
    instance_count: np.ndarray
    num_images: int
    groups: np.ndarray | None = None
    num_records: int | None = None
    fractal_dimensions: np.ndarray | Callable[[], np.ndarray] | None = None

    def __post_init__(self) -> None:
        expected = (len(self.class_names),)
        for field in ("image_count", "instance_count", "groups"):
            value = getattr(self, field)
            found = np.shape(value)
            if value is not None and found != expected:
                raise UserError(f"{field} has shape {found}, expected {expected}: one per class.")


CountsSource = ClassCounts | Callable[[], ClassCounts] | None
"""Class counts; or a function that returns them, called only if they are needed, because counting
LVIS takes a while; or None."""


def frequency_groups(
    image_count: ArrayLike, rare_max: int = 10, common_max: int = 100
) -> np.ndarray:
    """LVIS's groups by number of training images.

    Args:
        image_count (ArrayLike): (K,).
        rare_max (int): a class in at most this many images is rare (LVIS: 10).
        common_max (int): a class in at most this many is common (LVIS: 100), otherwise frequent.

    Returns:
        ndarray: (K,) of "r", "c", "f".

    Example:
        >>> frequency_groups([10, 11, 100, 101]).tolist()
        ['r', 'c', 'c', 'f']
    """
    image_count = np.asarray(image_count)
    return np.select([image_count <= rare_max, image_count <= common_max], ["r", "c"], "f")


def shot_groups(image_count: ArrayLike, few_max: int = 20, medium_max: int = 100) -> np.ndarray:
    """ImageNet-LT's groups: "many" (over 100 images), "medium" (20 to 100), "few" (below 20).

    Args:
        image_count (ArrayLike): (K,).
        few_max (int): a class with *fewer* images is few-shot.
        medium_max (int): a class with *at most* this many is medium-shot.

    Returns:
        ndarray: (K,) of "few", "medium", "many".

    Example:
        >>> shot_groups([19, 20, 100, 101]).tolist()
        ['few', 'medium', 'medium', 'many']
    """
    image_count = np.asarray(image_count)
    return np.select([image_count < few_max, image_count <= medium_max], ["few", "medium"], "many")
