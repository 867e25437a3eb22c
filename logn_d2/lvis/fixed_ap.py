"""Fixed AP: a limit per class over the data set instead of a limit per image.

With a limit of 300 detections per image, detections of one class displace those of another, and AP
rewards a detector that leaves no room for rare classes or for classes that the image is not
annotated for. Fixed AP (Dave, Dollar, Ramanan, Kirillov, Girshick 2021, "Evaluating
Large-Vocabulary Object Detectors: The Devil is in the Details", arXiv 2102.01066) keeps the best
10,000 of each class instead. Everything else is as in `evaluate_lvis`.

The same paper asks whether scores of different classes are comparable: *pooled* AP ranks the
detections of all classes together, so calibration between classes counts.

The detector must return more than 300 detections per image, see
`logn_d2.evaluators.detection_limits`.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from .detections import Detections
from .ground_truth import LvisGroundTruth
from .matches import LvisMatches, match_lvis
from .result import LvisResult

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class FixedApResult:
    """Fixed AP and pooled AP.

    Args:
        result (LvisResult): fixed AP of each class and group.
        pooled (Mapping): "pooled", "pooled-r" and so on -> AP of one ranking of all classes, or of
            the classes of a group, in [0, 1]; NaN without objects.
        short_classes (int): number of classes with fewer detections than the limit, even 0. If
            there are many because the detector itself stops earlier, fixed AP is underestimated.
    """

    result: LvisResult
    pooled: Mapping[str, float]
    short_classes: int

    def as_dict(self) -> OrderedDict[str, float]:
        """Return `LvisResult.as_dict` and the pooled AP as "AP-pooled" and so on, in percent."""
        metrics = self.result.as_dict()
        metrics.update((f"AP-{name}", 100 * value) for name, value in self.pooled.items())
        return metrics


def evaluate_fixed_ap(
    ground_truth: LvisGroundTruth,
    detections: Detections,
    iou_type: str = "bbox",
    *,
    max_dets_per_class: int = 10_000,
    frequency_groups: Sequence[str] | None = None,
    class_groups: Mapping[str, Sequence[str | int]] | None = None,
) -> FixedApResult:
    """Compute fixed AP and pooled AP.

    Args:
        ground_truth (LvisGroundTruth): the annotations.
        detections (Detections): all that the detector returns for each image, see
            `detection_limits`.
        iou_type (str): "bbox" or "segm". The 2021 LVIS challenge uses the same limit but boundary
            IoU, which is not implemented here.
        max_dets_per_class (int): number of best detections kept per class over all images, before
            the federated rule drops any.
        frequency_groups (Sequence[str] | None): see `evaluate_lvis`.
        class_groups (Mapping | None): see `evaluate_lvis`.

    Returns:
        FixedApResult: per class, per group, overall and pooled.

    Raises:
        ValueError: as `evaluate_lvis`.

    Example:
        >>> truth = LvisGroundTruth.from_dict({
        ...     "images": [{"id": 7}],
        ...     "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
        ...     "annotations": [
        ...         {"id": 1, "image_id": 7, "category_id": 1, "bbox": [0, 0, 4, 4]}
        ...     ],
        ... })
        >>> found = Detections([7, 7], [0, 1], [0.5, 0.9], [[0, 0, 4, 4]] * 2)
        >>> fixed = evaluate_fixed_ap(truth, found).as_dict()
        >>> round(fixed["AP"], 1), round(fixed["AP-pooled"], 1)  # the best-ranked "dog" is not one
        (100.0, 50.0)
    """
    matches = match_lvis(
        ground_truth,
        detections,
        iou_type,
        max_dets=-1,
        max_dets_per_class=max_dets_per_class,
        frequency_groups=frequency_groups,
        class_groups=class_groups,
    )
    count = np.bincount(detections.category, minlength=ground_truth.num_classes)
    short = int(np.count_nonzero(count < max_dets_per_class))
    if short:
        logger.warning(
            "%d of %d classes have fewer than %d detections, the smallest number is %d. If the "
            "detector stopped early (MODEL.ROI_HEADS.SCORE_THRESH_TEST, "
            "TEST.DETECTIONS_PER_IMAGE), fixed AP is underestimated; see "
            "logn_d2.evaluators.detection_limits.",
            *(short, len(count), max_dets_per_class, count.min()),
        )
    return FixedApResult(matches.result(), pooled_ap(matches), short)


def pooled_ap(matches: LvisMatches) -> OrderedDict[str, float]:
    """Compute AP of one ranking of all classes, and of one ranking per group.

    Args:
        matches (LvisMatches): see `match_lvis`.

    Returns:
        OrderedDict: "pooled", "pooled-r", ... -> AP in [0, 1], NaN without objects.
    """
    found = OrderedDict(pooled=matches.pooled().result().metrics["AP"])
    for name, members in matches.members.items():
        found[f"pooled-{name}"] = matches.pooled(members).result().metrics["AP"]
    return found
