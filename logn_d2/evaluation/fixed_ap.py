"""Fixed AP: a limit for each class over the data set in place of one for each image.

With a limit of 300 detections an image, more detections of one class push out those of another,
and AP rewards a detector that gives no room to rare classes, or to classes that the image is not
annotated for. Fixed AP (Dave, Dollar, Ramanan, Kirillov, Girshick 2021, "Evaluating
Large-Vocabulary Object Detectors: The Devil is in the Details", arXiv 2102.01066) keeps the best
10,000 of each class instead. All else is as in `evaluate_lvis`.

The same paper asks whether scores of different classes can be compared at all: the *pooled* AP puts
the detections of all classes into one ranking, so calibration between classes counts.

The detector must give more than 300 detections an image, see `detection_limits`.
"""

from __future__ import annotations

import contextlib
import logging
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from torch import nn

from ..errors import UserError
from ..modeling.box_predictors import find_box_predictors
from .detections import Detections
from .lvis_ground_truth import LvisGroundTruth
from .lvis_matches import LvisMatches, match_lvis
from .lvis_result import LvisResult

__all__ = ["FixedApResult", "detection_limits", "evaluate_fixed_ap", "pooled_ap"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class FixedApResult:
    """What `evaluate_fixed_ap` returns.

    Args:
        result (LvisResult): fixed AP of each class and group.
        pooled (Mapping): "pooled" and "pooled-r" and so on -> AP of one ranking of all classes, or
            of those of a group, in [0, 1]; NaN without objects.
        short_classes (int): classes with fewer detections than the limit, 0 included. Where these
            are many because the detector stops earlier, fixed AP is underestimated.
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
        detections (Detections): as many of each image as the detector gives, see
            `detection_limits`.
        iou_type (str): "bbox" or "segm". The 2021 LVIS challenge has the same limit but another
            overlap, of boundaries, which is not here.
        max_dets_per_class (int): best detections of each class over all images that are kept,
            before those that the federated rule drops are left out.
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
        >>> round(fixed["AP"], 1), round(fixed["AP-pooled"], 1)  # a better dog is no dog
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
            "%d of %d classes have fewer than %d detections, the least %d. If the detector stopped "
            "early (MODEL.ROI_HEADS.SCORE_THRESH_TEST, TEST.DETECTIONS_PER_IMAGE), fixed AP is "
            "underestimated; see logn_d2.evaluation.detection_limits.",
            *(short, len(count), max_dets_per_class, count.min()),
        )
    return FixedApResult(matches.result(), pooled_ap(matches), short)


def pooled_ap(matches: LvisMatches) -> OrderedDict[str, float]:
    """Compute AP of one ranking of all classes, and of one for each group.

    Args:
        matches (LvisMatches): see `match_lvis`.

    Returns:
        OrderedDict: "pooled", "pooled-r", ... -> AP in [0, 1], NaN without objects.
    """
    found = OrderedDict(pooled=matches.pooled().result().metrics["AP"])
    for name, members in matches.members.items():
        found[f"pooled-{name}"] = matches.pooled(members).result().metrics["AP"]
    return found


@contextlib.contextmanager
def detection_limits(
    model: nn.Module, *, detections_per_image: int = 1000, score_threshold: float = 1e-7
) -> Iterator[nn.Module]:
    """Context manager in which a detector gives more detections than usual.

    Args:
        model (nn.Module): holds box predictors.
        detections_per_image (int): at most; negative gives all above the threshold. The time for
            masks and the size of what is kept grow with it.
        score_threshold (float): detections have a higher score.

    Yields:
        nn.Module: the model; its own limits are back afterwards.

    Raises:
        ValueError: the model has no box predictor, or the threshold is negative.

    Example:
        >>> with detection_limits(model, detections_per_image=1000):  # doctest: +SKIP
        ...     evaluator = LVISFormEvaluator("lvis_v1_val", max_dets=-1, max_dets_per_class=10_000)
        ...     inference_on_dataset(model, loader, evaluator)
    """
    if score_threshold < 0:
        raise UserError(f"score_threshold is {score_threshold}, expected a score of at least 0.")
    limits = {"test_score_thresh": score_threshold, "test_topk_per_image": detections_per_image}
    predictors = find_box_predictors(model)
    before = [{name: getattr(each, name) for name in limits} for each in predictors]
    try:
        for predictor in predictors:
            vars(predictor).update(limits)
        yield model
    finally:
        for predictor, own in zip(predictors, before, strict=True):
            vars(predictor).update(own)
