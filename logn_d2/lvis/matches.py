"""Matches of detections and objects: the input of AP, its intervals and the error analysis.

Matching compares boxes and masks and takes most of an evaluation's time; the steps after it
(precision and recall, another grouping, a pooled ranking, a thousand resamples of the images) are
cheap. So matches are an object of their own.

Shapes: D detections that LVIS evaluates, M of them with a candidate object, G objects, N images, K
foreground classes, A = 4 area ranges, T = 10 thresholds of IoU.
"""

from __future__ import annotations

import functools
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from ..errors import check_choice
from .accumulate import Accumulator
from .checks import check_arguments, check_detections, check_groups
from .detections import Detections
from .ground_truth import LvisGroundTruth
from .matching import match
from .ranking import CANDIDATES, ignored_objects, object_shapes, rank_detections
from .result import LvisResult, class_members, group_members


@dataclass(frozen=True, eq=False)
class LvisMatches:
    """Detections by class in descending order of score, with their matches; see `match_lvis`.

    Args:
        iou_type (str): "bbox" or "segm".
        max_dets (int): detections kept per image; negative for all.
        image_ids (ndarray): (N,) ascending.
        index (ndarray): (D,) int64, positions in the detections given to `match_lvis`.
        image (ndarray): (D,) int64, positions in `image_ids`.
        category (ndarray): (D,) int64 class indices, ascending.
        score (ndarray): (D,) float64; among equal scores the lower image id comes first, then box
            and mask decide.
        counted (ndarray): (D, A) bool, whether a detection is a false positive if unmatched.
        rows (ndarray): (M,) the detections with a candidate, ascending.
        outcome (ndarray): (M, A, T) int8: 0 unmatched, `MATCHED`, or `IGNORED` (matched to an
            ignored object).
        gt_image (ndarray): (G,) int64, positions in `image_ids`.
        gt_category (ndarray): (G,) int64 class indices.
        gt_counted (ndarray): (G, A) bool, objects that count in a range, being not ignored there.
        class_names (tuple[str, ...]): K names.
        groups (ndarray | None): (K,) group of each class.
        class_groups (Mapping): further groups: name -> indices of their classes.
    """

    iou_type: str
    max_dets: int
    image_ids: np.ndarray
    index: np.ndarray
    image: np.ndarray
    category: np.ndarray
    score: np.ndarray
    counted: np.ndarray
    rows: np.ndarray
    outcome: np.ndarray
    gt_image: np.ndarray
    gt_category: np.ndarray
    gt_counted: np.ndarray
    class_names: tuple[str, ...]
    groups: np.ndarray | None = None
    class_groups: Mapping[str, np.ndarray] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.index)

    @property
    def members(self) -> OrderedDict[str, np.ndarray]:
        """Indices of the classes of each group, see `LvisResult.members`."""
        return group_members(self.groups, self.class_groups)

    @functools.cached_property
    def _accumulator(self) -> Accumulator:
        return Accumulator(self.category, self.counted, self.rows, self.outcome, self.image)

    def num_gt(self, weights: np.ndarray | None = None) -> np.ndarray:
        """Count the objects of each class, weighted by their images.

        Args:
            weights (ndarray | None): (N,) or (B, N) multiplicity of each image; None is 1 for all.

        Returns:
            ndarray: (K, A) or (B, K, A) float64.
        """
        weights = np.ones(len(self.image_ids)) if weights is None else weights
        # Sorted by class, one reduceat sums the objects of every class for all B sets of weights at
        # once.
        order = np.argsort(self.gt_category, kind="stable")
        counted = self.gt_counted[order]
        of_object = np.take(weights, self.gt_image[order], axis=-1)
        counts = np.zeros((*weights.shape[:-1], len(self.class_names), counted.shape[1]))
        # reduceat has no empty segments, so only classes with objects take part; the others stay 0.
        present, start = np.unique(self.gt_category[order], return_index=True)
        for area in range(counted.shape[1] if len(start) else 0):
            values = of_object * counted[:, area]
            counts[..., present, area] = np.add.reduceat(values, start, axis=-1)
        return counts

    def result(self, weights: np.ndarray | None = None) -> LvisResult:
        """Compute AP and recall; the first call sorts, later ones are quick.

        Args:
            weights (ndarray | None): (N,) multiplicity of each image, integers of at least 0: as if
                the data set held that many copies of it, with the copies of a detection adjacent in
                the ranking. None is 1 for all.

        Returns:
            LvisResult: per class, per group and overall. A class whose objects are all in images of
            weight 0 has no objects and is left out of the means.
        """
        if weights is not None:
            return self.results(np.asarray(weights)[None])[0]
        num_gt = self.num_gt()
        return self._result(*self._accumulator(num_gt), num_gt)

    def results(self, weights: np.ndarray) -> list[LvisResult]:
        """Compute AP and recall for several sets of weights at once, which is faster.

        Args:
            weights (ndarray): (B, N), see `result`.

        Returns:
            list[LvisResult]: B results.
        """
        # float64 once, here: the kernel multiplies by weights in several places and would convert
        # each time.
        weights = np.ascontiguousarray(weights, dtype=np.float64)
        num_gt = self.num_gt(weights)
        found = zip(*self._accumulator(num_gt, weights), num_gt, strict=True)
        return [self._result(*each) for each in found]

    def results_above(self, scores: np.ndarray) -> list[LvisResult]:
        """Compute AP and recall of the detections above each of several scores, sorting once.

        Better detections choose first, so dropping worse ones does not change their matches.

        Args:
            scores (ndarray): (B,); detections with a larger score count.

        Returns:
            list[LvisResult]: B results.
        """
        number = [
            np.bincount(self.category[self.score > score], minlength=len(self.class_names))
            for score in scores
        ]
        num_gt = self.num_gt()
        number = np.array(number, dtype=np.int64).reshape(-1, len(self.class_names))
        found = zip(*self._accumulator.of_first(num_gt, number), strict=True)
        return [self._result(*each, num_gt) for each in found]

    def _result(self, precision: np.ndarray, recall: np.ndarray, num_gt: np.ndarray) -> LvisResult:
        return LvisResult(
            iou_type=self.iou_type,
            max_dets=self.max_dets,
            precision=precision,
            recall=recall,
            num_gt=num_gt[:, 0].astype(np.int64),
            class_names=self.class_names,
            groups=self.groups,
            class_groups=self.class_groups,
        )

    def pooled(self, members: Sequence[int] | np.ndarray | None = None) -> LvisMatches:
        """Join classes into one, whose ranking contains the detections of all.

        AP per class does not depend on whether scores of different classes are comparable; AP of
        the pool does (Dave et al. 2021, arXiv 2102.01066, "AP pool"). Detections still match only
        objects of their own class. Among equal scores the lower image id comes first, then the
        lower class.

        Args:
            members (Sequence[int] | None): indices of the classes; None pools all.

        Returns:
            LvisMatches: with the one class "pooled".
        """
        chosen = np.ones(len(self.class_names), dtype=bool)
        if members is not None:
            chosen[:] = False
            chosen[np.asarray(members, dtype=np.int64)] = True
        kept = np.flatnonzero(chosen[self.category])
        kept = kept[np.lexsort([self.category[kept], self.image[kept], -self.score[kept]])]
        rank = np.full(len(self), -1)
        rank[kept] = np.arange(len(kept))
        # New positions of the detections with a candidate; -1 for those outside the pool.
        rows = rank[self.rows]
        order = np.argsort(rows, kind="stable")[np.count_nonzero(rows < 0) :]
        objects = np.flatnonzero(chosen[self.gt_category])
        return replace(
            self,
            **{name: getattr(self, name)[kept] for name in ("index", "image", "score", "counted")},
            category=np.zeros(len(kept), dtype=np.int64),
            rows=rows[order],
            outcome=self.outcome[order],
            gt_image=self.gt_image[objects],
            gt_category=np.zeros(len(objects), dtype=np.int64),
            gt_counted=self.gt_counted[objects],
            class_names=("pooled",),
            groups=None,
            class_groups={},
        )


def match_lvis(
    ground_truth: LvisGroundTruth,
    detections: Detections,
    iou_type: str = "bbox",
    *,
    max_dets: int | None = None,
    max_dets_per_class: int = -1,
    frequency_groups: Sequence[str] | None = None,
    class_groups: Mapping[str, Sequence[str | int]] | None = None,
) -> LvisMatches:
    """Match detections to objects; see `evaluate_lvis` for the arguments.

    Raises:
        ValueError: the detections do not belong to the ground truth or hold impossible values.

    Example:
        >>> truth = LvisGroundTruth.from_dict({
        ...     "images": [{"id": 7}], "categories": [{"id": 1, "name": "cat"}],
        ...     "annotations": [
        ...         {"id": 1, "image_id": 7, "category_id": 1, "bbox": [0, 0, 4, 4], "area": 16}
        ...     ],
        ... })
        >>> matches = match_lvis(truth, Detections([7], [0], [0.9], [[0, 0, 4, 3]]))
        >>> matches.outcome[0, 0].tolist()  # matched at thresholds up to 0.75
        [1, 1, 1, 1, 1, 1, 0, 0, 0, 0]
    """
    check_arguments(ground_truth, detections)
    check_choice("iou_type", iou_type, CANDIDATES)
    groups = ground_truth.groups if frequency_groups is None else np.asarray(frequency_groups)
    members = class_members(
        class_groups or {}, ground_truth.class_names, ground_truth.category_ids.tolist()
    )
    check_groups(groups, ground_truth.num_classes, members)
    check_detections(ground_truth, detections, iou_type)
    # After the checks, whose messages refer to the ground truth that the caller knows.
    ground_truth, max_dets = ground_truth.for_task(iou_type), ground_truth.limit(max_dets)
    ranked = rank_detections(ground_truth, detections, iou_type, max_dets, max_dets_per_class)
    ignored = ignored_objects(ground_truth)
    pairs = CANDIDATES[iou_type](
        *(ranked.key, ranked.shapes),
        *(ground_truth.keys(), object_shapes(ground_truth, iou_type), ground_truth.crowd),
    )
    rows, outcome, _ = match(*pairs, ranked.key, ignored, ground_truth.crowd)
    return LvisMatches(
        iou_type=iou_type,
        max_dets=max_dets,
        image_ids=ground_truth.image_ids,
        index=ranked.index,
        image=ranked.key // ground_truth.num_classes,
        category=ranked.category,
        score=detections.score[ranked.index],
        counted=ranked.counted,
        rows=rows,
        outcome=outcome,
        gt_image=ground_truth.image,
        gt_category=ground_truth.category,
        gt_counted=~ignored,
        class_names=ground_truth.class_names,
        groups=groups,
        class_groups=members,
    )
