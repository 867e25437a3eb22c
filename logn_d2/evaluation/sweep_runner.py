"""What a sweep does with a batch of images: one network pass, all calibrations' detections.

Shapes: N images, R RoIs of all images, Ri of image i, K foreground classes, S cascade stages, U
different detections in an image over all calibrations, D detections of one calibration.
"""

from __future__ import annotations

import copy
import functools
import hashlib
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pycocotools.mask as mask_util
import torch
from detectron2.modeling.postprocessing import detector_postprocess
from detectron2.structures import Boxes, Instances
from torch import Tensor, nn

from ..core import AffineCalibration
from ..modeling.box_predictors import num_classes_of, unwrapped
from ..modeling.recording import LogitRecorder, Recording
from ..modeling.stages import RecordedStage
from ..modeling.topk_inference import fast_rcnn_inference_exact
from .detections import Detections, RleMasks
from .lvis_ground_truth import LvisGroundTruth
from .sweep_predictions import ImagePredictions

__all__ = ["Calibrations", "SweepRunner"]

Calibrations = Mapping[str, Sequence[AffineCalibration]]
"""Name -> one calibration for each box predictor."""

# Detections whose masks are computed and pasted at a time. Ten calibrations may find thousands of
# different ones in an image, whose bitmaps would take gigabytes; on a CPU, what fits into the cache
# takes half the time.
_MASKS_AT_A_TIME = {"cuda": 512, "cpu": 64}


class SweepRunner:
    """Stands in for the model in `inference_on_dataset`.

    Args:
        model (nn.Module): the detector, in evaluation mode when called.
        calibrations (Mapping): name -> S calibrations; they are copied.
        average (str): what a cascade averages: "probs" or "logits".
        ground_truth (LvisGroundTruth): leave out masks that its evaluation does not look at; None
            computes all.

    Raises:
        ValueError: calibrations that do not fit the model, or another average.
    """

    def __init__(
        self,
        model: nn.Module,
        calibrations: Calibrations,
        average: str,
        ground_truth: LvisGroundTruth | None = None,
    ) -> None:
        self._recorder = LogitRecorder(model, population="proposals")
        self._roi_heads = getattr(unwrapped(model), "roi_heads", None)
        predictors = self._recorder.predictors
        if average not in ("probs", "logits"):
            raise ValueError(f"average is {average!r}, expected 'probs' or 'logits'.")
        _check_calibrations(calibrations, predictors)
        device = next(model.parameters()).device
        # Copies, since to() moves the module that it is called on.
        self._calibrations = [
            [copy.deepcopy(calibration).to(device) for calibration in stages]
            for stages in calibrations.values()
        ]
        self._names = list(calibrations)
        self._average = average
        self._ground_truth = ground_truth
        self._masks_at_a_time = _MASKS_AT_A_TIME["cpu" if device.type == "cpu" else "cuda"]
        last = predictors[-1]
        self._selection = (last.test_score_thresh, last.test_nms_thresh, last.test_topk_per_image)

    def settings(self) -> dict[str, Any]:
        """What decides the detections, besides weights and images."""
        digest = hashlib.sha256()
        listed = None if self._ground_truth is None else self._ground_truth.listed
        for calibration in (each for stages in self._calibrations for each in stages):
            for vector in (calibration.column_scale, calibration.column_shift):
                digest.update(vector.cpu().numpy())
        return {
            "names": self._names,
            "calibrations": digest.hexdigest(),
            "average": self._average,
            "selection": self._selection,
            "masks": "all" if listed is None else hashlib.sha256(listed).hexdigest(),
        }

    @torch.no_grad()
    def __call__(self, inputs: Sequence[Mapping[str, Any]]) -> ImagePredictions:
        """All calibrations' detections in N images."""
        recording = self._recorder(list(inputs))
        last = recording.stages[-1]
        boxes = last.predictor.predict_boxes(last.predictions, last.proposals)
        found = []
        for calibrations in self._calibrations:
            probs = _probabilities(recording.stages, calibrations, self._average)
            instances, _ = fast_rcnn_inference_exact(
                boxes, probs, recording.image_sizes, *self._selection
            )
            found.append(instances)
        unions = [_Union.of(of_image) for of_image in zip(*found, strict=True)]
        return ImagePredictions.concatenate(self._complete(inputs, recording, unions))

    def _complete(
        self,
        inputs: Sequence[Mapping[str, Any]],
        recording: Recording,
        unions: Sequence[_Union],
    ) -> list[ImagePredictions]:
        """Runs mask and keypoint branches for each image's union, and scales it to its image."""
        pairs = list(zip(inputs, unions, strict=True))
        wanted = [self._has_evaluated_class(image["image_id"], union) for image, union in pairs]
        chosen = [each.nonzero()[:, 0].split(self._masks_at_a_time) for each in wanted]
        others = [(~each).nonzero()[:, 0] for each in wanted]
        parts: list[list[_Scaled]] = [[] for _ in unions]
        for batch in itertools.zip_longest(*chosen, fillvalue=others[0][:0]):
            instances = self._instances(recording, unions, batch)
            if hasattr(self._roi_heads, "forward_with_given_boxes"):
                instances = self._roi_heads.forward_with_given_boxes(recording.features, instances)
            for part, image, each in zip(parts, inputs, instances, strict=True):
                part.append(_scaled(each, image))
        has_masks = getattr(self._roi_heads, "mask_on", False)
        instances = self._instances(recording, unions, others)
        for part, image, each in zip(parts, inputs, instances, strict=True):
            part.append(_scaled(each, image, empty_masks=has_masks))
        return [
            union.predictions(image["image_id"], part)
            for (image, union), part in zip(pairs, parts, strict=True)
        ]

    def _has_evaluated_class(self, image_id: int, union: _Union) -> Tensor:
        """(U,) bool, which detections the evaluation looks at."""
        truth = self._ground_truth
        if truth is None or image_id not in truth.image_ids:
            return torch.ones_like(union.classes, dtype=torch.bool)
        first_key = np.searchsorted(truth.image_ids, image_id) * truth.num_classes
        listed = truth.is_listed(first_key + union.classes.cpu().numpy())
        return torch.from_numpy(listed).to(union.classes.device)

    @staticmethod
    def _instances(
        recording: Recording, unions: Sequence[_Union], positions: Sequence[Tensor]
    ) -> list[Instances]:
        """Some of each image's union, as the heads take it."""
        return [
            union.instances(*each)
            for union, *each in zip(unions, recording.image_sizes, positions, strict=True)
        ]


@dataclass(frozen=True)
class _Union:
    """Different detections (box and class) in one image, as the model sees the image.

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
    def of(cls, instances: Sequence[Instances]) -> _Union:
        """The union of one image's detections under each calibration."""
        boxes = torch.cat([each.pred_boxes.tensor for each in instances])
        classes = torch.cat([each.pred_classes for each in instances])
        # A class index is exact in a float's 24 bits.
        rows = torch.cat([boxes, classes[:, None].to(boxes.dtype)], dim=1)
        union, index = torch.unique(rows, dim=0, return_inverse=True)
        return cls(
            boxes=union[:, :4],
            classes=union[:, 4].long(),
            index=list(index.split([len(each) for each in instances])),
            scores=[each.scores for each in instances],
        )

    def instances(self, image_size: tuple[int, int], positions: Tensor) -> Instances:
        """The detections at some positions, with "union_index" to know them by."""
        boxes = self.boxes[positions]
        return Instances(
            image_size,
            pred_boxes=Boxes(boxes),
            pred_classes=self.classes[positions],
            scores=boxes.new_zeros(len(boxes)),
            union_index=positions,
        )

    def predictions(self, image_id: int, parts: Sequence[_Scaled]) -> ImagePredictions:
        """Each calibration's share of the detections that are left after scaling.

        Args:
            image_id (int): the image.
            parts (Sequence[_Scaled]): together the union, without boxes that have become empty.
        """
        kept = np.concatenate([part.position for part in parts])
        position = np.full(len(self), -1)
        position[kept] = np.arange(len(kept))
        index = [position[each.cpu().numpy()] for each in self.index]
        return ImagePredictions(
            image_ids=(int(image_id),),
            union=Detections.concatenate([part.detections for part in parts]),
            index=tuple(each[each >= 0].astype(np.int32) for each in index),
            score=tuple(
                scores.float().cpu().numpy()[each >= 0]
                for scores, each in zip(self.scores, index, strict=True)
            ),
        )


@dataclass(frozen=True)
class _Scaled:
    """Some detections of a union, scaled to their image, and their positions in the union."""

    detections: Detections
    position: np.ndarray


def _scaled(instances: Instances, image: Mapping[str, Any], empty_masks: bool = False) -> _Scaled:
    """What `GeneralizedRCNN` does last; ``empty_masks`` stand for ones that nobody looks at."""
    height, width = instances.image_size
    height, width = image.get("height", height), image.get("width", width)
    instances = detector_postprocess(instances, height, width)
    detections = Detections.from_instances([instances], [image["image_id"]])
    if empty_masks:
        nothing = mask_util.encode(np.zeros((height, width), dtype=np.uint8, order="F"))
        masks = RleMasks.from_dicts([nothing] * len(detections))
        detections = replace(detections, masks=masks)
    return _Scaled(detections, instances.union_index.cpu().numpy())


def _probabilities(
    stages: Sequence[RecordedStage], calibrations: Sequence[AffineCalibration], average: str
) -> list[Tensor]:
    """N tensors (Ri, K + 1): what the model would give with these calibrations attached."""
    weight = 1.0 / len(stages)
    logits = [calibrate(s.logits) for calibrate, s in zip(calibrations, stages, strict=True)]
    if average == "logits":
        return list(_raw_probs(stages[-1], sum(logits) * weight))
    probs = [_raw_probs(stage, each) for stage, each in zip(stages, logits, strict=True)]
    # A sum from 0 on, times 1 / S: bit for bit what CascadeROIHeads does. One stage stays as it is.
    return [sum(of_image) * weight for of_image in zip(*probs, strict=True)]


def _raw_probs(stage: RecordedStage, logits: Tensor) -> Sequence[Tensor]:
    """The predictor's probabilities of these very logits, without a calibration of its own."""
    predictor = stage.predictor
    predict = getattr(predictor, "uncalibrated_probs", predictor.predict_probs)
    if hasattr(predict, "covered"):  # what `attach` covers the method of other predictors with
        predict = predict.covered or functools.partial(type(predictor).predict_probs, predictor)
    return predict((logits, *stage.predictions[1:]), stage.proposals)


def _check_calibrations(calibrations: Calibrations, predictors: Sequence[nn.Module]) -> None:
    if not calibrations:
        raise ValueError("There are no calibrations to sweep; give at least 'uncalibrated'.")
    for name, stages in calibrations.items():
        if len(stages) != len(predictors):
            raise ValueError(
                f"'{name}' has {len(stages)} calibrations, but this model has {len(predictors)} "
                "box predictors (cascade stages). Make it with stage_calibrations(..., "
                f"num_stages={len(predictors)})."
            )
        for calibration, predictor in zip(stages, predictors, strict=True):
            if calibration.num_classes != num_classes_of(predictor):
                raise ValueError(
                    f"'{name}' has {calibration.num_classes} classes, this model has "
                    f"{num_classes_of(predictor)}. Use statistics and counts of this model."
                )
