"""lvis-api itself, as an alternative engine for precision and recall.

Shapes: K foreground classes, A = 4 area ranges, T = 10 thresholds of IoU.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import numpy as np

from ..errors import UserError
from .detections import Detections
from .ground_truth import LvisGroundTruth
from .matches import match_lvis

ENGINES = ("fast", "lvis")
""""fast" is our array kernel (`match_lvis`), "lvis" is lvis-api."""


def lvis_api(
    ground_truth: LvisGroundTruth, detections: Detections, iou_type: str, max_dets: int
) -> tuple[np.ndarray, np.ndarray]:
    """Compute precision and recall, (A, T, K) each, by lvis-api."""
    if ground_truth.json_file is None or ground_truth.listed is None:
        raise UserError(
            'engine="lvis" reads a json file in LVIS format, and this ground truth '
            f"{'is not from a file' if ground_truth.json_file is None else 'has COCO format'}. "
            'Use engine="fast".'
        )
    if not len(detections):
        # lvis-api raises an IndexError for an empty list; by its definition all figures are zero.
        result = match_lvis(ground_truth, detections, iou_type).result()
        return result.precision, result.recall
    try:
        from lvis import LVIS, LVISEval, LVISResults
    except ImportError as error:
        raise ImportError(
            'engine="lvis" needs lvis-api: pip install lvis. engine="fast" gives the same '
            "numbers without it."
        ) from error
    results = detections.to_json_list(ground_truth.category_ids)
    for result in results:
        # lvis-api takes the area of a box in the result even when it evaluates masks.
        result.pop("bbox" if iou_type == "segm" else "segmentation", None)
    with _numpy_float():
        truth = LVIS(ground_truth.json_file)
        evaluation = LVISEval(truth, LVISResults(truth, results, max_dets=max_dets), iou_type)
        evaluation.evaluate()
        evaluation.accumulate()
    precision, recall = evaluation.eval["precision"], evaluation.eval["recall"]
    # lvis-api's order is (threshold, recall, class, area); ours has the area first and the mean
    # over recalls.
    precision = np.moveaxis(precision.mean(axis=1), -1, 0)
    recall = np.moveaxis(recall, -1, 0)
    # lvis-api marks classes without objects by -1.
    return np.where(recall < 0, np.nan, precision), np.where(recall < 0, np.nan, recall)


@contextlib.contextmanager
def _numpy_float() -> Iterator[None]:
    """Restore numpy's old alias `float` for a moment: lvis 0.5.3 (2020) still uses it."""
    if "float" in vars(np):
        yield
        return
    np.float = float
    try:
        yield
    finally:
        del np.float
