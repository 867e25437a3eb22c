"""Detections of every calibration from raw box outputs, with the network or without it.

Shapes: N images, R RoIs of all images, Ri of image i, K foreground classes, S cascade stages, U
distinct detections in an image over all calibrations, D detections of one calibration.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pycocotools.mask as mask_util
import torch
from detectron2.modeling.postprocessing import detector_postprocess
from detectron2.structures import Boxes, Instances
from torch import Tensor

from ..core import AffineCalibration
from ..errors import UserError
from ..lvis.detections import Detections, RleMasks
from ..lvis.ground_truth import LvisGroundTruth
from ..modeling.topk_inference import fast_rcnn_inference_exact, moving_limit
from .detections_folder import ImageDetections

Selection = tuple[float, float, int]
"""Score threshold, IoU threshold of the non-maximum suppression, detections per image."""

Scorer = Callable[[Tensor], Sequence[Tensor]]
"""Maps logits (R, K + 1) to probabilities, N tensors (Ri, K + 1)."""


@dataclass(frozen=True)
class RawOutputs:
    """Outputs of the box predictors for N images, before any calibration.

    Attributes:
        logits (list[Tensor]): S tensors (R, K + 1), in nats.
        scorers (list[Scorer]): the function from logits to probabilities of each stage.
        boxes (Sequence[Tensor]): N tensors (Ri, K * 4), or (Ri, 4) for class-agnostic boxes.
        image_sizes (Sequence[tuple[int, int]]): (height, width) of each image as the model's input.
        known (Sequence[Tensor]): N tensors (Ri, K) bool, available boxes; None for all.
    """

    logits: list[Tensor]
    scorers: list[Scorer]
    boxes: Sequence[Tensor]
    image_sizes: Sequence[tuple[int, int]]
    known: Sequence[Tensor] | None = None

    def probabilities(
        self, calibrations: Sequence[AffineCalibration], average: str
    ) -> list[Tensor]:
        """Probabilities of the model with these calibrations attached, N tensors (Ri, K + 1)."""
        # Multiplying by 1 / S, not dividing by S, because Detectron2 does: the last bit differs.
        weight = 1.0 / len(self.logits)
        calibrated = [c(logits) for c, logits in zip(calibrations, self.logits, strict=True)]
        if average == "logits":
            return list(self.scorers[-1](sum(calibrated) * weight))
        probs = [score(each) for score, each in zip(self.scorers, calibrated, strict=True)]
        # A sum from 0 on, times 1 / S: the operations of CascadeROIHeads, bit for bit. A single
        # stage stays unchanged.
        return [sum(of_image) * weight for of_image in zip(*probs, strict=True)]


Calibrations = Mapping[str, Sequence[AffineCalibration]]
"""Name -> one calibration per box predictor."""


def check_calibrations(calibrations: Calibrations, num_classes: Sequence[int | None]) -> None:
    """Check that calibrations fit a model.

    Args:
        calibrations (Mapping): name -> calibrations.
        num_classes (Sequence[int]): K of each box predictor.

    Raises:
        ValueError: no calibrations, or calibrations for another number of stages or classes.
    """
    stages = len(num_classes)
    if not calibrations:
        raise UserError("There are no calibrations to sweep; give at least 'uncalibrated'.")
    for name, given in calibrations.items():
        if len(given) != stages:
            raise UserError(
                f"'{name}' has {len(given)} calibrations, but this model has {stages} "
                "box predictors (cascade stages). Make it with stage_calibrations(..., "
                f"num_stages={stages})."
            )
        for calibration, expected in zip(given, num_classes, strict=True):
            if calibration.num_classes != expected:
                raise UserError(
                    f"'{name}' has {calibration.num_classes} classes, this model has "
                    f"{expected}. Use statistics and counts of this model."
                )


def calibrations_digest(calibrations: Calibrations) -> str:
    """A hash of all scales and shifts, in their order."""
    digest = hashlib.sha256()
    for calibration in (each for stages in calibrations.values() for each in stages):
        for vector in (calibration.column_scale, calibration.column_shift):
            # Names are hashed by the caller: the same vectors under another name are another sweep.
            digest.update(vector.cpu().numpy())
    return digest.hexdigest()


def find_unions(
    raw: RawOutputs,
    calibrations: Sequence[Sequence[AffineCalibration]],
    average: str,
    selection: Selection,
) -> list[Union]:
    """The detections of every calibration, for each of N images.

    Raises:
        ValueError: a box that may affect them is not available.
    """
    found = []
    for stages in calibrations:
        probs = raw.probabilities(stages, average)
        # Not fast_rcnn_inference itself, which suppresses all candidates of all classes: the same
        # detections in a fraction of the time.
        instances, _ = fast_rcnn_inference_exact(raw.boxes, probs, raw.image_sizes, *selection)
        for known, scores, each in zip(raw.known or (), probs, instances):
            _check_known(known, scores[:, :-1], each, selection[0], stages[0].name)
        found.append(instances)
    return [Union.of(of_image) for of_image in zip(*found, strict=True)]


def best_candidates(
    raw: RawOutputs,
    calibrations: Sequence[Sequence[AffineCalibration]],
    average: str,
    count: int,
) -> list[Tensor]:
    """Mark the ``count`` best candidates of each calibration, N tensors (Ri, K) bool."""
    best: list[Tensor] = []
    for stages in calibrations:
        chosen = [_best(probs[:, :-1], count) for probs in raw.probabilities(stages, average)]
        best = [a | b for a, b in zip(best or chosen, chosen, strict=True)]
    return best


def _best(scores: Tensor, count: int) -> Tensor:
    chosen = torch.zeros_like(scores, dtype=torch.bool)
    # Unsorted, because only membership counts.
    order = scores.flatten().topk(min(count, scores.numel()), sorted=False).indices
    chosen.view(-1)[order] = True
    return chosen


def _check_known(
    known: Tensor, scores: Tensor, found: Instances, threshold: float, name: str
) -> None:
    """Check that unavailable boxes can't affect the detections.

    Non-maximum suppression is greedy: a candidate with a lower score than all detections neither is
    one nor suppresses one.
    """
    candidates = scores > threshold
    # A candidate below the threshold does not count, whatever its box.
    unknown = candidates & ~known
    # With few candidates, torchvision shifts boxes by the largest coordinate of all, which affects
    # the rounding of overlaps: then every box matters.
    if int(candidates.count_nonzero()) * 4 > moving_limit(scores.device.type) and len(found):
        unknown &= scores >= found.scores.min()
    if unknown.any():
        raise UserError(
            f"{int(unknown.count_nonzero())} candidates of an image without stored boxes may be "
            f"among the detections of '{name}'. Name this calibration in the sweep that stores, "
            "keep more boxes (--max-boxes), or all."
        )


@dataclass(frozen=True)
class Union:
    """Distinct detections (box and class) in one image, in the coordinates of the model's input.

    Attributes:
        boxes (Tensor): (U, 4) XYXY.
        classes (Tensor): (U,) int64.
        index (list[Tensor]): for each calibration, (D,) positions in the union.
        scores (list[Tensor]): for each calibration, (D,).
    """

    boxes: Tensor
    classes: Tensor
    index: list[Tensor]
    scores: list[Tensor]

    def __len__(self) -> int:
        return len(self.classes)

    @classmethod
    def of(cls, instances: Sequence[Instances]) -> Union:
        """The union of one image's detections under each calibration."""
        boxes = torch.cat([each.pred_boxes.tensor for each in instances])
        classes = torch.cat([each.pred_classes for each in instances])
        # Box and class in one float row, for a single torch.unique; a class index is exact in 24
        # bits.
        rows = torch.cat([boxes, classes[:, None].to(boxes.dtype)], dim=1)
        union, index = torch.unique(rows, dim=0, return_inverse=True)
        return cls(
            boxes=union[:, :4],
            classes=union[:, 4].long(),
            index=list(index.split([len(each) for each in instances])),
            scores=[each.scores for each in instances],
        )

    def instances(self, image_size: tuple[int, int], positions: Tensor) -> Instances:
        """The detections at given positions, identified by "union_index"."""
        boxes = self.boxes[positions]
        return Instances(
            image_size,
            pred_boxes=Boxes(boxes),
            pred_classes=self.classes[positions],
            # `Instances` for the heads need a score; that of a detection differs between
            # calibrations and is added later.
            scores=boxes.new_zeros(len(boxes)),
            union_index=positions,
        )

    def detections(self, image_id: int | str, parts: Sequence[Scaled]) -> ImageDetections:
        """Each calibration's part of the detections that remain after scaling.

        Args:
            image_id (int or str): the image.
            parts (Sequence[Scaled]): parts of the union, without boxes that became empty.
        """
        kept = np.concatenate([part.position for part in parts])
        # Boxes may become empty when clipped to the image, so positions in the union are
        # renumbered.
        position = np.full(len(self), -1)
        position[kept] = np.arange(len(kept))
        index = [position[each.cpu().numpy()] for each in self.index]
        return ImageDetections(
            image_ids=(image_id,),
            union=Detections.concatenate([part.detections for part in parts]),
            # Detections whose boxes became empty are dropped in every calibration.
            index=tuple(each[each >= 0].astype(np.int32) for each in index),
            score=tuple(
                # numpy knows no bfloat16.
                scores.float().cpu().numpy()[each >= 0]
                for scores, each in zip(self.scores, index, strict=True)
            ),
        )


@dataclass(frozen=True)
class Scaled:
    """Some detections of a union, scaled to their image, and their positions in the union."""

    detections: Detections
    position: np.ndarray


def output_size(image: Mapping[str, Any], image_size: tuple[int, int]) -> tuple[int, int]:
    """(height, width) to which an image's detections are scaled.

    Args:
        image (Mapping): a model input, with "height" and "width" if it was resized.
        image_size (tuple[int, int]): size of the model's input.
    """
    return image.get("height", image_size[0]), image.get("width", image_size[1])


def scaled(instances: Instances, image_id: int | str, size: tuple[int, int]) -> Scaled:
    """Scale detections to their image, the last step of `GeneralizedRCNN`.

    Args:
        instances (Instances): result of `Union.instances`, with or without masks.
        image_id (int or str): the image.
        size (tuple[int, int]): its height and width.
    """
    # Detectron2's own function clips, drops empty boxes and pastes masks, so that all of this is
    # done as in the model.
    instances = detector_postprocess(instances, *size)
    detections = Detections.from_instances([instances], [image_id])
    return Scaled(detections, instances.union_index.cpu().numpy())


def empty_masks(count: int, image_size: tuple[int, int]) -> RleMasks:
    """Placeholders for masks that no evaluation uses, or that are unknown."""
    nothing = mask_util.encode(np.zeros(image_size, dtype=np.uint8, order="F"))
    return RleMasks.from_dicts([nothing] * count)


def is_evaluated(
    ground_truth: LvisGroundTruth | None, image_id: np.ndarray, category: np.ndarray
) -> np.ndarray:
    """Mark detections that the federated rule keeps, (D,) bool; all without ground truth."""
    evaluated = np.ones(len(category), dtype=bool)
    if ground_truth is not None and ground_truth.num_images:
        image = np.searchsorted(ground_truth.image_ids, image_id)
        # searchsorted may return N for an id larger than all; the comparison below then rejects it.
        image = np.minimum(image, ground_truth.num_images - 1)
        # An image that the annotations lack is evaluated nowhere. Its detections are kept, so that
        # the evaluation can name it.
        known = ground_truth.image_ids[image] == image_id
        listed = ground_truth.is_listed(image * ground_truth.num_classes + category)
        evaluated[known] = listed[known]
    return evaluated
