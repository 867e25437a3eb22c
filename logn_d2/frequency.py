"""Class counts of the training set, and the frequency groups of papers.

Shapes: K foreground classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from .errors import UserError

# LVIS's letters; other groups keep their names.
_TITLES = {"r": "rare", "c": "common", "f": "frequent"}


def group_title(group: str) -> str:
    """The title of a group, given as a name or as a metric's suffix after AP.

    Example:
        >>> [group_title(group) for group in ("r", "few", "")]
        ['rare', 'few', 'all']
    """
    return _TITLES.get(group, group or "all")


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


def count_classes(images: Iterable[Sequence[int]], num_classes: int) -> np.ndarray:
    """Images and objects of each class, int64 (2, K).

    Args:
        images (Iterable[Sequence[int]]): the classes of the objects in each image.
        num_classes (int): K.

    Example:
        >>> count_classes([[0, 0], [0, 2]], 3).tolist()
        [[2, 0, 1], [3, 0, 1]]
    """
    counts = np.zeros((2, num_classes), dtype=np.int64)
    for classes in images:
        # An index that occurs twice is increased once by "+=", but each time by `np.add.at`.
        counts[0, list(set(classes))] += 1
        np.add.at(counts[1], classes, 1)
    return counts


def known_counts(source: CountsSource) -> ClassCounts | None:
    """The class counts of a source, counted now if it is a function."""
    return source() if callable(source) else source


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
