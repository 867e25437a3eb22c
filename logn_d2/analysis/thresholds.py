"""The score threshold after a calibration: scores change scale, so the old threshold misleads.

A user who shows detections with a score above 0.5 sees a different number of them after a
calibration. `suggest_threshold` finds the threshold that keeps as many as before;
`ap_against_threshold` measures the cost of a threshold. Both use final detections. A threshold
inside the detector (MODEL.ROI_HEADS.SCORE_THRESH_TEST) has the same effect: suppression and the
limit per image process the best detections first, so lower scores do not affect them.

Shapes: D detections, K foreground classes, H thresholds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import UserError
from ..lvis.detections import Detections
from ..lvis.ground_truth import LvisGroundTruth
from ..lvis.matches import LvisMatches, match_lvis
from ..lvis.result import group_members
from .run_table import markdown

# Thresholds per block: enough to amortise the calls, few enough for the memory.
_BLOCK = 16


@dataclass(frozen=True)
class ThresholdSuggestion:
    """The old and the suggested threshold, for all classes or a group of them.

    Attributes:
        group (str): "all" or the name of the group.
        score (float): the old threshold.
        per_image (float): mean number of detections per image above it before the calibration.
        new_score (float): the threshold that keeps as many after the calibration.
        new_per_image (float): mean number that it keeps; smaller than before if there are too few
            (`new_score` is 0 then), different from before if scores tie.
        same_score_per_image (float): mean number that the old threshold would keep afterwards.
    """

    group: str
    score: float
    per_image: float
    new_score: float
    new_per_image: float
    same_score_per_image: float

    @staticmethod
    def table(suggestions: Sequence[ThresholdSuggestion]) -> str:
        """Return a Markdown table with one line per suggestion."""
        headers = [
            *("group", "old threshold", "per image", "per image after, unchanged"),
            *("new threshold", "per image after"),
        ]
        lines = [
            [
                *(each.group, f"{each.score:g}", f"{each.per_image:.2f}"),
                *(f"{each.same_score_per_image:.2f}", f"{each.new_score:.4g}"),
                f"{each.new_per_image:.2f}",
            ]
            for each in suggestions
        ]
        return markdown(lines, headers)


def suggest_threshold(
    before: Detections,
    after: Detections,
    score: float,
    *,
    num_images: int,
    groups: Sequence[str] | None = None,
    class_groups: Mapping[str, np.ndarray] | None = None,
) -> list[ThresholdSuggestion]:
    """Find the threshold that keeps as many detections after a calibration as before.

    A separate threshold for each group keeps each group's share of the detections, which undoes
    part of the calibration's effect; a single threshold over all classes does not.

    Args:
        before (Detections): uncalibrated, including low scores, such as those of an evaluation.
        after (Detections): calibrated, on the same images.
        score (float): the old threshold; detections with a larger score count.
        num_images (int): number of images, with or without detections.
        groups (Sequence[str] | None): (K,) group of each class.
        class_groups (Mapping | None): further groups: name -> indices of their classes.

    Returns:
        list[ThresholdSuggestion]: over all classes, then for each group.

    Raises:
        ValueError: no images, or fewer images than the detections have.

    Example:
        >>> def detect(*scores):
        ...     return Detections(range(4), [0] * 4, scores, np.zeros((4, 4)))
        >>> before, after = detect(0.9, 0.8, 0.6, 0.1), detect(0.6, 0.4, 0.3, 0.1)
        >>> suggestion, = suggest_threshold(before, after, 0.5, num_images=4)
        >>> suggestion.per_image, suggestion.new_score, suggestion.new_per_image
        (0.75, 0.2, 0.75)
    """
    seen = len(np.union1d(before.image_id, after.image_id))
    if num_images < max(seen, 1):
        raise UserError(
            f"num_images is {num_images}, expected at least {max(seen, 1)}: the detections cover "
            f"{seen} images."
        )
    members: dict[str, np.ndarray | None] = {"all": None}
    if groups is not None or class_groups:
        groups = None if groups is None else np.asarray(groups)
        members |= group_members(groups, class_groups or {})
    suggestions = []
    for name, classes in members.items():
        old, new = (
            each.score if classes is None else each.score[np.isin(each.category, classes)]
            for each in (before, after)
        )
        wanted, unchanged = (int(np.count_nonzero(each > score)) for each in (old, new))
        new_score = _threshold(new, wanted)
        suggestions.append(
            ThresholdSuggestion(
                group=name,
                score=float(score),
                per_image=wanted / num_images,
                new_score=new_score,
                new_per_image=int(np.count_nonzero(new > new_score)) / num_images,
                same_score_per_image=unchanged / num_images,
            )
        )
    return suggestions


def _threshold(scores: np.ndarray, wanted: int) -> float:
    """The threshold that keeps the number of scores nearest to `wanted`, the smaller of two."""
    if wanted >= len(scores):
        return 0.0
    levels, count = np.unique(scores, return_counts=True)
    levels, above = levels[::-1], np.cumsum(np.append(0, count[::-1]))
    # The number of the highest levels that lie above the threshold.
    number = int(np.argmin(np.abs(above - wanted)))
    if number == 0:
        return float(levels[0])
    low = levels[number] if number < len(levels) else 0.0
    # Midway between two levels, so that a rounded threshold keeps the same detections.
    middle = (low + levels[number - 1]) / 2
    return float(middle if middle < levels[number - 1] else low)


@dataclass(frozen=True, eq=False)
class ThresholdCurve:
    """Metrics and number of detections at each threshold.

    Attributes:
        iou_type (str): "bbox" or "segm".
        threshold (ndarray): (H,) scores; detections with a larger one are kept.
        per_image (ndarray): (H,) mean number of detections kept per image.
        metrics (Mapping[str, ndarray]): metric of `evaluate_lvis` -> (H,) in [0, 1].
    """

    iou_type: str
    threshold: np.ndarray
    per_image: np.ndarray
    metrics: Mapping[str, np.ndarray]

    def as_dict(self) -> dict[str, Any]:
        """Return all figures, JSON-serialisable except for NaN; metrics in percent."""
        return {
            "iou_type": self.iou_type,
            "threshold": self.threshold.tolist(),
            "per_image": self.per_image.tolist(),
            "metrics": {name: (100 * values).tolist() for name, values in self.metrics.items()},
        }


def ap_against_threshold(
    ground_truth: LvisGroundTruth,
    detections: Detections,
    thresholds: Sequence[float] | np.ndarray,
    *,
    iou_type: str = "bbox",
    matches: LvisMatches | None = None,
    max_dets: int | None = None,
    frequency_groups: Sequence[str] | None = None,
    class_groups: Mapping[str, Sequence[str | int]] | None = None,
) -> ThresholdCurve:
    """Evaluate the detections above each of several thresholds, with one matching and sorting.

    Args:
        ground_truth (LvisGroundTruth): the annotations.
        detections (Detections): detections in any of the images.
        thresholds (Sequence[float]): H scores.
        iou_type (str): "bbox" or "segm".
        matches (LvisMatches | None): the matches of these detections, if known. They save the
            matching and determine task, limit and groups.
        max_dets (int | None): number of best detections kept per image; negative keeps all. None
            means 300 in LVIS format and all in COCO format, whose rule has no such limit.
        frequency_groups (Sequence[str] | None): see `evaluate_lvis`.
        class_groups (Mapping | None): see `evaluate_lvis`.

    Returns:
        ThresholdCurve: all metrics of `evaluate_lvis` at each threshold.

    Raises:
        ValueError: the detections do not belong to the ground truth.
    """
    threshold = np.asarray(thresholds, dtype=np.float64).reshape(-1)
    if matches is None:
        matches = match_lvis(
            *(ground_truth, detections, iou_type),
            max_dets=max_dets,
            frequency_groups=frequency_groups,
            class_groups=class_groups,
        )
    blocks = (threshold[i : i + _BLOCK] for i in range(0, len(threshold), _BLOCK))
    metrics = [result.metrics for block in blocks for result in matches.results_above(block)]
    # Counted among all kept detections, also those that the federated rule drops: a user sees them.
    kept = np.sort(detections.score[detections.top_per_image_mask(matches.max_dets)])
    above = len(kept) - np.searchsorted(kept, threshold, side="right")
    names = metrics[0] if metrics else ()
    return ThresholdCurve(
        iou_type=matches.iou_type,
        threshold=threshold,
        per_image=above / max(ground_truth.num_images, 1),
        metrics={name: np.array([each[name] for each in metrics]) for name in names},
    )
