"""Selection and order of detections under the LVIS rule, and the objects that count.

Shapes: D detections, G objects, A = 4 area ranges.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .detections import Detections
from .ground_truth import LvisGroundTruth
from .masks import RleMasks
from .matching import AREA_RANGES, box_candidates, mask_candidates
from .order import best_of_each, sort_positions

CANDIDATES = {"bbox": box_candidates, "segm": mask_candidates}


@dataclass(frozen=True, eq=False)
class RankedDetections:
    """The detections that LVIS evaluates, sorted by class and by descending score within a class.

    Among equal scores the image with the lower id comes first, as in lvis-api; within an image box
    and mask decide, so that the input order has no effect.

    Attributes:
        index (ndarray): (D,) int64 into the detections.
        key (ndarray): (D,) int64, image and class, as in `LvisGroundTruth`.
        category (ndarray): (D,) int32, ascending.
        shapes (ndarray | RleMasks): D boxes (XYWH) or masks.
        counted (ndarray): (D, A) bool, whether a detection is a false positive if unmatched.
    """

    index: np.ndarray
    key: np.ndarray
    category: np.ndarray
    shapes: np.ndarray | RleMasks
    counted: np.ndarray


def rank_detections(
    ground_truth: LvisGroundTruth,
    detections: Detections,
    iou_type: str,
    max_dets: int,
    max_dets_per_class: int,
) -> RankedDetections:
    """Apply LVIS's limit and federated rule and sort the rest; see `federated_filter`.

    Args:
        ground_truth (LvisGroundTruth): must contain all images of the detections.
        detections (Detections): with masks if `iou_type` is "segm".
        iou_type (str): "bbox" or "segm".
        max_dets (int): number kept per image; negative keeps all.
        max_dets_per_class (int): number kept per class; negative keeps all.
    """
    kept = federated_filter(ground_truth, detections, max_dets, max_dets_per_class)
    # lexsort's last column decides first: by class, then score, then image id, lvis-api's order of
    # images.
    columns = (detections.image_id, -detections.score, detections.category)
    kept = kept[sort_positions(detections, [column[kept] for column in columns], kept)]
    shapes, area = _shapes_and_area(detections, iou_type, kept)
    if not area.all():  # lvis-api selects detections by an area range that is open at 0
        kept = kept[area > 0]
        shapes, area = _shapes_and_area(detections, iou_type, kept)
    keys = _keys(ground_truth, detections, kept)
    # Both ends are included, as in lvis-api: a detection of exactly 32 x 32 is small and medium.
    area = area[:, None]
    counted = (area >= AREA_RANGES[:, 0]) & (area <= AREA_RANGES[:, 1])
    # An unmatched detection may be one of the objects that nobody annotated, so it counts in no
    # range.
    counted &= ~ground_truth.is_not_exhaustive(keys)[:, None]
    return RankedDetections(kept, keys, detections.category[kept], shapes, counted)


def federated_filter(
    ground_truth: LvisGroundTruth,
    detections: Detections,
    max_dets: int,
    max_dets_per_class: int,
) -> np.ndarray:
    """Select the detections that LVIS evaluates.

    First the best of each image over all classes, then the best of each class over all images,
    then those whose class is annotated in their image or known to be absent from it. The order
    matters: detections of unverified classes take up places among the best.

    Args:
        ground_truth (LvisGroundTruth): must know all images of the detections.
        detections (Detections): detections in any of its images.
        max_dets (int): kept of each image; negative keeps all.
        max_dets_per_class (int): kept of each class; negative keeps all.

    Returns:
        ndarray: (D',) int64 index into `detections`, ascending.
    """
    kept = best_of_each(detections, "image_id", max_dets)
    kept = best_of_each(detections, "category", max_dets_per_class, kept)
    keys = _keys(ground_truth, detections, kept)
    return kept[ground_truth.is_listed(keys)]


def ignored_objects(ground_truth: LvisGroundTruth) -> np.ndarray:
    """Objects to ignore because of their flag or area, (G, A) bool."""
    area = ground_truth.area[:, None]
    outside = (area < AREA_RANGES[:, 0]) | (area > AREA_RANGES[:, 1])
    return outside | ground_truth.ignore[:, None]


def object_shapes(ground_truth: LvisGroundTruth, iou_type: str) -> np.ndarray | RleMasks:
    """Boxes or masks of all objects."""
    return ground_truth.box if iou_type == "bbox" else ground_truth.masks


def some_shapes(
    source: Detections | LvisGroundTruth, iou_type: str, index: np.ndarray
) -> np.ndarray | RleMasks:
    """Boxes or masks of some detections or objects."""
    if iou_type == "bbox":
        return source.box[index]
    # Detections without masks are refused earlier unless there are none at all.
    return RleMasks.from_dicts([]) if source.masks is None else source.masks.take(index)


def _shapes_and_area(
    detections: Detections, iou_type: str, index: np.ndarray
) -> tuple[np.ndarray | RleMasks, np.ndarray]:
    """Boxes or masks of some detections and their (n,) areas."""
    shapes = some_shapes(detections, iou_type, index)
    if isinstance(shapes, RleMasks):
        return shapes, shapes.areas
    # float32 products would move areas across the limits of the ranges; the json that lvis-api
    # reads has float64.
    box = shapes.astype(np.float64)
    return box, box[:, 2] * box[:, 3]


def _keys(ground_truth: LvisGroundTruth, detections: Detections, index: np.ndarray) -> np.ndarray:
    """(image, class) keys of some detections, as in `LvisGroundTruth`."""
    image = np.searchsorted(ground_truth.image_ids, detections.image_id[index])
    return image * ground_truth.num_classes + detections.category[index]
