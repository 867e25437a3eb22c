"""Telling objects of unknown classes from known ones by a detector's logits, as VOS measures it.

A detector never saw the classes of the unknown images and still finds boxes there. Every box that
it is sure of in an image of the known set counts as known (ID), every such box in an image of the
unknown set as unknown (OOD), wherever it lies (Du et al., "VOS", ICLR 2022). A score of its logits,
without the background column, should be higher for the known ones.

That says nothing of objects that are not found at all: a detector that finds less in the unknown
images separates better. So AP on the known images, the numbers of boxes and images, and recall and
AP of the unknown objects are beside it.

Shapes: N images, D boxes, K foreground classes, S cascade stages.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import torch
from detectron2.structures import Boxes, Instances

from ..analysis import best_f1_threshold
from ..core import AffineCalibration
from ..errors import UserError
from ..lvis.detections import Detections
from ..lvis.evaluate import evaluate_lvis
from ..lvis.ground_truth import LvisGroundTruth
from ..lvis.matches import match_lvis
from ..modeling.topk_inference import fast_rcnn_inference_exact
from ..ood import OOD_SCORES, OODResult, evaluate_ood, score_logits
from .stored_outputs import StoredOutputs, sweep_stored
from .union import check_average, scaled

__all__ = [
    "BoxLogits",
    "KnownObjects",
    "UnknownObjectsResult",
    "evaluate_unknown_objects",
    "find_known_objects",
    "sure_boxes",
    "without_known_classes",
]

_NAME = "calibrated"


@dataclass(frozen=True, eq=False)
class BoxLogits:
    """The boxes of some images that a detector is sure of.

    Attributes:
        detections (Detections): D of them, with class and score.
        logits (ndarray): (D, K) float64, calibrated, without the background column; of a cascade
            the mean over its stages.
        num_images (int): N, with or without boxes.
    """

    detections: Detections
    logits: np.ndarray
    num_images: int

    @property
    def image_share(self) -> float:
        """Share of the images that have a box, in [0, 1]."""
        return len(np.unique(self.detections.image_id)) / max(self.num_images, 1)


@dataclass(frozen=True, eq=False)
class KnownObjects:
    """What `find_known_objects` returns.

    Attributes:
        threshold (float): a box counts from this score on.
        scores (Mapping): score of `OOD_SCORES` -> (D,) of the boxes that count.
        boxes (int): D.
        image_share (float): share of the images that have one, in [0, 1].
        ap (float): box AP of the known classes, of all detections.
    """

    threshold: float
    scores: Mapping[str, np.ndarray]
    boxes: int
    image_share: float
    ap: float


@dataclass(frozen=True)
class UnknownObjectsResult:
    """What `evaluate_unknown_objects` returns; shares in [0, 1], NaN where it is not known.

    Attributes:
        threshold (float): a box counts from this score on.
        scores (dict[str, OODResult]): score of `OOD_SCORES` -> how well it separates the boxes.
        known_boxes, unknown_boxes (int): boxes that count.
        known_images, unknown_images (float): share of the images that have one.
        known_ap (float): box AP of the known classes, of all detections.
        unknown_recall (float): share of the unknown objects that a box overlaps by half.
        unknown_ap (dict[str, float]): score -> AP at an IoU of 0.5 of the unknown objects as one
            class, the boxes ranked from the lowest score on.
    """

    threshold: float
    scores: Mapping[str, OODResult]
    known_boxes: int
    unknown_boxes: int
    known_images: float
    unknown_images: float
    known_ap: float
    unknown_recall: float = np.nan
    unknown_ap: Mapping[str, float] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Every number by its name, as json can write them but for NaN."""
        return asdict(self)


def evaluate_unknown_objects(
    known: StoredOutputs,
    unknown: StoredOutputs,
    ground_truth: LvisGroundTruth,
    unknown_ground_truth: LvisGroundTruth | None = None,
    *,
    calibrations: Sequence[AffineCalibration] | None = None,
    average: str = "probs",
    threshold: float | None = None,
    known_objects: KnownObjects | None = None,
) -> UnknownObjectsResult:
    """Measures how well a detector's logits tell unknown objects from known ones; no network.

    Args:
        known (StoredOutputs): of images of the known classes (``sweep(..., store=)``).
        unknown (StoredOutputs): of the same model on images without any known class.
        ground_truth (LvisGroundTruth): of the known images.
        unknown_ground_truth (LvisGroundTruth): of the unknown images, of any classes; None where
            nothing is annotated.
        calibrations (Sequence[AffineCalibration]): one for each stage; None for none.
        average (str): what a cascade averages over stages: "probs" or "logits".
        threshold (float): on the largest probability of a known class, in [0, 1]; None for the best
            F1 on the known images (`best_f1_threshold`).
        known_objects (KnownObjects): of `known` with these calibrations, for several sets of
            unknown images; None finds them, and only then `threshold` counts.

    Raises:
        ValueError: the stores are of models of different classes or of other images, or one has no
            box above the threshold.

    Example:
        >>> known = StoredOutputs.load("output/demo")  # doctest: +SKIP
        >>> unknown = StoredOutputs.load("output/pretrain")  # doctest: +SKIP
        >>> evaluate_unknown_objects(known, unknown, truth).scores["energy"].auroc  # doctest: +SKIP
    """
    _check_pair(known, unknown)
    options = {"calibrations": calibrations, "average": average}
    side = known_objects or find_known_objects(known, ground_truth, threshold=threshold, **options)
    stages = _stages(known, calibrations)
    other = _sure_boxes("unknown", unknown, stages, side.threshold, average)
    scored = {name: score_logits(name, other.logits) for name in OOD_SCORES}
    found = UnknownObjectsResult(
        threshold=side.threshold,
        scores={name: evaluate_ood(side.scores[name], scored[name]) for name in OOD_SCORES},
        known_boxes=side.boxes,
        unknown_boxes=len(other.logits),
        known_images=side.image_share,
        unknown_images=other.image_share,
        known_ap=side.ap,
    )
    if unknown_ground_truth is None or not len(unknown_ground_truth):
        return found
    ranked = {name: -values for name, values in scored.items()}
    return replace(found, **_of_objects(other.detections, unknown_ground_truth, ranked))


def find_known_objects(
    known: StoredOutputs,
    ground_truth: LvisGroundTruth,
    *,
    calibrations: Sequence[AffineCalibration] | None = None,
    average: str = "probs",
    threshold: float | None = None,
    detections: Detections | None = None,
) -> KnownObjects:
    """What `evaluate_unknown_objects` needs of the known images, for any number of unknown ones.

    Args:
        known, ground_truth, calibrations, average, threshold: as there.
        detections (Detections): of a sweep over the known images with these calibrations; None
            makes them of the stored outputs.

    Raises:
        ValueError: the store is of other images, or has no box above the threshold.
    """
    known.check(ground_truth)
    calibrations = _stages(known, calibrations)
    if detections is None:
        options = {"average": average, "ground_truth": ground_truth}
        detections = sweep_stored(known, {_NAME: calibrations}, **options).detections(_NAME)
    matches = match_lvis(ground_truth, detections)
    if threshold is None:
        threshold = best_f1_threshold(matches)
    boxes = _sure_boxes("known", known, calibrations, threshold, average)
    return KnownObjects(
        threshold=threshold,
        scores={name: score_logits(name, boxes.logits) for name in OOD_SCORES},
        boxes=len(boxes.logits),
        image_share=boxes.image_share,
        ap=matches.result().metrics["AP"],
    )


def _stages(
    known: StoredOutputs, calibrations: Sequence[AffineCalibration] | None
) -> Sequence[AffineCalibration]:
    if calibrations is not None:
        return calibrations
    return [AffineCalibration.identity(known.num_classes)] * known.num_stages


def _sure_boxes(
    name: str,
    stored: StoredOutputs,
    calibrations: Sequence[AffineCalibration],
    threshold: float,
    average: str,
) -> BoxLogits:
    """`sure_boxes`, at least one."""
    found = sure_boxes(stored, calibrations, threshold, average)
    if not len(found.logits):
        raise UserError(
            f"None of the {found.num_images} {name} images has a box with a score of "
            f"{threshold:.4f} or more, so that there is nothing to tell apart. Give a lower "
            "threshold, or look at the weights."
        )
    return found


@torch.no_grad()
def sure_boxes(
    stored: StoredOutputs,
    calibrations: Sequence[AffineCalibration],
    threshold: float,
    average: str = "probs",
) -> BoxLogits:
    """The detections of a store that reach a score, with the logits of their regions.

    A region counts once, with its best class, though it may be detected as several.

    Args:
        stored (StoredOutputs): of a data set.
        calibrations (Sequence[AffineCalibration]): one for each stage.
        threshold (float): on the probability of the best class, in [0, 1].
        average (str): what a cascade averages over stages: "probs" or "logits".

    Raises:
        ValueError: a threshold or an average that there is not, or boxes that were not stored.
    """
    check_average(average)
    if not 0 <= threshold <= 1:
        raise UserError(f"The threshold is {threshold}, expected a probability in [0, 1].")
    calibrations = [copy.deepcopy(each).cpu() for each in calibrations]
    found, logits, total = [Detections.empty()], [np.zeros((0, stored.num_classes))], 0
    for image, raw in stored.raw_outputs():
        (probs,) = raw.probabilities(calibrations, average)
        (instances,), (rows,) = fast_rcnn_inference_exact(
            raw.boxes, [probs], raw.image_sizes, *stored.selection
        )
        finite = raw.boxes[0].isfinite().all(dim=1) & probs.isfinite().all(dim=1)
        rows = finite.nonzero()[:, 0][rows]
        best = probs[rows, :-1].argmax(dim=1) == instances.pred_classes
        kept = (best & (instances.scores >= threshold)).nonzero()[:, 0]
        part = scaled(_at(instances, kept), image.image_id, image.output_size)
        position = rows[kept][torch.from_numpy(part.position)]
        calibrated = [c(z.double()) for c, z in zip(calibrations, raw.logits, strict=True)]
        logits.append((sum(calibrated) / len(calibrated))[position, :-1].numpy())
        found.append(part.detections)
        total += 1
    return BoxLogits(Detections.concatenate(found), np.concatenate(logits), total)


def without_known_classes(ground_truth: LvisGroundTruth, num_classes: int) -> LvisGroundTruth:
    """What a sweep of unknown images is given as ground truth, so that it computes no mask.

    Args:
        ground_truth (LvisGroundTruth): of the unknown images, of any classes.
        num_classes (int): K of the detector.

    Returns:
        LvisGroundTruth: the same images, in which nothing is known of any of K classes.
    """
    nothing = np.zeros(0, dtype=np.int64)
    return LvisGroundTruth(
        image_ids=ground_truth.image_ids,
        image_size=ground_truth.image_size,
        category_ids=np.arange(1, num_classes + 1),
        class_names=tuple(map(str, range(num_classes))),
        groups=None,
        image=nothing,
        category=nothing,
        box=np.zeros((0, 4)),
        area=np.zeros(0),
        ignore=nothing.astype(bool),
        crowd=nothing.astype(bool),
        annotation_id=nothing,
        listed=nothing,
        not_exhaustive=nothing,
    )


def _at(instances: Instances, kept: torch.Tensor) -> Instances:
    """Some detections, with the "union_index" that `scaled` carries along."""
    return Instances(
        instances.image_size,
        pred_boxes=Boxes(instances.pred_boxes.tensor[kept]),
        scores=instances.scores[kept],
        pred_classes=instances.pred_classes[kept],
        union_index=torch.arange(len(kept)),
    )


def _of_objects(
    boxes: Detections, ground_truth: LvisGroundTruth, scores: Mapping[str, np.ndarray]
) -> dict[str, Any]:
    """Recall and AP of all objects as one class, the boxes ranked by each score in turn."""
    objects = replace(
        ground_truth,
        category_ids=np.ones(1, dtype=np.int64),
        class_names=("object",),
        groups=None,
        category=np.zeros_like(ground_truth.category),
        listed=None,
        not_exhaustive=np.zeros(0, dtype=np.int64),
        masks=None,
        without_mask=None,
    )
    category, ap = np.zeros(len(boxes), dtype=np.int32), {}
    for name, score in scores.items():
        ranked = Detections(boxes.image_id, category, score, boxes.box)
        result = evaluate_lvis(objects, ranked, max_dets=-1)
        ap[name] = result.metrics["AP50"]
    return {"unknown_recall": float(result.recall[0, 0, 0]), "unknown_ap": ap}


def _check_pair(known: StoredOutputs, unknown: StoredOutputs) -> None:
    sizes = [(each.num_classes, each.num_stages) for each in (known, unknown)]
    prints = [
        [None if each is None else each.tolist() for each in stored.fingerprints]
        for stored in (known, unknown)
    ]
    if sizes[0] != sizes[1] or prints[0] != prints[1]:
        raise UserError(
            f"'{known.folder}' and '{unknown.folder}' are of different models ({sizes[0][0]} and "
            f"{sizes[1][0]} classes, {sizes[0][1]} and {sizes[1][1]} stages, or other classifier "
            "weights). Store the outputs of one model on both sets."
        )
    common = np.intersect1d(known.image_ids, unknown.image_ids)
    if known.digest == unknown.digest:
        raise UserError(
            f"'{known.folder}' and '{unknown.folder}' are of the same pass over {len(common)} "
            "images. Store the outputs on images without any known class."
        )
