"""Checks before an evaluation: each message names the first offender and their number.

Shapes: D detections, K foreground classes.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ..errors import UserError
from .detections import Detections
from .ground_truth import LvisGroundTruth

# AP with these suffixes exists already: a group of this name would hide another metric.
_TAKEN = {"", "s", "m", "l", "50", "75"}


def check_groups(
    groups: np.ndarray | None, num_classes: int, class_groups: Mapping[str, object]
) -> None:
    """Refuse groups for another vocabulary, and names that are in use.

    Args:
        groups (ndarray | None): group of each class, expected (K,).
        num_classes (int): K.
        class_groups (Mapping): further groups by name.

    Raises:
        ValueError: wrong shape, or a name that is in use.
    """
    names = set()
    if groups is not None:
        if groups.shape != (num_classes,):
            raise UserError(
                f"frequency_groups has shape {groups.shape}, expected ({num_classes},): the group "
                f"name of each class of the data set, in the order of category ids."
            )
        names = set(groups.tolist())
    clash = sorted((_TAKEN & names) | ((_TAKEN | names | {"r", "c", "f"}) & set(class_groups)))
    if clash:
        raise UserError(
            f"A group is named {clash[0]!r}, but AP{clash[0]} is the name of another metric. "
            "Choose another name."
        )


def check_arguments(ground_truth: object, detections: object) -> None:
    """Refuse other types, above all swapped arguments."""
    if isinstance(ground_truth, LvisGroundTruth) and isinstance(detections, Detections):
        return
    raise UserError(
        f"The ground truth is of type {type(ground_truth).__name__} and the detections are of type "
        f"{type(detections).__name__}, expected LvisGroundTruth and Detections. Are the arguments "
        f"swapped?"
    )


def check_detections(ground_truth: LvisGroundTruth, detections: Detections, iou_type: str) -> None:
    """Refuse detections that can't belong to this ground truth; name the first offender."""
    num_classes, source = ground_truth.num_classes, ground_truth.json_file or "the ground truth"
    category, box = detections.category, detections.box
    _check_kind_of_ids(ground_truth, detections, source)
    _refuse(
        ~np.isin(detections.image_id, ground_truth.image_ids),
        *("image id", detections.image_id),
        f"one of the {ground_truth.num_images} images of {source}. Do the json and the "
        f"predictions belong to different data sets?",
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
    # A minimum or sum that is NaN or infinite tells of any such value: two quick passes.
    if len(box) and not (box[:, 2:].min() >= 0 and np.isfinite(box.sum(dtype=np.float64))):
        _refuse(
            ~((box[:, 2:] >= 0).all(axis=1) & np.isfinite(box).all(axis=1)),
            *("box", box),
            "finite (x, y, width, height) with a width and height of at least 0. Were corners "
            "(x1, y1, x2, y2) given?",
        )
    if iou_type == "segm":
        _check_masks(ground_truth, detections, source)


def _check_kind_of_ids(ground_truth: LvisGroundTruth, detections: Detections, source: str) -> None:
    """Refuse string ids for integer ids, and the reverse: "7" never equals 7."""
    ids = (detections.image_id, ground_truth.image_ids)
    if not all(map(len, ids)) or len({each.dtype.kind for each in ids}) == 1:
        return
    raise UserError(
        f"The first detection's image id is {ids[0].item(0)!r}, the first of {source} is "
        f"{ids[1].item(0)!r}: one is a string and the other an integer. Use one type in "
        f"both."
    )


def _check_masks(ground_truth: LvisGroundTruth, detections: Detections, source: str) -> None:
    if ground_truth.masks is None:
        raise UserError(
            f"{source} was read without masks, or none of its annotations has one, so "
            'iou_type="segm" can\'t be computed. Use LvisGroundTruth.from_json(..., masks=True), '
            'or evaluate iou_type="bbox" only.'
        )
    if not len(detections):
        return
    if detections.masks is None:
        raise UserError(
            f'The {len(detections)} detections have no masks, so iou_type="segm" can\'t be '
            'computed. Evaluate iou_type="bbox" only, or use a model with a mask head '
            "(MODEL.MASK_ON True)."
        )
    expected = ground_truth.image_size[np.searchsorted(ground_truth.image_ids, detections.image_id)]
    _refuse(
        (detections.masks.size != expected).any(axis=1),
        *("mask size (height, width)", detections.masks.size),
        f"the size of its image in {source}. Do the masks belong to resized images?",
    )


def _refuse(wrong: np.ndarray, name: str, values: np.ndarray, expected: str) -> None:
    """Raise ValueError if any of (D,) `wrong` is set, and show the first of (D, ...) `values`."""
    if not wrong.any():
        return
    first = int(np.argmax(wrong))
    raise UserError(
        f"{np.count_nonzero(wrong)} of {len(wrong)} detections have a wrong {name}: the first "
        f"(number {first}) has {values[first].tolist()}, expected {expected}"
    )
