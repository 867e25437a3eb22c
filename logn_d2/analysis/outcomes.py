"""Labels of detections: true positive, one of TIDE's kinds of error, or unlabelled under LVIS.

The kinds are those of Bolya, Foley, Hays, Hoffman (TIDE, ECCV 2020; code dbolya/tide). A false
positive is classified by its largest overlap with the objects of its image, in this order:

- `Loc`: right class, overlap from the background threshold to the foreground one;
- `Cls`: another class, overlap at least the foreground threshold;
- `Dupe`: right class and well placed, but a better detection has already matched the object;
- `Bkg`: at most the background threshold with every object;
- `Both`: all others, which have the wrong class and are badly placed.

LVIS is federated, and so are these labels: a detection is labelled only if its class is verified
for its image (annotated there, or known to be absent). Detections of unverified classes, unmatched
detections of classes that are not exhaustively annotated, and detections of ignored objects have no
label. Objects of unverified classes are not annotated, so a detection of a verified class that lies
on one of them counts as `Bkg`.

Shapes: D detections that LVIS evaluates, G objects, P pairs of detection and object, K foreground
classes.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ..errors import UserError
from ..lvis.detections import Detections
from ..lvis.ground_truth import LvisGroundTruth
from ..lvis.matches import LvisMatches, match_lvis
from ..lvis.matching import MATCHED, match
from ..lvis.ranking import CANDIDATES, some_shapes

KINDS = ("TP", "Cls", "Loc", "Both", "Dupe", "Bkg")
"""Labels of detections; a label's number is its position here."""

UNLABELLED = -1
_TP, _CLS, _LOC, _BOTH, _DUPE, _BKG = range(len(KINDS))


@dataclass(frozen=True, eq=False)
class DetectionOutcomes:
    """Matches with a label for each detection; see `label_detections`.

    Attributes:
        matches (LvisMatches): the detections, by class in descending order of score.
        kind (ndarray): (D,) int8, number in `KINDS`, or `UNLABELLED`.
        target (ndarray): (D,) int64, the object that a `Cls` or `Loc` would match once corrected;
            -1 for other kinds, for objects that have a match, and for objects that a better
            detection would match. As in tidecv, `Cls` and `Loc` also compete with each other for an
            object.
        found (ndarray): (G,) bool, objects matched by a detection.
        missed (ndarray): (G,) bool, objects that count and that neither a detection nor a corrected
            one matches.
        foreground_iou (float): IoU at which a detection matches an object.
        background_iou (float): largest IoU of a detection on background.
    """

    matches: LvisMatches
    kind: np.ndarray
    target: np.ndarray
    found: np.ndarray
    missed: np.ndarray
    foreground_iou: float = 0.5
    background_iou: float = 0.1

    @functools.cached_property
    def members(self) -> dict[str, np.ndarray]:
        """Indices of the classes of "all" and of each group."""
        return {"all": np.arange(len(self.matches.class_names)), **self.matches.members}

    def is_kind(self, name: str) -> np.ndarray:
        """Mark the detections of a kind, (D,) bool."""
        return self.kind == KINDS.index(name)


def label_detections(
    ground_truth: LvisGroundTruth,
    detections: Detections,
    iou_type: str = "bbox",
    *,
    foreground_iou: float = 0.5,
    background_iou: float = 0.1,
    matches: LvisMatches | None = None,
    max_dets: int | None = None,
    frequency_groups: Sequence[str] | None = None,
    class_groups: Mapping[str, Sequence[str | int]] | None = None,
) -> DetectionOutcomes:
    """Label each detection.

    Args:
        ground_truth (LvisGroundTruth): the annotations.
        detections (Detections): detections in any of its images.
        iou_type (str): "bbox" or "segm".
        foreground_iou (float): IoU at which a detection matches an object.
        background_iou (float): largest IoU of a detection on background.
        matches (LvisMatches | None): the matches of these detections, if known. They save the
            matching and determine task, limit and groups.
        max_dets (int | None): number of best detections kept per image; negative keeps all. None
            means 300 in LVIS format and all in COCO format, whose rule has no such limit.
        frequency_groups (Sequence[str] | None): see `evaluate_lvis`.
        class_groups (Mapping | None): see `evaluate_lvis`.

    Returns:
        DetectionOutcomes: labels of the detections that LVIS evaluates.

    Raises:
        ValueError: thresholds out of order, a group named "all", or detections of another data
            set.

    Example:
        >>> truth = LvisGroundTruth.from_dict({
        ...     "images": [{"id": 7}], "categories": [{"id": 1, "name": "cat"}],
        ...     "annotations": [
        ...         {"id": 1, "image_id": 7, "category_id": 1, "bbox": [0, 0, 4, 4], "area": 16}
        ...     ],
        ... })
        >>> boxes = [[0, 0, 4, 3], [0, 0, 4, 4], [0, 0, 4, 1], [5, 5, 4, 4]]
        >>> labelled = label_detections(truth, Detections([7] * 4, [0] * 4, [4, 3, 2, 1], boxes))
        >>> [KINDS[kind] for kind in labelled.kind]
        ['TP', 'Dupe', 'Loc', 'Bkg']
    """
    if not 0 < background_iou <= foreground_iou <= 1:
        raise UserError(
            f"background_iou is {background_iou} and foreground_iou {foreground_iou}, expected "
            "0 < background_iou <= foreground_iou <= 1."
        )
    if matches is None:
        matches = match_lvis(
            *(ground_truth, detections, iou_type),
            max_dets=max_dets,
            frequency_groups=frequency_groups,
            class_groups=class_groups,
        )
    # For masks, objects without one do not exist; `matches` numbers the remaining ones.
    ground_truth = ground_truth.for_task(matches.iou_type)
    # `members` would overwrite one of the two without a word.
    if "all" in matches.members:
        raise UserError('A group is named "all", which stands for all classes. Rename it.')
    outcome, found = _match(ground_truth, detections, matches, foreground_iou)
    # Unlabelled until shown to be a false positive: this also covers detections of ignored objects
    # and those that the federated rule spares.
    kind = np.where(outcome == MATCHED, _TP, UNLABELLED).astype(np.int8)
    # Column 0 is the area range "all", the only one with labels.
    false = np.flatnonzero((outcome == 0) & matches.counted[:, 0])
    objects = np.flatnonzero(matches.gt_counted[:, 0])
    # Across classes, which `match_lvis` never compares, and therefore only for false positives:
    # pairs over all classes are the largest arrays of the analysis.
    pairs = _pairs(ground_truth, detections, matches, false, objects, background_iou)
    kind[false], nearest = _error_kinds(
        matches.category[false], ground_truth.category, *pairs, foreground_iou, background_iou
    )
    target = np.full(len(matches), -1)
    target[false] = _claims(nearest, found, matches.score[false])
    missed = matches.gt_counted[:, 0] & ~found
    # TIDE charges such an object to the `Cls` or `Loc` that would match it, and only the rest to
    # `Miss`.
    missed[target[target >= 0]] = False
    return DetectionOutcomes(matches, kind, target, found, missed, foreground_iou, background_iou)


def _match(
    ground_truth: LvisGroundTruth,
    detections: Detections,
    matches: LvisMatches,
    foreground_iou: float,
) -> tuple[np.ndarray, np.ndarray]:
    """Outcome of each detection, (D,) int8, and the matched objects, (G,) bool.

    `matches` does not say which objects were matched, and covers only LVIS's thresholds.
    """
    # All objects take part, also those to be ignored: a detection that matches one must not count
    # as false.
    everything = np.arange(len(matches)), np.arange(len(ground_truth))
    pairs = _pairs(
        ground_truth, detections, matches, *everything, foreground_iou, of_one_class=True
    )
    keys = matches.image * ground_truth.num_classes + matches.category
    to_find, thresholds = matches.gt_counted[:, :1], np.array([foreground_iou])
    rows, reached, taken = match(*pairs, keys, ~to_find, ground_truth.crowd, thresholds)
    outcome = np.zeros(len(matches), dtype=np.int8)
    outcome[rows] = reached[:, 0, 0]
    # A matched object that is ignored is not found: it does not count towards recall.
    return outcome, taken[:, 0, 0] & to_find[:, 0]


def _pairs(
    ground_truth: LvisGroundTruth,
    detections: Detections,
    matches: LvisMatches,
    rows: np.ndarray,
    objects: np.ndarray,
    min_iou: float,
    of_one_class: bool = False,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pairs of given detections and objects in the same image whose overlap reaches `min_iou`.

    Returns:
        tuple: (P,) positions in `rows`, ascending; (P,) objects; (P,) IoU.
    """
    det_key, gt_key = matches.image[rows], ground_truth.image[objects]
    if of_one_class:
        # Image and class in one int64, which the search for pairs compares in a single step.
        det_key = det_key * ground_truth.num_classes + matches.category[rows]
        gt_key = gt_key * ground_truth.num_classes + ground_truth.category[objects]
    index, gt_crowd = matches.index[rows], ground_truth.crowd[objects]
    det_shapes = some_shapes(detections, matches.iou_type, index)
    gt_shapes = some_shapes(ground_truth, matches.iou_type, objects)
    find = CANDIDATES[matches.iou_type]
    det, gt, iou = find(det_key, det_shapes, gt_key, gt_shapes, gt_crowd, min_iou)
    # The search numbers the given objects; callers need positions among all of them.
    return det, objects[gt], iou


def _error_kinds(
    category: np.ndarray,
    gt_category: np.ndarray,
    det: np.ndarray,
    gt: np.ndarray,
    iou: np.ndarray,
    foreground_iou: float,
    background_iou: float,
) -> tuple[np.ndarray, np.ndarray]:
    """Kinds of F false positives, and the nearest object of each `Cls` or `Loc`, else -1.

    Args:
        category (ndarray): (F,) class of each false positive.
        gt_category (ndarray): (G,) class of each object.
        det (ndarray): (P,) false positives.
        gt (ndarray): (P,) objects.
        iou (ndarray): (P,), at least `background_iou`.
        foreground_iou (float): see `label_detections`.
        background_iou (float): see `label_detections`.
    """
    # The nearest object of the own class and the nearest of the others are kept apart: the kinds
    # depend on both.
    same = category[det] == gt_category[gt]
    own, own_object = _nearest(len(category), det[same], gt[same], iou[same])
    other, other_object = _nearest(len(category), det[~same], gt[~same], iou[~same])
    # The order of the conditions decides where several hold, as in tidecv.
    conditions = {
        _LOC: (own >= background_iou) & (own <= foreground_iou),
        _CLS: other >= foreground_iou,
        _DUPE: own >= foreground_iou,
        _BKG: np.maximum(own, other) <= background_iou,
    }
    kind = np.select(list(conditions.values()), list(conditions), _BOTH).astype(np.int8)
    nearest = np.select([kind == _LOC, kind == _CLS], [own_object, other_object], -1)
    return kind, nearest


def _nearest(
    number: int, det: np.ndarray, gt: np.ndarray, iou: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Largest IoU of each detection (else 0) and its first object (else -1), (number,) each."""
    # Among equal overlaps the first object wins, as argmax does in tidecv.
    order = np.lexsort([gt, -iou, det])
    det, gt, iou = det[order], gt[order], iou[order]
    first = np.flatnonzero(np.diff(det, prepend=-1))
    largest, objects = np.zeros(number), np.full(number, -1)
    largest[det[first]], objects[det[first]] = iou[first], gt[first]
    return largest, objects


def _claims(nearest: np.ndarray, found: np.ndarray, score: np.ndarray) -> np.ndarray:
    """Assign each unmatched object to the best of the detections nearest to it.

    Args:
        nearest (ndarray): (F,) object of each false positive, or -1.
        found (ndarray): (G,) bool.
        score (ndarray): (F,); among equal scores the first wins, which has the lower class.

    Returns:
        ndarray: (F,) object, or -1.
    """
    # The appended True is read by nearest = -1, which claims nothing.
    claiming = np.flatnonzero((nearest >= 0) & ~np.append(found, True)[nearest])
    order = claiming[np.lexsort([-score[claiming], nearest[claiming]])]
    winners = order[np.flatnonzero(np.diff(nearest[order], prepend=-1))]
    target = np.full(len(nearest), -1)
    target[winners] = nearest[winners]
    return target
