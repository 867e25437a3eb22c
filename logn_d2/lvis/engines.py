"""lvis-api itself, as another way to the same precision and recall.

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

__all__ = ["ENGINES", "lvis_api"]

ENGINES = ("fast", "lvis")
"""Our array kernel (`match_lvis`), and `lvis_api`."""


def lvis_api(
    ground_truth: LvisGroundTruth, detections: Detections, iou_type: str, max_dets: int
) -> tuple[np.ndarray, np.ndarray]:
    """Compute precision and recall, (A, T, K) each, by lvis-api."""
    if ground_truth.json_file is None or ground_truth.listed is None:
        raise UserError(
            'engine="lvis" reads an LVIS-form json file, and this ground truth '
            f"{'is not from a file' if ground_truth.json_file is None else 'is of COCO form'}. "
            'Use engine="fast".'
        )
    if not len(detections):
        # lvis-api stops at an empty list with an IndexError; its definition gives zeros.
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
