"""Error analysis: the cost in AP of each kind of error (TIDE), under LVIS's federated rule.

TIDE (Bolya et al., ECCV 2020) corrects one kind of error at a time and reports the gain in AP:

- `Cls`, `Loc`: of the detections that would match an object without a match, the best one matches
  it and the others are left out;
- `Both`, `Dupe`, `Bkg`: the detections are left out;
- `Miss`: objects that no corrected `Cls` or `Loc` would match are not counted;
- `FP`: all false positives are left out; `FN`: no unmatched object is counted.

For `Miss` and `FN` the recall is stretched: the detector is assumed to be as precise on missed
objects as on found ones. A class without any found object therefore keeps its AP of 0 under these
corrections; `not_found` counts such classes.

AP is defined as in `evaluate_lvis`: the mean over the classes that have objects. tidecv, the
authors' program, counts classes with detections but without objects as 0, lets detections of
unverified classes claim objects, and clips negative changes to 0; where none of this matters the
figures are equal.

Shapes: D detections that LVIS evaluates, K foreground classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..lvis.detections import Detections
from ..lvis.ground_truth import LvisGroundTruth
from ..lvis.matches import LvisMatches
from ..lvis.matching import MATCHED
from ..lvis.result import known_mean
from .outcomes import KINDS, UNLABELLED, DetectionOutcomes, label_detections
from .run_table import run_table

ERROR_TYPES = ("Cls", "Loc", "Both", "Dupe", "Bkg", "Miss", "FP", "FN")
"""The six kinds of error, then all false positives and all missed objects."""


@dataclass(frozen=True, eq=False)
class ErrorAnalysis:
    """AP of each class, as measured and with each kind of error corrected.

    Attributes:
        iou_type (str): "bbox" or "segm".
        foreground_iou (float): IoU at which a detection matches an object.
        background_iou (float): largest IoU of a detection on background.
        ap (ndarray): (K,) AP at `foreground_iou`, in [0, 1]; NaN for a class without objects.
        mended (Mapping[str, ndarray]): kind of error -> (K,) AP with it corrected.
        count (Mapping[str, ndarray]): kind of error -> (K,) int64, detections by their own class;
            objects for `Miss` and `FN`.
        num_gt (ndarray): (K,) int64, number of objects that count.
        members (Mapping[str, ndarray]): "all" and each group -> indices of its classes.
    """

    iou_type: str
    foreground_iou: float
    background_iou: float
    ap: np.ndarray
    mended: Mapping[str, np.ndarray]
    count: Mapping[str, np.ndarray]
    num_gt: np.ndarray
    members: Mapping[str, np.ndarray]

    def gain(self, error: str, group: str = "all") -> float:
        """Gain in AP of a group if a kind of error were corrected; NaN without objects."""
        # Class by class before the mean: a class without objects is NaN in both and drops out of
        # both.
        return self._mean(self.mended[error] - self.ap, group)

    def not_found(self, group: str = "all") -> int:
        """Count the classes of a group that have objects but no true positive."""
        # `FN` counts every object that no detection matched, so the rest was found.
        found = self.num_gt - self.count["FN"]
        missing = (found == 0) & (self.num_gt > 0)
        return int(np.count_nonzero(missing[self.members[group]]))

    def as_dict(self) -> dict[str, dict[str, Any]]:
        """Return all figures by group, JSON-serialisable except for NaN.

        Returns:
            dict: group -> "classes" (those with objects), "objects", "not_found", "AP" in percent,
            "gain" (kind of error -> points of AP) and "count" (kind of error -> number).
        """
        return {
            group: {
                "classes": int(np.count_nonzero(self.num_gt[members])),
                "objects": int(self.num_gt[members].sum()),
                "not_found": self.not_found(group),
                "AP": 100 * self._mean(self.ap, group),
                "gain": {error: 100 * self.gain(error, group) for error in ERROR_TYPES},
                "count": {error: int(self.count[error][members].sum()) for error in ERROR_TYPES},
            }
            for group, members in self.members.items()
        }

    def table(self) -> str:
        """Return a Markdown table, see `error_table`."""
        return error_table({"": self})

    def _mean(self, values: np.ndarray, group: str) -> float:
        return known_mean(values[self.members[group]])


def error_analysis(
    ground_truth: LvisGroundTruth,
    detections: Detections,
    *,
    iou_type: str = "bbox",
    foreground_iou: float = 0.5,
    background_iou: float = 0.1,
    outcomes: DetectionOutcomes | None = None,
    max_dets: int | None = None,
    frequency_groups: Sequence[str] | None = None,
    class_groups: Mapping[str, Sequence[str | int]] | None = None,
) -> ErrorAnalysis:
    """Compute the cost in AP of each kind of error, over all classes and for each group.

    Args:
        ground_truth (LvisGroundTruth): the annotations.
        detections (Detections): detections in any of the images, with masks for "segm".
        iou_type (str): "bbox" or "segm".
        foreground_iou (float): IoU at which a detection matches an object.
        background_iou (float): largest IoU of a detection on background.
        outcomes (DetectionOutcomes | None): the result of `label_detections` for these detections,
            if known. It saves the matching and determines task, IoU thresholds, limit and groups.
        max_dets (int | None): number of best detections kept per image; negative keeps all. None
            means 300 in LVIS format and all in COCO format, whose rule has no such limit.
        frequency_groups (Sequence[str] | None): (K,) group of each class; by default the ground
            truth's.
        class_groups (Mapping | None): further groups: name -> class names or category ids.

    Returns:
        ErrorAnalysis: AP, gains and counts.

    Raises:
        ValueError: thresholds out of order, or detections of another data set.

    Example:
        >>> truth = LvisGroundTruth.from_dict({
        ...     "images": [{"id": 7}],
        ...     "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
        ...     "annotations": [
        ...         {"id": i, "image_id": 7, "category_id": i, "bbox": [9 * i, 0, 4, 4], "area": 16}
        ...         for i in (1, 2)
        ...     ],
        ... })
        >>> found = Detections([7, 7], [0, 0], [0.9, 0.8], [[9, 0, 4, 4], [18, 0, 4, 4]])
        >>> analysis = error_analysis(truth, found)
        >>> round(analysis.gain("Cls"), 6), round(analysis.gain("Loc"), 6), analysis.not_found()
        (0.5, 0.0, 1)
    """
    outcomes = outcomes or label_detections(
        *(ground_truth, detections, iou_type),
        foreground_iou=foreground_iou,
        background_iou=background_iou,
        max_dets=max_dets,
        frequency_groups=frequency_groups,
        class_groups=class_groups,
    )
    return ErrorAnalysis(
        iou_type=outcomes.matches.iou_type,
        foreground_iou=outcomes.foreground_iou,
        background_iou=outcomes.background_iou,
        ap=_class_ap(outcomes),
        mended={error: _class_ap(outcomes, without=error) for error in ERROR_TYPES},
        count={error: _class_count(outcomes, error) for error in ERROR_TYPES},
        num_gt=_objects_per_class(outcomes, outcomes.matches.gt_counted[:, 0]),
        members=outcomes.members,
    )


def error_table(analyses: Mapping[str, ErrorAnalysis]) -> str:
    """Format AP, the gain from each correction, and classes not found at all as a table.

    Args:
        analyses (Mapping): name of a run, such as "uncalibrated" -> its analysis, all for the same
            data set.

    Returns:
        str: Markdown, in points of AP; one line per run in each group that has objects.
    """
    rows = {name: analysis.as_dict() for name, analysis in analyses.items()}

    def cells(group: str, name: str) -> list[str] | None:
        row = rows[name][group]
        if not row["classes"]:
            return None
        values = [row["AP"], *(row["gain"][error] for error in ERROR_TYPES)]
        return [*(f"{value:.1f}" for value in values), f"{row['not_found']} of {row['classes']}"]

    groups = list(next(iter(rows.values()), ()))
    return run_table(groups, list(rows), ["AP", *ERROR_TYPES, "not found"], cells)


def _class_ap(outcomes: DetectionOutcomes, without: str | None = None) -> np.ndarray:
    """AP of each class, (K,), with a kind of error corrected if given; NaN without objects."""
    matches, hit = outcomes.matches, outcomes.is_kind("TP")
    kept, category = outcomes.kind != UNLABELLED, matches.category
    to_find = matches.gt_counted[:, 0]
    # An object that is not counted shortens the recall axis, which is how TIDE removes a miss: it
    # can't add a detection, whose score nobody knows.
    if without == "Miss":
        left = to_find & ~outcomes.missed
    elif without == "FN":
        left = outcomes.found
    else:
        left = to_find
    if without == "FP":
        # Recall depends on the true positives alone, so only precision changes.
        kept = hit
    elif without in KINDS:
        error = outcomes.is_kind(without)
        # Without a target, the object has a match already or goes to a better detection: a second
        # match would be a duplicate, so the detection is left out instead.
        mended = error & (outcomes.target >= 0)
        kept, hit = kept & (mended | ~error), hit | mended
        category = category.copy()
        # A corrected `Cls` moves into the ranking of the object's class.
        category[mended] = matches.gt_category[outcomes.target[mended]]
    # Ranked again, but not matched again: TIDE corrects labels, not boxes.
    ap = _ranked_ap(matches, np.flatnonzero(kept), category, hit, left)
    # Without any found object, these corrections leave no object to count: AP stays 0, not NaN.
    nothing_left = np.isnan(ap) & (_objects_per_class(outcomes, to_find) > 0)
    return np.where(nothing_left, 0.0, ap)


def _ranked_ap(
    matches: LvisMatches,
    kept: np.ndarray,
    category: np.ndarray,
    hit: np.ndarray,
    to_find: np.ndarray,
) -> np.ndarray:
    """AP of each class, (K,).

    Args:
        matches (LvisMatches): matches of D detections and G objects.
        kept (ndarray): (L,) detections that count.
        category (ndarray): (D,) their classes.
        hit (ndarray): (D,) bool, true positives.
        to_find (ndarray): (G,) bool.
    """
    # lexsort is stable, and kept detections are sorted by their own class: among equal scores in an
    # image the lower original class ranks higher, also after a correction of the class.
    columns = (matches.image, -matches.score, category)
    order = kept[np.lexsort([column[kept] for column in columns])]
    rows = np.flatnonzero(hit[order])
    # `replace` keeps images, classes and groups, and the result is computed by the very code of
    # `evaluate_lvis`, so that both define AP alike.
    ranked = replace(
        matches,
        **{name: getattr(matches, name)[order] for name in ("index", "image", "score")},
        category=category[order],
        # One area range and one threshold.
        counted=np.ones((len(order), 1), dtype=bool),
        rows=rows,
        outcome=np.full((len(rows), 1, 1), MATCHED, dtype=np.int8),
        gt_counted=to_find[:, None],
    )
    return ranked.result().per_class_ap50


def _class_count(outcomes: DetectionOutcomes, error: str) -> np.ndarray:
    """Number of errors in each class, (K,) int64."""
    # `Miss` and `FN` count objects, all other kinds count detections by their own class.
    if error == "Miss":
        return _objects_per_class(outcomes, outcomes.missed)
    if error == "FN":
        return _objects_per_class(outcomes, outcomes.matches.gt_counted[:, 0] & ~outcomes.found)
    if error == "FP":
        # Unlabelled detections are no errors: nobody knows whether they are right.
        chosen = (outcomes.kind != UNLABELLED) & ~outcomes.is_kind("TP")
    else:
        chosen = outcomes.is_kind(error)
    num_classes = len(outcomes.matches.class_names)
    return np.bincount(outcomes.matches.category[chosen], minlength=num_classes)


def _objects_per_class(outcomes: DetectionOutcomes, chosen: np.ndarray) -> np.ndarray:
    """Number of some objects in each class, (K,) int64."""
    matches = outcomes.matches
    return np.bincount(matches.gt_category[chosen], minlength=len(matches.class_names))
