"""The work of a sweep on a batch of images: one network pass, detections of all calibrations.

Shapes: N images, R RoIs of all images, K foreground classes, S cascade stages, U distinct
    detections in an image over all calibrations.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import hashlib
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from detectron2.structures import Instances
from torch import Tensor, nn

from ..errors import check_choice
from ..lvis.ground_truth import LvisGroundTruth
from ..modeling.box_predictors import (
    check_calibratable,
    classifier_reader,
    has_sigmoid_scores,
    num_classes_of,
    predictor_fingerprint,
    unwrapped,
)
from ..modeling.recording import LogitRecorder, Recording
from ..modeling.stages import AVERAGES, StageOutput
from .detections_folder import ImageDetections
from .output_store import StoreWriter
from .union import (
    Calibrations,
    RawOutputs,
    Scaled,
    Union,
    best_candidates,
    calibrations_digest,
    check_calibrations,
    empty_masks,
    find_unions,
    is_evaluated,
    output_size,
    scaled,
)

# Detections per block of masks. Ten calibrations may have thousands of distinct detections in an
# image, whose bitmaps would take gigabytes; on a CPU, blocks that fit into the cache take half the
# time.
_MASKS_AT_A_TIME = {"cuda": 512, "cpu": 64}


class SweepRunner:
    """Replaces the model in `inference_on_dataset`.

    Args:
        model (nn.Module): the detector, in evaluation mode when called.
        calibrations (Mapping): name -> S calibrations; they are copied.
        average (str): the quantity that a cascade averages, "probs" or "logits".
        ground_truth (LvisGroundTruth): skip masks that its evaluation ignores; None computes all.
        keep (StoreWriter): receives the raw outputs for later sweeps; None stores none.

    Raises:
        ValueError: calibrations that do not fit the model, or an unknown average.
    """

    def __init__(
        self,
        model: nn.Module,
        calibrations: Calibrations,
        average: str,
        ground_truth: LvisGroundTruth | None = None,
        keep: StoreWriter | None = None,
    ) -> None:
        # The population at test: detections come from proposals, without ground truth among them.
        self._recorder = LogitRecorder(model, population="proposals")
        self._roi_heads = getattr(unwrapped(model), "roi_heads", None)
        predictors = self._recorder.predictors
        check_choice("average", average, AVERAGES)
        check_calibratable(model)
        check_calibrations(calibrations, [num_classes_of(each) for each in predictors])
        for stages in calibrations.values():
            for calibration, predictor in zip(stages, predictors, strict=True):
                calibration.check_activation(has_sigmoid_scores(predictor))
        device = next(model.parameters()).device
        # Copies, because to() moves the module itself.
        self._calibrations = {
            name: [copy.deepcopy(calibration).to(device) for calibration in stages]
            for name, stages in calibrations.items()
        }
        self._average = average
        self._ground_truth = ground_truth
        self._masks_at_a_time = _MASKS_AT_A_TIME["cpu" if device.type == "cpu" else "cuda"]
        # A cascade selects detections with the last stage's thresholds, as CascadeROIHeads does.
        last = predictors[-1]
        self.selection = (last.test_score_thresh, last.test_nms_thresh, last.test_topk_per_image)
        self.has_masks = getattr(self._roi_heads, "mask_on", False)
        self._keep = keep

    def describe(self) -> dict[str, Any]:
        """Properties of the model that users of the raw outputs need."""
        predictors = self._recorder.predictors
        fingerprints = [predictor_fingerprint(predictor) for predictor in predictors]
        return {
            "num_classes": num_classes_of(predictors[-1]),
            "num_stages": len(predictors),
            "has_masks": self.has_masks,
            "selection": self.selection,
            "fingerprints": [each if each is None else each.tolist() for each in fingerprints],
            "calibrations": list(self._calibrations),
        }

    def classifiers(self) -> dict[str, Tensor]:
        """Weight and bias of each stage's classifier, if known."""
        named: dict[str, Tensor] = {}
        for index, predictor in enumerate(self._recorder.predictors):
            with contextlib.suppress(ValueError):  # a head without such a layer
                weight, bias = classifier_reader(predictor)()
                named[f"weight{index}"] = weight
                if bias is not None:
                    named[f"bias{index}"] = bias
        return named

    def settings(self) -> dict[str, Any]:
        """The settings that determine the detections, besides weights and images."""
        # The masks that are left empty depend on the annotations, so a resumed sweep must have the
        # same ones.
        listed = None if self._ground_truth is None else self._ground_truth.listed
        return {
            "names": list(self._calibrations),
            "calibrations": calibrations_digest(self._calibrations),
            "average": self._average,
            "selection": self.selection,
            "masks": "all" if listed is None else hashlib.sha256(listed).hexdigest(),
        }

    @torch.no_grad()
    def __call__(self, inputs: Sequence[Mapping[str, Any]]) -> ImageDetections:
        """All calibrations' detections in N images."""
        # The recorder stops after the last box predictor: the model's own selection and masks would
        # serve one calibration only.
        recording = self._recorder(list(inputs))
        raw = raw_outputs(recording)
        calibrations = list(self._calibrations.values())
        unions = find_unions(raw, calibrations, self._average, self.selection)
        parts = self._complete(inputs, recording, unions)
        if self._keep is not None:
            limit = self._keep.max_boxes
            best = best_candidates(raw, calibrations, self._average, limit) if limit else None
            self._keep.add(inputs, raw, parts, best)
        return ImageDetections.concatenate(parts)

    def _complete(
        self,
        inputs: Sequence[Mapping[str, Any]],
        recording: Recording,
        unions: Sequence[Union],
    ) -> list[ImageDetections]:
        """Run mask and keypoint branches for each image's union, and scale it to its image."""
        pairs = list(zip(inputs, unions, strict=True))
        # The mask head takes most of the time of a sweep; detections that the evaluation drops do
        # without it.
        wanted = [self._is_evaluated(image["image_id"], union) for image, union in pairs]
        chosen = [each.nonzero()[:, 0].split(self._masks_at_a_time) for each in wanted]
        others = [(~each).nonzero()[:, 0] for each in wanted]
        parts: list[list[Scaled]] = [[] for _ in unions]
        # Images have different numbers of blocks. Those that are done take part with no boxes,
        # since the heads expect one entry for each image.
        for batch in itertools.zip_longest(*chosen, fillvalue=others[0][:0]):
            instances = self._instances(recording, unions, batch)
            # RoI heads without it have no mask or keypoint branch.
            if hasattr(self._roi_heads, "forward_with_given_boxes"):
                instances = self._roi_heads.forward_with_given_boxes(recording.features, instances)
            for part, image, each in zip(parts, inputs, instances, strict=True):
                part.append(_scaled(each, image))
        instances = self._instances(recording, unions, others)
        for part, image, each in zip(parts, inputs, instances, strict=True):
            part.append(_scaled(each, image, self.has_masks))
        return [
            union.detections(image["image_id"], part)
            for (image, union), part in zip(pairs, parts, strict=True)
        ]

    def _is_evaluated(self, image_id: int | str, union: Union) -> Tensor:
        """Mark detections that the evaluation uses, (U,) bool."""
        classes = union.classes.cpu().numpy()
        # On the CPU, where the annotations are; the mark goes back to the device of the boxes.
        evaluated = is_evaluated(self._ground_truth, np.full(len(union), image_id), classes)
        return torch.from_numpy(evaluated).to(union.classes.device)

    @staticmethod
    def _instances(
        recording: Recording, unions: Sequence[Union], positions: Sequence[Tensor]
    ) -> list[Instances]:
        """A part of each image's union, as input of the heads."""
        return [
            union.instances(*each)
            for union, *each in zip(unions, recording.image_sizes, positions, strict=True)
        ]


def _scaled(instances: Instances, image: Mapping[str, Any], without_masks: bool = False) -> Scaled:
    """Scale to the image; ``without_masks`` adds empty masks to instances without masks."""
    size = output_size(image, instances.image_size)
    found = scaled(instances, image["image_id"], size)
    if not without_masks:
        return found
    # Detections with and without masks can't be joined, so the missing ones are empty.
    masks = empty_masks(len(found.detections), size)
    return replace(found, detections=replace(found.detections, masks=masks))


def raw_outputs(recording: Recording) -> RawOutputs:
    """The outputs of the network's pass that ranking needs."""
    last = recording.stages[-1]
    return RawOutputs(
        logits=[stage.logits for stage in recording.stages],
        scorers=[functools.partial(_raw_probs, stage) for stage in recording.stages],
        # The last stage's boxes, as a cascade uses them; its deltas are relative to the stage
        # before.
        boxes=last.predictor.predict_boxes(last.predictions, last.proposals),
        image_sizes=recording.image_sizes,
    )


def _raw_probs(stage: StageOutput, logits: Tensor) -> Sequence[Tensor]:
    """The predictor's probabilities of exactly these logits, without its own calibration."""
    predictor = stage.predictor
    predict = getattr(predictor, "uncalibrated_probs", predictor.predict_probs)
    if hasattr(predict, "covered"):  # the override that `attach` puts on other predictors
        predict = predict.covered or functools.partial(type(predictor).predict_probs, predictor)
    return predict((logits, *stage.predictions[1:]), stage.proposals)
