"""Scores as probabilities: reliability and expected calibration error.

A detection with score 0.8 should be right in 8 of 10 cases, that is, a true positive at the
foreground IoU threshold. Detections are binned by score; in each bin the share of true positives
(precision) is compared with the mean score (confidence):

    ECE = sum over bins of  share of the detections * |precision - confidence|

(Naeini, Cooper, Hauskrecht, AAAI 2015; Guo et al., ICML 2017; for detectors Kueppers et al., CVPRW
2020.) The post-hoc calibrations of this project aim at ranking, not at this: a better AP may come
with a worse ECE, and scores can be corrected later without changing the ranking.

Under LVIS's federated rule a detection has a label only if its class is verified for its image; see
`outcomes`. All figures here cover only labelled detections, and verified classes are present far
more often than others: precision over all classes and images would be lower. If a class is not
exhaustively annotated in an image, only true positives have a label; counting only these would
select detections by their outcome, so no detection of such a pair counts.

Shapes: K foreground classes, B bins of scores.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import UserError
from ..lvis.checks import check_arguments
from ..lvis.detections import Detections
from ..lvis.ground_truth import LvisGroundTruth
from .outcomes import UNLABELLED, DetectionOutcomes, label_detections
from .run_table import run_table


@dataclass(frozen=True, eq=False)
class CalibrationQuality:
    """Detections, true positives and scores by class and bin; see `calibration_quality`.

    Attributes:
        iou_type (str): "bbox" or "segm".
        edges (ndarray): (B + 1,) edges of the bins, 0 to 1. A bin includes its upper edge.
        count (ndarray): (K, B) int64, labelled detections.
        hits (ndarray): (K, B) int64, true positives.
        background (ndarray): (K, B) int64, false positives that overlap no annotated object.
        score_sum (ndarray): (K, B) float64, sum of the scores of labelled detections.
        unlabelled (ndarray): (K,) int64, detections left out: their class is not verified for
            their image or not exhaustively annotated there, or they matched an ignored object.
        members (Mapping[str, ndarray]): "all" and each group -> indices of its classes.
    """

    iou_type: str
    edges: np.ndarray
    count: np.ndarray
    hits: np.ndarray
    background: np.ndarray
    score_sum: np.ndarray
    unlabelled: np.ndarray
    members: Mapping[str, np.ndarray]

    def histogram(self, name: str, group: str = "all") -> np.ndarray:
        """Detections of a group in each bin, (B,) int64.

        Args:
            name (str): "count", "hits" (true positives), "false" (false positives), "background"
                (those that overlap no annotated object) or "objects" (those that do overlap one,
                right or wrong).
            group (str): a name in `members`.
        """
        # Classes are added before anything is divided, so that a group's figures are those of its
        # detections pooled; a mean over classes would mostly show the noise of classes with few
        # detections.
        count, hits, background = (
            column[self.members[group]].sum(axis=0)
            for column in (self.count, self.hits, self.background)
        )
        columns = {"count": count, "hits": hits, "background": background}
        return {**columns, "false": count - hits, "objects": count - background}[name]

    def reliability(self, group: str = "all") -> tuple[np.ndarray, np.ndarray]:
        """Confidence and precision of each bin, (B,) each in [0, 1]; NaN for empty bins."""
        count = self.histogram("count", group)
        sums = self.score_sum[self.members[group]].sum(axis=0), self.histogram("hits", group)
        # NaN and not 0: an empty bin has no precision, and a figure must not show one.
        empty = np.full(len(count), np.nan)
        # The mean score of a bin, not its centre: scores crowd near 0, far from the centre of the
        # first bin.
        confidence, precision = (
            np.divide(each, count, out=empty.copy(), where=count > 0) for each in sums
        )
        return confidence, precision

    def ece(self, group: str = "all") -> float:
        """Expected calibration error of a group's detections, in [0, 1]; NaN without any."""
        confidence, precision = self.reliability(group)
        return self._mean(np.abs(confidence - precision), group)

    def overconfidence(self, group: str = "all") -> float:
        """Mean score minus precision, in [-1, 1]; NaN without detections."""
        confidence, precision = self.reliability(group)
        return self._mean(confidence - precision, group)

    def as_dict(self) -> dict[str, dict[str, Any]]:
        """Return all figures by group, JSON-serialisable except for NaN.

        Returns:
            dict: group -> "labelled" and "unlabelled" detections, "precision", "score" (mean),
            "ECE", "overconfidence", the share of labelled detections on "background"; and a list
            of "bins" with "low", "high", "count", "hits", "background", "confidence", "precision".
        """
        return {group: self._group(group) for group in self.members}

    def table(self) -> str:
        """Return a table in Markdown: see `calibration_table`."""
        return calibration_table({"": self})

    def _group(self, group: str) -> dict[str, Any]:
        columns = {name: self.histogram(name, group) for name in ("count", "hits", "background")}
        total = {name: int(column.sum()) for name, column in columns.items()}
        confidence, precision = self.reliability(group)
        columns = {"low": self.edges[:-1], "high": self.edges[1:], **columns}
        columns |= {"confidence": confidence, "precision": precision}
        rows = zip(*(column.tolist() for column in columns.values()), strict=True)
        # Dividing by NaN gives NaN without a warning, which is the result for a group without
        # detections.
        number = total["count"] or math.nan
        return {
            "labelled": total["count"],
            "unlabelled": int(self.unlabelled[self.members[group]].sum()),
            "precision": total["hits"] / number,
            "score": float(self.score_sum[self.members[group]].sum()) / number,
            "ECE": self.ece(group),
            "overconfidence": self.overconfidence(group),
            "background": total["background"] / number,
            "bins": [dict(zip(columns, row, strict=True)) for row in rows],
        }

    def _mean(self, values: np.ndarray, group: str) -> float:
        """Mean of (B,) values over the detections in the bins."""
        count = self.histogram("count", group)
        # The NaN of an empty bin has weight 0, but 0 * NaN would still be NaN.
        return float((np.nan_to_num(values) * count).sum() / (count.sum() or math.nan))


def calibration_quality(
    ground_truth: LvisGroundTruth,
    detections: Detections,
    *,
    iou_type: str = "bbox",
    iou_threshold: float = 0.5,
    num_bins: int = 15,
    min_score: float = 0.0,
    outcomes: DetectionOutcomes | None = None,
    max_dets: int | None = None,
    frequency_groups: Sequence[str] | None = None,
    class_groups: Mapping[str, Sequence[str | int]] | None = None,
) -> CalibrationQuality:
    """Compare scores with precision, over all classes and in each group of classes.

    Args:
        ground_truth (LvisGroundTruth): the annotations.
        detections (Detections): detections in any of the images; scores in [0, 1].
        iou_type (str): "bbox" or "segm".
        iou_threshold (float): IoU at which a detection matches an object.
        num_bins (int): B, all of the same width.
        min_score (float): leave out detections with a lower score. If they are kept, the many
            detections with scores near 0 dominate ECE.
        outcomes (DetectionOutcomes | None): the result of `label_detections` for these detections,
            if known. It saves the matching and determines task, IoU thresholds, limit and groups.
        max_dets (int | None): number of best detections kept per image; negative keeps all. None
            means 300 in LVIS format and all in COCO format, whose rule has no such limit.
        frequency_groups (Sequence[str] | None): (K,) group of each class; by default the ground
            truth's.
        class_groups (Mapping | None): further groups: name -> class names or category ids.

    Returns:
        CalibrationQuality: by class, bin and group.

    Raises:
        ValueError: scores outside [0, 1], no bins, or detections of another data set.

    Example:
        >>> truth = LvisGroundTruth.from_dict({
        ...     "images": [{"id": 7}], "categories": [{"id": 1, "name": "cat"}],
        ...     "annotations": [
        ...         {"id": 1, "image_id": 7, "category_id": 1, "bbox": [0, 0, 4, 4], "area": 16}
        ...     ],
        ... })
        >>> found = Detections([7, 7], [0, 0], [0.9, 0.8], [[0, 0, 4, 4], [5, 5, 4, 4]])
        >>> quality = calibration_quality(truth, found, num_bins=2)
        >>> round(quality.ece(), 3), quality.histogram("hits").tolist()
        (0.35, [0, 1])
    """
    check_arguments(ground_truth, detections)
    _check_scores(detections.score)
    if num_bins < 1:
        raise UserError(f"num_bins is {num_bins}, expected at least 1.")
    outcomes = outcomes or label_detections(
        *(ground_truth, detections, iou_type),
        foreground_iou=iou_threshold,
        # TIDE's 0.1, unless the caller's own threshold is lower still.
        background_iou=min(0.1, iou_threshold),
        max_dets=max_dets,
        frequency_groups=frequency_groups,
        class_groups=class_groups,
    )
    matches = outcomes.matches
    edges = np.linspace(0, 1, num_bins + 1)
    # A bin includes its upper edge, as in Guo et al.; a score of exactly 0 joins the first bin.
    bins = np.maximum(np.searchsorted(edges, matches.score) - 1, 0)
    labelled = (outcomes.kind != UNLABELLED) & (matches.score >= min_score)
    # In pairs that are not exhaustive only true positives are labelled: precision would always be
    # 1.
    keys = matches.image * ground_truth.num_classes + matches.category
    labelled &= ~ground_truth.for_task(matches.iou_type).is_not_exhaustive(keys)
    shape = ground_truth.num_classes, num_bins
    # One flat index, so that a single bincount fills all (class, bin) cells.
    place = matches.category * num_bins + bins

    def total(chosen: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
        weights = None if weights is None else weights[chosen]
        return np.bincount(place[chosen], weights, shape[0] * shape[1]).reshape(shape)

    count = total(labelled)
    # `matches` lacks the detections that the federated rule dropped, so those left out are counted
    # from the detections themselves, under the same limit.
    kept = detections.top_per_image_mask(matches.max_dets) & (detections.score >= min_score)
    return CalibrationQuality(
        iou_type=matches.iou_type,
        edges=edges,
        count=count,
        hits=total(labelled & outcomes.is_kind("TP")),
        background=total(labelled & outcomes.is_kind("Bkg")),
        score_sum=total(labelled, matches.score),
        unlabelled=np.bincount(detections.category[kept], minlength=shape[0]) - count.sum(axis=1),
        members=outcomes.members,
    )


def calibration_table(qualities: Mapping[str, CalibrationQuality]) -> str:
    """Format ECE and related figures of several runs as a Markdown table, in percent.

    Args:
        qualities (Mapping): name of a run, such as "uncalibrated" -> its quality, all for the same
            data set.

    Returns:
        str: Markdown; one line per run in each group that has labelled detections.
    """
    rows = {name: quality.as_dict() for name, quality in qualities.items()}

    def cells(group: str, name: str) -> list[str] | None:
        row = rows[name][group]
        if not row["labelled"]:
            return None
        shares = [row[key] for key in ("precision", "score", "ECE", "background")]
        counts = [str(row[key]) for key in ("labelled", "unlabelled")]
        return [*counts, *(f"{100 * share:.1f}" for share in shares)]

    headers = ["labelled", "left out", "precision", "mean score", "ECE", "on background"]
    return run_table(list(next(iter(rows.values()), ())), list(rows), headers, cells)


def _check_scores(score: np.ndarray) -> None:
    outside = np.flatnonzero((score < 0) | (score > 1))
    if len(outside):
        raise UserError(
            f"{len(outside)} of {len(score)} detections have a score outside [0, 1], the first is "
            f"{score[outside[0]]}. Only probabilities can be compared with precision: pass the "
            f"detector's scores, not logits."
        )
