"""Selection of the detections in a picture, and the objects found by them.

A calibration changes all scores, so one score threshold would compare different numbers of
detections. Instead, each image shows its n best detections, where n is the number of its annotated
objects; among overlapping ones (IoU over 0.5) of any class, only the best is shown. An object is
*found* if one of these has its class and an IoU of at least 0.5.

Shapes: G annotated objects, D detections.
"""

from __future__ import annotations

import numpy as np
import pycocotools.mask as mask_util

from ..lvis.detections import Detections
from ..lvis.ground_truth import LvisGroundTruth
from ..lvis.matching import box_candidates

_SAME_PLACE = 0.5  # IoU


def shown_detections(truth: LvisGroundTruth, detections: Detections) -> Detections:
    """Select as many of the best detections of each image as it has objects, best first.

    Args:
        truth (LvisGroundTruth): G objects.
        detections (Detections): D detections.
    """
    image = np.searchsorted(truth.image_ids, detections.image_id)
    order = np.lexsort((-detections.score, image))
    starts = np.searchsorted(image[order], np.arange(truth.num_images + 1))
    num_objects = np.bincount(truth.image, minlength=truth.num_images)
    # Image by image: one suppression over all images would scan all boxes for each image.
    kept = [
        mine[_first_apart(detections.box[mine], number)]
        for start, end, number in zip(starts, starts[1:], num_objects.tolist())
        for mine in (order[start:end],)
    ]
    return detections.take(np.concatenate(kept) if kept else order)


def _first_apart(box: np.ndarray, number: int) -> list[int]:
    """Indices of the first boxes, best first, that do not overlap a kept one.

    Detectors suppress within a class, but a person sees one object and expects one name for it.
    """
    box, kept = np.asarray(box, dtype=np.float64), []
    for index in range(len(box)):
        if len(kept) == number:
            break
        if not kept or mask_util.iou(box[index : index + 1], box[kept], [0] * len(kept)).max() <= (
            _SAME_PLACE
        ):
            kept.append(index)
    return kept


def matched(truth: LvisGroundTruth, detections: Detections) -> tuple[np.ndarray, np.ndarray]:
    """Mark found objects and the detections that find one.

    Args:
        truth (LvisGroundTruth): G objects.
        detections (Detections): D detections.

    Returns:
        tuple[ndarray, ndarray]: (G,) bool and (D,) bool.
    """
    image = np.searchsorted(truth.image_ids, detections.image_id)
    found, hits = np.zeros(len(truth), dtype=bool), np.zeros(len(detections), dtype=bool)
    detection, target, _ = box_candidates(
        image * truth.num_classes + detections.category,
        detections.box.astype(np.float64),
        truth.keys(),
        truth.box,
        truth.crowd,
    )
    found[target] = True
    hits[detection] = True
    return found, hits
