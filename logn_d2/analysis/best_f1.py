"""The score threshold at which F1 is best, by the rule of VOS (Du et al., ICLR 2022).

Two things differ on purpose from the released code (deeplearning-wisc/vos): classes without
objects, whose precision COCO gives as -1, and points where precision and recall are 0, whose F1 is
0 / 0, are left out. A set with many empty classes has no threshold otherwise.

Shapes: D detections, T thresholds of IoU, R = 101 recalls.
"""

from __future__ import annotations

import numpy as np

from ..errors import UserError
from ..lvis.accumulate import RECALLS
from ..lvis.matches import LvisMatches
from ..lvis.matching import IGNORED, MATCHED


def best_f1_threshold(matches: LvisMatches) -> float:
    """Find the mean over classes of the score at which F1 is best.

    Precision at 101 recalls, and the score at which each recall is reached, are averaged over the
    thresholds of IoU; of each class the recall with the highest F1 is taken. A recall that is not
    reached has precision and score 0.

    Args:
        matches (LvisMatches): matches of known classes, in the images that the threshold is for.
            Chosen on the very images that are then reported, it promises a little too much.

    Returns:
        float: in [0, 1], over the classes with a detection that is right.

    Raises:
        ValueError: no detection is a true positive.

    Example:
        >>> from logn_d2.lvis import Detections, LvisGroundTruth, match_lvis
        >>> truth = LvisGroundTruth.from_dict({
        ...     "images": [{"id": 1}], "categories": [{"id": 1, "name": "cat"}], "annotations": [
        ...         {"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 4, 4], "area": 16}]})
        >>> found = Detections([1, 1], [0, 0], [0.75, 0.5], [[0, 0, 4, 4], [9, 9, 4, 4]])
        >>> best_f1_threshold(match_lvis(truth, found))
        0.75
    """
    outcome = np.zeros((len(matches), matches.outcome.shape[2]), dtype=np.int8)
    outcome[matches.rows] = matches.outcome[:, 0]
    num_gt = matches.num_gt()[:, 0]
    scores = []
    classes = np.flatnonzero(num_gt)
    # Detections are sorted by class: a comparison for each class would read all of them each time.
    bounds = (np.searchsorted(matches.category, classes, side) for side in ("left", "right"))
    for k, first, last in zip(classes, *bounds, strict=True):
        mine = slice(first, last)
        hit = outcome[mine] == MATCHED
        false = (outcome[mine] != IGNORED) & ~hit & matches.counted[mine, :1]
        best = _best_of_class(hit, false, matches.score[mine], num_gt[k])
        scores += [best] if best > 0 else []
    if not scores:
        raise UserError(
            f"None of the {len(matches)} detections finds an object of its class, so no score has "
            "a best F1. Check the weights and the data set, or give a threshold."
        )
    return float(np.mean(scores))


def _best_of_class(hit: np.ndarray, false: np.ndarray, score: np.ndarray, num_gt: float) -> float:
    """The score of the highest F1 of one class; 0 where nothing is right.

    Args:
        hit (ndarray): (D, T) bool, the best score first.
        false (ndarray): (D, T) bool, false positives; what is neither is not counted.
        score (ndarray): (D,) falling.
        num_gt (float): objects to be found, above 0.
    """
    precision, reached = np.zeros((2, hit.shape[1], len(RECALLS)))
    for t in range(hit.shape[1]):
        right, wrong = np.cumsum(hit[:, t]), np.cumsum(false[:, t])
        rate = right / np.maximum(right + wrong, 1)
        rate = np.maximum.accumulate(rate[::-1])[::-1]
        place = np.searchsorted(right / num_gt, RECALLS)
        there = place < len(score)
        precision[t, there], reached[t, there] = rate[place[there]], score[place[there]]
    precision, reached = precision.mean(axis=0), reached.mean(axis=0)
    total = precision + RECALLS
    f1 = np.divide(2 * precision * RECALLS, total, out=np.zeros(len(total)), where=total > 0)
    return float(reached[f1.argmax()]) if f1.any() else 0.0
