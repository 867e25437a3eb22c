"""Detections of a whole data set as a few arrays.

An LVIS validation run yields millions of detections; as Python dictionaries they take gigabytes,
and minutes to sort. Here one object of NumPy arrays holds all of them, which are gathered, cut,
saved and evaluated without ever becoming a list of dictionaries.

Shapes: N images, D detections, K foreground classes. Boxes are (x, y, width, height) in pixels, the
XYWH form of the LVIS result format, so that evaluations of the arrays and of the written json see
the same floating-point numbers. Scores are the detector's own, larger is better.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pycocotools.mask as mask_util

from ..errors import UserError
from ..files import atomic_write
from .masks import RleMasks
from .order import best_of_each, sort_positions

if TYPE_CHECKING:
    from detectron2.structures import Instances

_FORMAT_VERSION = 1
_COLUMNS = ("image_id", "category", "score", "box")


@dataclass(frozen=True, eq=False)
class Detections:
    """Detections of any number of images, in any order: no evaluation depends on it.

    Args:
        image_id (ndarray): (D,) image ids of the data set, int64 or strings.
        category (ndarray): (D,) int32, contiguous class indices in [0, K).
        score (ndarray): (D,) float64.
        box (ndarray): (D, 4) float32 or float64, XYWH in pixels; the precision is kept.
        masks (RleMasks | None): D masks, or None for a detector without masks.

    Example:
        >>> detections = Detections([7, 7], [0, 1], [0.9, 0.8], [[0, 0, 4, 4], [1, 1, 2, 2]])
        >>> len(detections), detections.box.dtype
        (2, dtype('float64'))
    """

    image_id: np.ndarray
    category: np.ndarray
    score: np.ndarray
    box: np.ndarray
    masks: RleMasks | None = None

    def __post_init__(self) -> None:
        box = np.asarray(self.box)
        # float32 is kept: converting would double the memory of millions of boxes and change no
        # digit.
        box = box if box.dtype == np.float32 else box.astype(np.float64)
        columns = {
            "image_id": image_id_array(self.image_id),
            "category": np.asarray(self.category, dtype=np.int32),
            "score": np.asarray(self.score, dtype=np.float64),
            "box": box.reshape(-1, 4),
        }
        lengths = {name: len(column) for name, column in columns.items()}
        if self.masks is not None:
            lengths["masks"] = len(self.masks)
        if len(set(lengths.values())) > 1:
            raise UserError(
                f"The columns of Detections have different lengths: {lengths}. Each detection "
                "needs one entry in every column."
            )
        for name, column in columns.items():
            object.__setattr__(self, name, column)

    def __len__(self) -> int:
        return len(self.image_id)

    @classmethod
    def empty(cls) -> Detections:
        """Return zero detections, which can be joined with any others, with or without masks."""
        return cls([], [], [], np.zeros((0, 4), dtype=np.float32))

    @classmethod
    def from_instances(
        cls, instances: Sequence[Instances], image_ids: Sequence[int] | Sequence[str]
    ) -> Detections:
        """Convert a detector's output.

        Args:
            instances (Sequence[Instances]): one per image, with `pred_boxes`, `scores`,
                `pred_classes` and, if the model has a mask head, `pred_masks` (bitmaps of the
                image's size).
            image_ids (Sequence[int]): the image id of each element.

        Returns:
            Detections: of all images, with encoded masks instead of bitmaps.
        """
        if len(instances) != len(image_ids):
            raise UserError(f"Got {len(instances)} predictions for {len(image_ids)} image ids.")
        return cls.concatenate(
            [_one_image(preds, i) for preds, i in zip(instances, image_ids, strict=True)]
        )

    @classmethod
    def concatenate(cls, parts: Sequence[Detections]) -> Detections:
        """Join detections in the order of `parts`; empty parts need not have masks.

        Raises:
            ValueError: some parts have masks and others do not.
        """
        parts = [part for part in parts if len(part)]
        if not parts:
            return cls.empty()
        without = sum(part.masks is None for part in parts)
        if 0 < without < len(parts):
            raise UserError(
                f"{without} of {len(parts)} sets of detections have no masks, but the others do: "
                f"they come from different models. Join only sets of one model."
            )
        masks = None if without else RleMasks.concatenate([part.masks for part in parts])
        columns = (np.concatenate([getattr(part, name) for part in parts]) for name in _COLUMNS)
        return cls(*columns, masks=masks)

    def take(self, index: np.ndarray) -> Detections:
        """Return the detections at `index` (integers or a boolean mask), in that order."""
        masks = None if self.masks is None else self.masks.take(index)
        return Detections(*(getattr(self, name)[index] for name in _COLUMNS), masks=masks)

    def top_per_image_mask(self, max_dets: int) -> np.ndarray:
        """Mark the best detections of each image, (D,) bool; see `best_of_each`."""
        keep = np.zeros(len(self), dtype=bool)
        keep[best_of_each(self, "image_id", max_dets)] = True
        return keep

    def top_per_image(self, max_dets: int = 300) -> Detections:
        """Keep the best detections of each image over all classes; see `best_of_each`."""
        return self._kept(best_of_each(self, "image_id", max_dets))

    def top_per_class(self, max_dets: int = 10_000) -> Detections:
        """Keep the best detections of each class over all images; see `best_of_each`."""
        return self._kept(best_of_each(self, "category", max_dets))

    def _kept(self, index: np.ndarray) -> Detections:
        return self if len(index) == len(self) else self.take(index)

    def canonical(self) -> Detections:
        """Sort by image, class, descending score, box, then mask.

        Our evaluations do not need it. lvis-api and pycocotools keep the input order of equal
        scores: given detections in this order, they compute the same AP as we do.
        """
        return self.take(sort_positions(self, [-self.score, self.category, self.image_id]))

    def to_arrays(self) -> dict[str, np.ndarray]:
        """Return the columns by name, for `save` and for exchange between processes."""
        arrays = {name: getattr(self, name) for name in _COLUMNS}
        if self.masks is not None:
            for name in ("counts", "offsets", "size"):
                arrays[f"mask_{name}"] = getattr(self.masks, name)
        return arrays

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> Detections:
        """Invert `to_arrays`."""
        masks = None
        if "mask_counts" in arrays:
            masks = RleMasks(arrays["mask_counts"], arrays["mask_offsets"], arrays["mask_size"])
        return cls(*(arrays[name] for name in _COLUMNS), masks=masks)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write an npz file; an interrupted call leaves no file or the old one.

        Args:
            path (str or PathLike): the file; no suffix is appended.
        """
        with atomic_write(path) as temporary, open(temporary, "wb") as file:
            np.savez(file, format_version=np.int64(_FORMAT_VERSION), **self.to_arrays())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Detections:
        """Read a file written by `save`.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the file holds no detections, or has a newer format.
        """
        with np.load(os.fspath(path), allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        version = int(arrays.pop("format_version", -1))
        if version != _FORMAT_VERSION:
            raise UserError(
                f"{os.fspath(path)} has detections format {version} with {sorted(arrays)}; "
                f"expected format {_FORMAT_VERSION}. Write it again with Detections.save."
            )
        return cls.from_arrays(arrays)

    def to_json_list(self, category_ids: Sequence[int]) -> list[dict[str, Any]]:
        """Convert to the LVIS (and COCO) result format.

        Args:
            category_ids (Sequence[int]): K category ids of the data set in class order.

        Returns:
            list[dict]: D JSON-serialisable dictionaries.
        """
        ids = np.asarray(category_ids)[self.category].tolist()
        results = [
            {"image_id": image_id, "category_id": category_id, "bbox": box, "score": score}
            for image_id, category_id, box, score in zip(
                self.image_id.tolist(), ids, self.box.tolist(), self.score.tolist(), strict=True
            )
        ]
        if self.masks is not None:
            for result, rle in zip(results, self.masks.to_dicts(), strict=True):
                rle["counts"] = rle["counts"].decode("ascii")
                result["segmentation"] = rle
        return results

    @classmethod
    def from_json_list(
        cls, results: Sequence[Mapping[str, Any]], category_ids: Sequence[int]
    ) -> Detections:
        """Read the LVIS (and COCO) result format.

        Args:
            results (Sequence[Mapping]): D dictionaries with "image_id", "category_id", "score",
                "bbox" and, in all or none, "segmentation" (compressed run lengths).
            category_ids (Sequence[int]): K category ids of the data set in class order.

        Raises:
            ValueError: a category id is not one of `category_ids`.
        """
        if not len(results):
            return cls.empty()
        index = {int(category_id): k for k, category_id in enumerate(category_ids)}
        _check_results(results, index)
        masks = None
        if "segmentation" in results[0]:
            masks = RleMasks.from_dicts(result["segmentation"] for result in results)
        if "bbox" in results[0]:
            box = [result["bbox"] for result in results]
        else:  # mask results in LVIS's own format have no boxes
            box = mask_util.toBbox(masks.to_dicts())
        return cls(
            image_id=[result["image_id"] for result in results],
            category=[index[result["category_id"]] for result in results],
            score=[result["score"] for result in results],
            box=box,
            masks=masks,
        )


def image_id_array(image_ids: Sequence[int] | Sequence[str] | np.ndarray) -> np.ndarray:
    """Return image ids as int64, or as strings where they are strings.

    Raises:
        ValueError: the ids are neither, or some are integers and some are strings.

    Example:
        >>> image_id_array([2**40, 7]), image_id_array(["b", "a7"])
        (array([1099511627776,             7]), array(['b', 'a7'], dtype='<U2'))
    """
    array = np.asarray(image_ids)
    if not array.size:
        return array.astype(np.int64)
    # numpy turns a mixture of integers and strings into strings silently, and 7 would match "7".
    listed = isinstance(image_ids, Sequence)
    mixed = array.dtype.kind == "U" and listed and not all(isinstance(i, str) for i in image_ids)
    if mixed or array.dtype.kind not in "iuU":
        kinds = sorted({type(i).__name__ for i in (image_ids if listed else array.tolist())})
        raise UserError(
            f"Image ids are of type {', '.join(kinds)}, expected integers for all or strings for "
            f"all, as in the annotations."
        )
    if array.dtype.kind == "u" and array.max() > np.iinfo(np.int64).max:
        raise UserError(
            f"An image id is {array.max()}, expected at most {np.iinfo(np.int64).max}. Renumber "
            f"the images, or use strings."
        )
    return array if array.dtype.kind == "U" else array.astype(np.int64)


def _check_results(results: Sequence[Mapping[str, Any]], index: Mapping[int, int]) -> None:
    """Refuse a json that is not a list of results for these classes; name the first offender."""
    first = results[0] if isinstance(results, Sequence) else None
    if not isinstance(first, Mapping):
        found = sorted(results) if isinstance(results, Mapping) else type(first).__name__
        raise UserError(
            f"Expected a list of results in LVIS's (COCO's) format, found {found}. Were "
            f"annotations passed instead of results?"
        )
    shapes = {"bbox", "segmentation"} & set(first) or {"bbox"}
    needed = {"image_id", "category_id", "score", *shapes}
    for number, result in enumerate(results):
        if not needed <= result.keys():
            raise UserError(
                f"Result number {number} of {len(results)} has {sorted(result)} and lacks "
                f"{sorted(needed - result.keys())}. All results need the same fields."
            )
    unknown = [r["category_id"] for r in results if r["category_id"] not in index]
    if unknown:
        raise UserError(
            f"{len(unknown)} of {len(results)} results have a category id that the data set "
            f"lacks, the first is {unknown[0]}. Are these the results of another data set?"
        )


def _one_image(instances: Instances, image_id: int | str) -> Detections:
    """Convert the predictions for one image."""
    box = instances.pred_boxes.tensor.detach().cpu().numpy().astype(np.float32)
    # Width and height are computed in float32, as in the result files that Detectron2 writes.
    box[:, 2:] -= box[:, :2]
    has_masks = instances.has("pred_masks")
    return Detections(
        image_id=np.full(len(box), image_id),
        category=instances.pred_classes.cpu().numpy(),
        score=instances.scores.detach().cpu().numpy(),
        box=box,
        masks=RleMasks.from_bitmasks(instances.pred_masks) if has_masks else None,
    )
