"""Two ways to the same precision and recall: our array kernel, and lvis-api itself.

Shapes: D detections, M of them with a candidate object, G objects, K foreground classes, A = 4
area ranges, T = 10 thresholds of IoU.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import numpy as np

from .detections import Detections
from .lvis_ground_truth import LvisGroundTruth
from .lvis_matching import (
    AREA_RANGES,
    IOU_THRESHOLDS,
    MATCHED,
    box_candidates,
    mask_areas,
    mask_candidates,
    match,
)

__all__ = ["ENGINES", "count_objects", "federated_filter"]

_RECALLS = np.linspace(0.0, 1.0, 101)


def federated_filter(
    ground_truth: LvisGroundTruth, detections: Detections, max_dets: int = 300
) -> np.ndarray:
    """Select the detections that LVIS looks at.

    First the best of each image over all classes, then those whose class is annotated in their
    image or known to be absent from it. The order of the two matters: a class that nobody asked
    for takes places among the best.

    Args:
        ground_truth (LvisGroundTruth): must know all images of the detections.
        detections (Detections): of any of its images.
        max_dets (int): kept of each image; negative keeps all.

    Returns:
        ndarray: (D',) int64 index into `detections`, ascending.
    """
    kept = np.flatnonzero(detections.top_per_image_mask(max_dets))
    keys = _keys(ground_truth, detections, kept)
    return kept[ground_truth.is_listed(keys)]


def count_objects(ground_truth: LvisGroundTruth) -> np.ndarray:
    """Count the objects of each class and area range that are to be found, (K, A) int64."""
    ignored = _ignored(ground_truth)
    counts = [
        np.bincount(ground_truth.category[~column], minlength=ground_truth.num_classes)
        for column in ignored.T
    ]
    return np.stack(counts, axis=1)


def _fast(
    ground_truth: LvisGroundTruth, detections: Detections, iou_type: str, max_dets: int
) -> tuple[np.ndarray, np.ndarray]:
    """Precision and recall, (A, T, K) each, by the array kernel."""
    kept = federated_filter(ground_truth, detections, max_dets)
    shapes, area = _shapes_and_areas(detections, kept, iou_type)
    # lvis-api looks detections up by an area range that is open at 0.
    order = np.flatnonzero(area > 0)
    kept = kept[order]
    # The order in which lvis-api accumulates: by score, then image, then as given.
    columns = (detections.image_id, -detections.score, detections.category)
    by = np.lexsort([column[kept] for column in columns])
    order, kept = order[by], kept[by]
    area, keys = area[order], _keys(ground_truth, detections, kept)
    counted = (area[:, None] >= AREA_RANGES[:, 0]) & (area[:, None] <= AREA_RANGES[:, 1])
    counted &= ~ground_truth.is_not_exhaustive(keys)[:, None]
    arguments = (ground_truth.keys(), _gt_shapes(ground_truth, iou_type), ground_truth.crowd)
    if iou_type == "bbox":
        det, gt, iou = box_candidates(keys, shapes[order], *arguments)
    else:
        det, gt, iou = mask_candidates(keys, [shapes[i] for i in order], *arguments)
    found = match(det, gt, iou, keys, _ignored(ground_truth), ground_truth.crowd)
    return _accumulate(detections.category[kept], counted, *found, count_objects(ground_truth))


def _accumulate(
    category: np.ndarray,
    counted: np.ndarray,
    rows: np.ndarray,
    outcome: np.ndarray,
    num_gt: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Precision and recall of each class.

    Args:
        category (ndarray): (D,) ascending, of detections in the order of their scores.
        counted (ndarray): (D, A) bool, whether a detection is a false positive if unmatched.
        rows (ndarray): (M,) the detections with a candidate, ascending.
        outcome (ndarray): (M, A, T) int8 from `match`.
        num_gt (ndarray): (K, A) objects to be found.

    Returns:
        tuple[ndarray, ndarray]: precision and recall, (A, T, K) each.
    """
    classes = np.arange(len(num_gt) + 1)
    total = np.concatenate(
        [np.zeros((1, len(AREA_RANGES)), dtype=np.int64), counted.cumsum(axis=0)]
    )
    # Counted detections of the class itself, up to and with each row.
    before = total[np.searchsorted(category, classes)]
    seen = total[rows + 1] - before[category[rows]]
    bounds = np.searchsorted(category[rows], classes)
    precision = np.full((len(AREA_RANGES), len(IOU_THRESHOLDS), len(num_gt)), np.nan)
    recall = precision.copy()
    for k in np.flatnonzero(num_gt.any(axis=1)):
        of_class = slice(bounds[k], bounds[k + 1])
        present = num_gt[k] > 0
        values = _class_precision(
            outcome[of_class], counted[rows[of_class]], seen[of_class], num_gt[k]
        )
        precision[present, :, k], recall[present, :, k] = (value[present] for value in values)
    return precision, recall


def _class_precision(
    outcome: np.ndarray, counted: np.ndarray, seen: np.ndarray, num_gt: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Mean precision over 101 recalls, and recall, of one class.

    Precision falls at every false positive and jumps at true positives, so the largest precision
    at or beyond a recall is that of a true positive: rows that match nothing need no look, they
    only count (`seen`).

    Args:
        outcome (ndarray): (m, A, T) int8 of the detections with a candidate, best score first.
        counted (ndarray): (m, A) bool, whether these are false positives if unmatched.
        seen (ndarray): (m, A) number of counted detections of the class up to and with each.
        num_gt (ndarray): (A,) objects to be found.

    Returns:
        tuple[ndarray, ndarray]: (A, T) each.
    """
    if not len(outcome):
        return np.zeros(outcome.shape[1:]), np.zeros(outcome.shape[1:])
    hit = outcome == MATCHED
    spared = np.cumsum((outcome != 0) & counted[:, :, None], axis=0)
    hits = np.cumsum(hit, axis=0)
    # The summand is lvis-api's guard against 0 / 0; it moves the last digit, so it stays.
    precision = np.where(hit, hits / (seen[:, :, None] - spared + hits + np.spacing(1)), 0)
    best = np.maximum.accumulate(precision[::-1], axis=0)[::-1]
    weight = np.stack([_recall_weights(number, num_gt.max()) for number in num_gt])
    area = np.arange(len(num_gt))[:, None]
    mean = (np.where(hit, weight[area, hits], 0) * best).sum(axis=0) + weight[:, :1] * best[0]
    return mean / len(_RECALLS), hits[-1] / np.maximum(num_gt, 1)[:, None]


def _recall_weights(num_gt: int, length: int) -> np.ndarray:
    """For each number of found objects, at how many of the 101 recalls precision is read there.

    Returns:
        ndarray: (length + 1,) int64, summing to 101.
    """
    reached = np.arange(num_gt + 1) / max(num_gt, 1)
    return np.bincount(np.searchsorted(reached, _RECALLS), minlength=length + 1)[: length + 1]


def _keys(ground_truth: LvisGroundTruth, detections: Detections, index: np.ndarray) -> np.ndarray:
    """(image, class) keys of some detections, as in `LvisGroundTruth`."""
    image = np.searchsorted(ground_truth.image_ids, detections.image_id[index])
    return image * ground_truth.num_classes + detections.category[index]


def _ignored(ground_truth: LvisGroundTruth) -> np.ndarray:
    """Objects that neither count nor harm, (G, A) bool, by flag or area."""
    area = ground_truth.area[:, None]
    outside = (area < AREA_RANGES[:, 0]) | (area > AREA_RANGES[:, 1])
    return outside | ground_truth.ignore[:, None]


def _shapes_and_areas(
    detections: Detections, index: np.ndarray, iou_type: str
) -> tuple[np.ndarray | list[dict], np.ndarray]:
    """Boxes or masks of some detections and their areas in square pixels, float64."""
    if iou_type == "bbox":
        box = detections.box[index].astype(np.float64)
        return box, box[:, 2] * box[:, 3]
    rles = [] if detections.masks is None else detections.masks.to_dicts(index)
    return rles, mask_areas(rles)


def _gt_shapes(ground_truth: LvisGroundTruth, iou_type: str) -> np.ndarray | list[dict]:
    """Boxes or masks of all objects."""
    return ground_truth.box if iou_type == "bbox" else ground_truth.masks.to_dicts()


def _lvis_api(
    ground_truth: LvisGroundTruth, detections: Detections, iou_type: str, max_dets: int
) -> tuple[np.ndarray, np.ndarray]:
    """Precision and recall, (A, T, K) each, by lvis-api."""
    if ground_truth.json_file is None or ground_truth.listed is None:
        raise ValueError(
            'engine="lvis" reads an LVIS-form json file, and this ground truth '
            f"{'is not from a file' if ground_truth.json_file is None else 'is of COCO form'}. "
            'Use engine="fast".'
        )
    if not len(detections):
        # lvis-api stops at an empty list with an IndexError; its definition gives zeros.
        return _fast(ground_truth, detections, iou_type, max_dets)
    try:
        from lvis import LVIS, LVISEval, LVISResults
    except ImportError as error:
        raise ImportError(
            'engine="lvis" needs lvis-api: pip install lvis. engine="fast" gives the same '
            "numbers without it."
        ) from error
    results = detections.to_json_list(ground_truth.category_ids)
    for result in results:
        # With a box in the result lvis-api takes its area, also where masks are evaluated.
        result.pop("bbox" if iou_type == "segm" else "segmentation", None)
    with _numpy_float():
        truth = LVIS(ground_truth.json_file)
        evaluation = LVISEval(truth, LVISResults(truth, results, max_dets=max_dets), iou_type)
        evaluation.evaluate()
        evaluation.accumulate()
    precision, recall = evaluation.eval["precision"], evaluation.eval["recall"]
    precision = np.moveaxis(precision.mean(axis=1), -1, 0)
    recall = np.moveaxis(recall, -1, 0)
    # Absent classes are -1 there.
    return np.where(recall < 0, np.nan, precision), np.where(recall < 0, np.nan, recall)


@contextlib.contextmanager
def _numpy_float() -> Iterator[None]:
    """Give numpy its old alias `float` back for a moment: lvis 0.5.3 is of 2020 and uses it."""
    if "float" in vars(np):
        yield
        return
    np.float = float
    try:
        yield
    finally:
        del np.float


ENGINES: dict[str, Callable[..., tuple[np.ndarray, np.ndarray]]] = {
    "fast": _fast,
    "lvis": _lvis_api,
}
