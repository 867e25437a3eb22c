"""Average precision as LVIS defines it, equal to lvis-api and much faster.

In this order, as in lvis-api:

1. of each image the 300 best detections over all classes are kept;
2. a detection whose class is neither annotated nor listed as absent in its image is dropped;
3. detections find objects, see `lvis_matching`;
4. an unmatched detection is a false positive, unless its area is outside the area range or its
   class is not exhaustively annotated in its image;
5. precision is read at 101 recalls for each class, threshold and area range, and averaged over
   the classes that have objects.

Shapes: N images, D detections, K foreground classes, A = 4 area ranges (all, small, medium,
large), T = 10 thresholds of IoU. Precision and recall are in [0, 1]; NaN where there is no object.
"""

from __future__ import annotations

import functools
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .detections import Detections
from .lvis_engines import ENGINES, count_objects
from .lvis_ground_truth import LvisGroundTruth

__all__ = ["LvisResult", "evaluate_lvis"]

_AREA_NAMES = ("", "s", "m", "l")
# lvis-api's names of the groups; these are in every result, if only as NaN.
_LVIS_GROUPS = ("r", "c", "f")


@dataclass(frozen=True, eq=False)
class LvisResult:
    """What `evaluate_lvis` returns.

    Args:
        iou_type (str): "bbox" or "segm".
        max_dets (int): detections kept of each image.
        precision (ndarray): (A, T, K), mean precision over 101 recalls.
        recall (ndarray): (A, T, K), recall of all kept detections.
        num_gt (ndarray): (K,) int64, objects that are not to be ignored.
        class_names (tuple[str, ...]): K names.
        groups (ndarray | None): (K,) group of each class.
    """

    iou_type: str
    max_dets: int
    precision: np.ndarray
    recall: np.ndarray
    num_gt: np.ndarray
    class_names: tuple[str, ...]
    groups: np.ndarray | None

    @property
    def per_class_ap(self) -> np.ndarray:
        """AP of each class, (K,) in [0, 1], NaN for a class without objects."""
        return self.precision[0].mean(axis=0)

    @property
    def per_class_ap50(self) -> np.ndarray:
        """AP of each class at an IoU of 0.5, (K,) in [0, 1], NaN for a class without objects."""
        return self.precision[0, 0]

    @functools.cached_property
    def metrics(self) -> OrderedDict[str, float]:
        """All numbers of lvis-api, in [0, 1]; NaN where no class has objects.

        AP, AP50, AP75; APs, APm, APl by area; AP with the name of each group (APr, APc, APf);
        AR, ARs, ARm, ARl, the recall of the `max_dets` detections.
        """
        metrics = OrderedDict(AP=_mean(self.precision[0]))
        metrics["AP50"] = _mean(self.precision[0, 0])
        metrics["AP75"] = _mean(self.precision[0, 5])
        for area, name in list(enumerate(_AREA_NAMES))[1:]:
            metrics[f"AP{name}"] = _mean(self.precision[area])
        for name in self.group_names:
            members = np.flatnonzero(self.groups == name) if self.groups is not None else []
            metrics[f"AP{name}"] = _mean(self.precision[0][:, members])
        for area, name in enumerate(_AREA_NAMES):
            metrics[f"AR{name}"] = _mean(self.recall[area])
        return metrics

    @property
    def group_names(self) -> tuple[str, ...]:
        """LVIS's r, c, f, or the names in `groups` in order of first class."""
        names = () if self.groups is None else tuple(dict.fromkeys(self.groups.tolist()))
        return _LVIS_GROUPS if set(names) <= set(_LVIS_GROUPS) else names

    def as_dict(self) -> OrderedDict[str, float]:
        """Return `metrics` in percent without recall by area, as Detectron2 reports results."""
        return OrderedDict(
            (name, 100 * value)
            for name, value in self.metrics.items()
            if name not in ("ARs", "ARm", "ARl")
        )

    def per_class_rows(self) -> list[dict[str, Any]]:
        """Return one row per class: class, group, num_gt, and AP and AP50 in percent."""
        groups = [""] * len(self.num_gt) if self.groups is None else self.groups.tolist()
        columns = (
            *(self.class_names, groups, self.num_gt.tolist()),
            *((100 * self.per_class_ap).tolist(), (100 * self.per_class_ap50).tolist()),
        )
        names = ("class", "group", "num_gt", "AP", "AP50")
        return [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]

    def per_class_table(self) -> str:
        """Return `per_class_rows` as a table in Markdown; classes without objects are left out."""
        from tabulate import tabulate

        rows = [row for row in self.per_class_rows() if row["num_gt"]]
        return tabulate(rows, headers="keys", tablefmt="pipe", floatfmt=".2f")


def evaluate_lvis(
    ground_truth: LvisGroundTruth,
    detections: Detections,
    iou_type: str = "bbox",
    *,
    max_dets: int = 300,
    engine: str = "fast",
    frequency_groups: Sequence[str] | None = None,
) -> LvisResult:
    """Compute LVIS AP.

    One thing differs from lvis-api on purpose: there, a detection that finds the object whose
    annotation id is 0 counts as a false positive.

    Args:
        ground_truth (LvisGroundTruth): the annotations.
        detections (Detections): of any of its images; an image without detections is all missed.
        iou_type (str): "bbox" or "segm". The areas of detections are those of boxes or masks.
        max_dets (int): best detections of each image that are kept; negative keeps all.
        engine (str): "fast", or "lvis" for lvis-api itself, which must be installed.
        frequency_groups (Sequence[str] | None): (K,) group of each class; by default the
            ground truth's.

    Returns:
        LvisResult: per class, per group and overall.

    Raises:
        ValueError: the detections do not belong to the ground truth or hold impossible values.

    Example:
        >>> truth = LvisGroundTruth.from_dict({
        ...     "images": [{"id": 7, "neg_category_ids": [], "not_exhaustive_category_ids": []}],
        ...     "categories": [{"id": 1, "name": "cat", "frequency": "r"}],
        ...     "annotations": [
        ...         {"id": 1, "image_id": 7, "category_id": 1, "bbox": [0, 0, 4, 4], "area": 16}
        ...     ],
        ... })
        >>> result = evaluate_lvis(truth, Detections([7], [0], [0.9], [[0, 0, 4, 3]]))
        >>> round(result.metrics["AP50"], 6), round(result.metrics["AP"], 6)
        (1.0, 0.6)
    """
    if iou_type not in ("bbox", "segm"):
        raise ValueError(f'iou_type is {iou_type!r}, expected "bbox" or "segm".')
    if engine not in ENGINES:
        raise ValueError(f"engine is {engine!r}, expected one of {sorted(ENGINES)}.")
    groups = ground_truth.groups if frequency_groups is None else np.asarray(frequency_groups)
    _check_groups(groups, ground_truth.num_classes)
    _check_detections(ground_truth, detections, iou_type)
    precision, recall = ENGINES[engine](ground_truth, detections, iou_type, max_dets)
    return LvisResult(
        iou_type=iou_type,
        max_dets=max_dets,
        precision=precision,
        recall=recall,
        num_gt=count_objects(ground_truth)[:, 0],
        class_names=ground_truth.class_names,
        groups=groups,
    )


def _mean(values: np.ndarray) -> float:
    """Mean over all classes with objects; NaN if there is none."""
    values = values[~np.isnan(values)]
    return float(values.mean()) if values.size else float("nan")


def _check_groups(groups: np.ndarray | None, num_classes: int) -> None:
    if groups is None:
        return
    if groups.shape != (num_classes,):
        raise ValueError(
            f"frequency_groups has shape {groups.shape}, expected ({num_classes},): the name of "
            "the group of each class of the data set, in the order of its category ids."
        )
    clash = sorted({"", "s", "m", "l", "50", "75"} & set(groups.tolist()))
    if clash:
        raise ValueError(
            f"A group is named {clash[0]!r}, and AP{clash[0]} is the name of another number. "
            "Choose another name."
        )


def _check_detections(ground_truth: LvisGroundTruth, detections: Detections, iou_type: str) -> None:
    """Refuse detections that can't be of this ground truth; name the first offender."""
    num_classes, source = ground_truth.num_classes, ground_truth.json_file or "the ground truth"
    category, box = detections.category, detections.box
    _refuse(
        ~np.isin(detections.image_id, ground_truth.image_ids),
        *("image id", detections.image_id),
        f"one of the {ground_truth.num_images} images of {source}. Was another data set's json "
        "or another set's predictions given?",
    )
    _refuse(
        (category < 0) | (category >= num_classes),
        *("class index", category),
        f"0 to {num_classes - 1}, the classes of {source}. Is the model for another vocabulary?",
    )
    _refuse(
        np.isnan(detections.score),
        *("score", detections.score),
        "a number. The model has diverged, or a calibration divides by zero.",
    )
    _refuse(
        ~((box[:, 2:] >= 0).all(axis=1) & np.isfinite(box).all(axis=1)),
        *("box", box),
        "finite (x, y, width, height) with a width and height of at least 0. Were corners "
        "(x1, y1, x2, y2) given?",
    )
    if iou_type == "segm":
        _check_masks(ground_truth, detections, source)


def _check_masks(ground_truth: LvisGroundTruth, detections: Detections, source: str) -> None:
    if ground_truth.masks is None:
        raise ValueError(
            f"{source} was read without masks, or some of its annotations have none, so "
            'iou_type="segm" can\'t be computed. Use LvisGroundTruth.from_json(..., masks=True), '
            'or evaluate iou_type="bbox" only.'
        )
    if not len(detections):
        return
    if detections.masks is None:
        raise ValueError(
            f'The {len(detections)} detections have no masks, so iou_type="segm" can\'t be '
            'computed. Evaluate iou_type="bbox" only, or use a model with a mask head '
            "(MODEL.MASK_ON True)."
        )
    expected = ground_truth.image_size[np.searchsorted(ground_truth.image_ids, detections.image_id)]
    _refuse(
        (detections.masks.size != expected).any(axis=1),
        *("mask size (height, width)", detections.masks.size),
        f"the size of its image in {source}. Were masks made for resized images?",
    )


def _refuse(wrong: np.ndarray, name: str, values: np.ndarray, expected: str) -> None:
    """Raise ValueError if any of (D,) `wrong` is set, and show the first of (D, ...) `values`."""
    if not wrong.any():
        return
    first = int(np.argmax(wrong))
    raise ValueError(
        f"{np.count_nonzero(wrong)} of {len(wrong)} detections have a wrong {name}: the first "
        f"(number {first}) has {values[first].tolist()}, expected {expected}"
    )
