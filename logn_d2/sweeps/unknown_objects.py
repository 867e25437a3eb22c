"""Separating objects of unknown classes from known ones by a detector's logits, as in VOS.

A detector never saw the classes of the unknown images and still finds boxes there. Every confident
box in an image of the known set counts as known (ID), every one in an image of the unknown set as
unknown (OOD), wherever it lies (Du et al., "VOS", ICLR 2022). A score of the box's logits, without
the background column, should be higher for known boxes.

This measure ignores objects that are not found at all: a detector with fewer boxes in the unknown
images separates better. The results therefore include AP on the known images, the numbers of boxes
and images, and recall and AP of the unknown objects.

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
from ..errors import UserError, check_choice
from ..lvis.detections import Detections
from ..lvis.evaluate import evaluate_lvis
from ..lvis.ground_truth import LvisGroundTruth
from ..lvis.matches import match_lvis
from ..modeling.stages import AVERAGES
from ..modeling.topk_inference import fast_rcnn_inference_exact
from ..ood import OOD_SCORES, OODResult, evaluate_ood, score_logits
from .stored_outputs import StoredOutputs, sweep_stored
from .union import scaled

_NAME = "calibrated"


@dataclass(frozen=True, eq=False)
class BoxLogits:
    """A detector's confident boxes in some images.

    Attributes:
        detections (Detections): the D boxes, with class and score.
        logits (ndarray): (D, K) float64, calibrated, without the background column; for a cascade
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
    """Results of `find_known_objects`.

    Attributes:
        threshold (float): smallest score of a box that counts.
        scores (Mapping): score of `OOD_SCORES` -> (D,) of the boxes that count.
        boxes (int): D.
        image_share (float): share of the images that have one, in [0, 1].
        ap (float): box AP of the known classes, over all detections.
    """

    threshold: float
    scores: Mapping[str, np.ndarray]
    boxes: int
    image_share: float
    ap: float


@dataclass(frozen=True)
class UnknownObjectsResult:
    """Results of `evaluate_unknown_objects`; shares in [0, 1], NaN if unknown.

    Attributes:
        threshold (float): smallest score of a box that counts.
        scores (dict[str, OODResult]): score of `OOD_SCORES` -> its separation of the boxes.
        known_boxes, unknown_boxes (int): boxes that count.
        known_images, unknown_images (float): share of the images with such a box.
        known_ap (float): box AP of the known classes, over all detections.
        unknown_recall (float): share of the unknown objects that some box overlaps with an IoU of
            at least 0.5.
        unknown_ap (dict[str, float]): score -> AP at an IoU of 0.5 of the unknown objects as one
            class, with the boxes ranked by ascending score.
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
        """All figures by name, JSON-serialisable except for NaN."""
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
    """Measure how well a detector's logits separate unknown objects from known ones; no network.

    Args:
        known (StoredOutputs): outputs for images of the known classes (``sweep(..., store=)``).
        unknown (StoredOutputs): outputs of the same model for images without any known class.
        ground_truth (LvisGroundTruth): annotations of the known images.
        unknown_ground_truth (LvisGroundTruth): annotations of the unknown images, with any classes;
            None without annotations.
        calibrations (Sequence[AffineCalibration]): one for each stage; None for none.
        average (str): quantity that a cascade averages over stages: "probs" or "logits".
        threshold (float): smallest probability of the best known class, in [0, 1]; None for the
            best F1 on the known images (`best_f1_threshold`).
        known_objects (KnownObjects): those of `known` with these calibrations, for several sets of
            unknown images; None finds them, and only then `threshold` counts.

    Raises:
        ValueError: the stores belong to different models or to other images, or one has no box
            above the threshold.

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
    """Compute the part of `evaluate_unknown_objects` that depends only on the known images.

    Args:
        known, ground_truth, calibrations, average, threshold: see `evaluate_unknown_objects`.
        detections (Detections): those of a sweep over the known images with these calibrations;
            None computes them from the stored outputs.

    Raises:
        ValueError: the store belongs to other images, or has no box above the threshold.
    """
    known.check(ground_truth)
    calibrations = _stages(known, calibrations)
    if detections is None:
        options = {"average": average, "ground_truth": ground_truth}
        # In memory: the boxes of one calibration are small.
        detections = sweep_stored(known, {_NAME: calibrations}, **options).detections(_NAME)
    matches = match_lvis(ground_truth, detections)
    if threshold is None:
        # Chosen on the known images alone: at deployment, nobody has labelled unknown objects.
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
            f"{threshold:.4f} or more, so there is nothing to separate. Give a lower "
            "threshold, or check the weights."
        )
    return found


@torch.no_grad()
def sure_boxes(
    stored: StoredOutputs,
    calibrations: Sequence[AffineCalibration],
    threshold: float,
    average: str = "probs",
) -> BoxLogits:
    """The detections of a store with at least a given score, with the logits of their regions.

    A region counts once, with its best class, even if it is detected as several classes.

    Args:
        stored (StoredOutputs): outputs for a data set.
        calibrations (Sequence[AffineCalibration]): one for each stage.
        threshold (float): smallest probability of the best class, in [0, 1].
        average (str): quantity that a cascade averages over stages: "probs" or "logits".

    Raises:
        ValueError: a threshold outside [0, 1], an unknown average, or boxes that were not stored.
    """
    check_choice("average", average, AVERAGES)
    if not 0 <= threshold <= 1:
        raise UserError(f"The threshold is {threshold}, expected a probability in [0, 1].")
    # Stored outputs are on the CPU.
    calibrations = [copy.deepcopy(each).cpu() for each in calibrations]
    found, logits, total = [Detections.empty()], [np.zeros((0, stored.num_classes))], 0
    for image, raw in stored.raw_outputs():
        (probs,) = raw.probabilities(calibrations, average)
        (instances,), (rows,) = fast_rcnn_inference_exact(
            raw.boxes, [probs], raw.image_sizes, *stored.selection
        )
        # Detectron2's inference drops rows that are not finite before it numbers the kept ones;
        # this undoes the numbering.
        finite = raw.boxes[0].isfinite().all(dim=1) & probs.isfinite().all(dim=1)
        rows = finite.nonzero()[:, 0][rows]
        # A region may pass the threshold with several classes; counted once, it has one vector of
        # logits and one score.
        best = probs[rows, :-1].argmax(dim=1) == instances.pred_classes
        kept = (best & (instances.scores >= threshold)).nonzero()[:, 0]
        # Scaling may drop boxes that become empty, so the positions that remain come back with it.
        part = scaled(_at(instances, kept), image.image_id, image.output_size)
        position = rows[kept][torch.from_numpy(part.position)]
        # float64: rounding in float32 would make ties, which count as half.
        calibrated = [c(z.double()) for c, z in zip(calibrations, raw.logits, strict=True)]
        logits.append((sum(calibrated) / len(calibrated))[position, :-1].numpy())
        found.append(part.detections)
        total += 1
    return BoxLogits(Detections.concatenate(found), np.concatenate(logits), total)


def without_known_classes(ground_truth: LvisGroundTruth, num_classes: int) -> LvisGroundTruth:
    """Ground truth for a sweep over unknown images, with which it computes no masks.

    Args:
        ground_truth (LvisGroundTruth): annotations of the unknown images, with any classes.
        num_classes (int): K of the detector.

    Returns:
        LvisGroundTruth: the same images, in which none of the K classes is verified.
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
    """Recall and AP of all objects as one class, with the boxes ranked by each score in turn."""
    objects = replace(
        ground_truth,
        category_ids=np.ones(1, dtype=np.int64),
        class_names=("object",),
        groups=None,
        category=np.zeros_like(ground_truth.category),
        # One class for all: whether an object's class is verified for its image no longer matters.
        listed=None,
        not_exhaustive=np.zeros(0, dtype=np.int64),
        masks=None,
        without_mask=None,
    )
    category, ap = np.zeros(len(boxes), dtype=np.int32), {}
    for name, score in scores.items():
        ranked = Detections(boxes.image_id, category, score, boxes.box)
        # No limit for each image: the boxes above the threshold are the detections.
        result = evaluate_lvis(objects, ranked, max_dets=-1)
        ap[name] = result.metrics["AP50"]
    return {"unknown_recall": float(result.recall[0, 0, 0]), "unknown_ap": ap}


def _check_pair(known: StoredOutputs, unknown: StoredOutputs) -> None:
    sizes = [(each.num_classes, each.num_stages) for each in (known, unknown)]
    prints = [
        [None if each is None else each.tolist() for each in stored.fingerprints]
        for stored in (known, unknown)
    ]
    # Exactly, not up to rounding: both stores should come from one checkpoint on one kind of
    # device.
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
