"""Which detections a picture shows, and which objects these find.

A calibration changes all scores, so that one score threshold would compare different amounts of
detections. Instead, each image shows its n best detections, where n is the number of its annotated
objects; of overlapping ones (IoU over 0.5), whatever their classes, the best one stands for all. An
object is *found* if one of these has its class and an IoU of at least 0.5.

Shapes: G annotated objects, D detections.
"""

from __future__ import annotations

import numpy as np
import pycocotools.mask as mask_util

from ..lvis.detections import Detections
from ..lvis.ground_truth import LvisGroundTruth
from ..lvis.matching import box_candidates

__all__ = ["matched", "shown_detections"]

_SAME_PLACE = 0.5  # IoU


def shown_detections(truth: LvisGroundTruth, detections: Detections) -> Detections:
    """Of each image as many of the best detections as it has annotated objects, best first.

    Args:
        truth (LvisGroundTruth): G objects.
        detections (Detections): D detections.
    """
    image = np.searchsorted(truth.image_ids, detections.image_id)
    order = np.lexsort((-detections.score, image))
    starts = np.searchsorted(image[order], np.arange(truth.num_images + 1))
    num_objects = np.bincount(truth.image, minlength=truth.num_images)
    # Image by image: one suppression over all images would look at all boxes for each of them.
    kept = [
        mine[_first_apart(detections.box[mine], number)]
        for start, end, number in zip(starts, starts[1:], num_objects.tolist())
        for mine in (order[start:end],)
    ]
    return detections.take(np.concatenate(kept) if kept else order)


def _first_apart(box: np.ndarray, number: int) -> list[int]:
    """The first boxes, best first, that overlap no better one that is kept.

    Detectors suppress within a class; a person sees one object, and one name for it.
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
    """Which objects are found, and which detections find one.

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
