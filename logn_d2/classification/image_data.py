"""A labelled set of images, and the kinds of sources that a config can name.

A record is in Detectron2's format: "file_name", "image_id", "label", and "annotations" with that
label as the only object, so that class counts and class-aware samplers of detectors work. A set in
one file has "image_array", uint8 (height, width) gray or (height, width, 3) in RGB, and a
"file_name" with "://", which is no path.

Shapes: N images, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..core.registry import Registry
from ..errors import UserError
from .long_tail import long_tail_counts, long_tail_indices

IMAGE_SOURCES: Registry = Registry("image set")
"""Kind -> ``function(**options) -> ImageData``; all options are keyword-only."""


@dataclass(frozen=True)
class ImageData:
    """The images of a source.

    Attributes:
        records (list[dict]): N records.
        class_names (tuple[str, ...]): K names.
        limits (tuple[int, int]): a class with at most the first number of training images is few,
            with at most the second medium, else many. ImageNet-LT's by default.

    Raises:
        ValueError: no images, or labels outside [0, K); the message has the first and their number.
    """

    records: list[dict[str, Any]]
    class_names: tuple[str, ...]
    limits: tuple[int, int] = (19, 100)

    def __post_init__(self) -> None:
        if not self.records:
            raise UserError("The set has no images; expected at least one.")
        num_classes = len(self.class_names)
        wrong = [each for each in self.records if not 0 <= each["label"] < num_classes]
        if wrong:
            raise UserError(
                f"{len(wrong)} of {len(self.records)} images have a label outside [0, "
                f"{num_classes - 1}]; the first is {wrong[0]['file_name']} with label "
                f"{wrong[0]['label']}. Correct the labels, or the number of classes."
            )

    def take(self, indices: Sequence[int]) -> ImageData:
        """Select images, in this order."""
        return ImageData([self.records[i] for i in indices], self.class_names, self.limits)

    def long_tailed(
        self, ratio: float, seed: int, order: Sequence[int] | None = None, largest: int = 0
    ) -> ImageData:
        """Select a long-tailed part; see `long_tail_counts` and `long_tail_indices`.

        Args:
            ratio (float): images of the largest class per image of the smallest.
            seed (int): seed of the choice of images.
            order (Sequence[int]): (K,) classes, most frequent first; None for 0 ... K - 1.
            largest (int): images of the largest class; 0 for as many as the smallest class has.
        """
        labels, names = self.labels, self.class_names
        # Any class may get the first rank, so by default the smallest class limits the largest.
        largest = largest or int(np.bincount(labels, minlength=len(names)).min())
        counts = long_tail_counts(len(names), largest, ratio, order)
        return self.take(long_tail_indices(labels, counts, seed, names))

    @property
    def labels(self) -> np.ndarray:
        """Labels of the images, (N,) int64."""
        return np.array([each["label"] for each in self.records], dtype=np.int64)


def file_records(paths: Sequence[str], labels: Sequence[int]) -> list[dict[str, Any]]:
    """Records of image files, without reading their sizes."""
    return [_record(path, index, label) for index, (path, label) in enumerate(zip(paths, labels))]


def array_records(source: str, pixels: np.ndarray, labels: Sequence[int]) -> list[dict[str, Any]]:
    """Records of images in memory.

    Args:
        source (str): prefix of their names, for example "digits".
        pixels (ndarray): uint8 (N, height, width) or (N, height, width, 3).
        labels (Sequence[int]): (N,).
    """
    return [
        {**_record(f"{source}://{index}", index, label), "image_array": image}
        for index, (image, label) in enumerate(zip(pixels, labels, strict=True))
    ]


def _record(name: str, index: int, label: int) -> dict[str, Any]:
    one = [{"category_id": int(label)}]
    return {"file_name": name, "image_id": index, "label": int(label), "annotations": one}
