"""The detections of one model before and after calibration, from one network pass.

Shapes: N images, K foreground classes, S cascade stages, D detections of an image.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from detectron2.modeling.postprocessing import detector_postprocess
from detectron2.structures import Instances
from torch import nn
from torchvision.ops import nms

from .. import UNCALIBRATED
from ..core import AffineCalibration
from ..errors import check_choice
from ..modeling.attach import calibrations_at, find_sites
from ..modeling.box_predictors import (
    cascade_average_of,
    has_sigmoid_scores,
    num_classes_of,
    unwrapped,
)
from ..modeling.recording import LogitRecorder, Recording
from ..modeling.stages import AVERAGES
from ..modeling.topk_inference import fast_rcnn_inference_exact
from ..sites import evaluation_mode, known_site, outputs_under, site_detector
from ..sweeps.network import raw_outputs
from ..sweeps.site_network import instances_of
from ..sweeps.union import check_calibrations, output_size

Pair = tuple[Instances, Instances]
"""Detections of one image before and after calibration, best first."""

_SAME_PLACE = 0.5  # IoU


@dataclass(frozen=True)
class Shown:
    """Selection of the detections that a picture shows.

    Attributes:
        threshold (float): minimum score before calibration, exclusive; in [0, 1].
        calibrated_threshold (float): minimum score after calibration, exclusive. None shows as many
            detections as before: a calibration changes all scores, so one threshold would compare
            different numbers of detections.
        at_most (int): limit per side; None for the model's own (TEST.DETECTIONS_PER_IMAGE).
        one_per_place (bool): show only the best of overlapping detections (IoU over 0.5) of any
            class.
    """

    threshold: float = 0.5
    calibrated_threshold: float | None = None
    at_most: int | None = None
    one_per_place: bool = False


class BeforeAfter:
    """Runs a detector once and returns its detections without and with a calibration.

    The shown boxes, classes and scores equal those of the model without and with the calibration
    attached, bit for bit. A calibration that is already attached is ignored. The model is left
    unchanged.

    Args:
        model (nn.Module): a GeneralizedRCNN, a model with the same structure, or a detector listed
            in docs/sites.md, with its weights loaded.
        calibrations (Sequence[AffineCalibration]): one per box predictor (S); they are copied.
        average (str): the quantity that a cascade averages over stages, "probs" or "logits"; None
            follows the model's own heads.
        shown (Shown): the detections to show.

    Raises:
        ValueError: calibrations that do not fit the model, or an unknown average.

    Example:
        >>> compare = BeforeAfter(model, calibrations)  # doctest: +SKIP
        >>> ((before, after),) = compare([{"image": image}])  # doctest: +SKIP
    """

    def __init__(
        self,
        model: nn.Module,
        calibrations: Sequence[AffineCalibration],
        *,
        average: str | None = None,
        shown: Shown | None = None,
    ) -> None:
        self._site = known_site(model)
        self._model = site_detector(model) or unwrapped(model)
        sites = find_sites(model)
        average = average or cascade_average_of(model)
        check_choice("average", average, AVERAGES)
        check_calibrations({"after": calibrations}, [num_classes_of(s.classifier) for s in sites])
        for site, calibration in zip(sites, calibrations):
            calibration.check_activation(has_sigmoid_scores(site.classifier))
        identity = calibrations_at(sites, UNCALIBRATED)
        device = next(self._model.parameters()).device
        # Copies, so that calibrations attached to another device or model stay untouched.
        self._sides = tuple(
            [copy.deepcopy(each).to(device) for each in side] for side in (identity, calibrations)
        )
        self._average = average
        self._shown = shown or Shown()

    @torch.no_grad()
    def __call__(self, inputs: Sequence[Mapping[str, Any]]) -> list[Pair]:
        """Detect in N images.

        Args:
            inputs (Sequence[dict]): the model's inputs; detections are scaled to "height" and
                "width".

        Returns:
            list[tuple[Instances, Instances]]: N pairs on the CPU, with masks and key points if the
            model has them.
        """
        if self._site is not None:
            return self._of_site(inputs)
        # One pass records raw logits of the test-time proposals; both sides are computed from
        # these.
        recorder = LogitRecorder(self._model, population="proposals")
        with evaluation_mode(self._model):
            recording = recorder(list(inputs))
            pairs = self._completed(recording, self._chosen(recording))
        return [_scaled(both, image) for both, image in zip(pairs, inputs, strict=True)]

    def _of_site(self, inputs: Sequence[Mapping[str, Any]]) -> list[Pair]:
        """The shown detections of the detector's own inference, for both sides."""
        # A site has one classifier, so a side has one calibration.
        sides = {str(index): side[0] for index, side in enumerate(self._sides)}
        found = outputs_under(self._model, self._site, inputs, sides).values()
        pairs = zip(*([instances_of(image).to("cpu") for image in side] for side in found))
        return [self._pair(*map(_best_above, pair, self._thresholds())) for pair in pairs]

    def _chosen(self, recording: Recording) -> list[Pair]:
        """The shown detections of each image, without masks."""
        raw = raw_outputs(recording)
        last = recording.stages[-1].predictor
        before, after = (
            fast_rcnn_inference_exact(
                raw.boxes,
                raw.probabilities(calibrations, self._average),
                raw.image_sizes,
                threshold,
                last.test_nms_thresh,
                last.test_topk_per_image,
            )[0]
            for calibrations, threshold in zip(self._sides, self._thresholds())
        )
        return [self._pair(*of_image) for of_image in zip(before, after, strict=True)]

    def _thresholds(self) -> tuple[float, float]:
        # Without a threshold of its own, the number on the left limits the right side.
        after = self._shown.calibrated_threshold
        return self._shown.threshold, 0.0 if after is None else after

    def _pair(self, before: Instances, after: Instances) -> Pair:
        if self._shown.one_per_place:
            # Suppression over all classes keeps the order of the scores.
            before, after = (
                each[nms(each.pred_boxes.tensor, each.scores, _SAME_PLACE)]
                for each in (before, after)
            )
        before = before[: self._shown.at_most]
        if self._shown.calibrated_threshold is None:
            return before, after[: len(before)]
        return before, after[: self._shown.at_most]

    def _completed(self, recording: Recording, pairs: Sequence[Pair]) -> list[Instances]:
        """Add masks and key points to both sides at once; "calibrated" marks the second side."""
        joined = []
        for before, after in pairs:
            both = Instances.cat([before, after])
            both.calibrated = torch.arange(len(both), device=both.scores.device) >= len(before)
            joined.append(both)
        # Heads that predict only boxes may lack the method.
        complete = getattr(self._model.roi_heads, "forward_with_given_boxes", None)
        return joined if complete is None else complete(recording.features, joined)


def _best_above(instances: Instances, threshold: float) -> Instances:
    """Detections with scores above the threshold, best first."""
    chosen = instances[instances.scores > threshold]
    return chosen[chosen.scores.argsort(descending=True, stable=True)]


def _scaled(both: Instances, image: Mapping[str, Any]) -> Pair:
    """Both sides at the original image size, on the CPU."""
    both = detector_postprocess(both, *output_size(image, both.image_size)).to("cpu")
    is_after = both.calibrated
    both.remove("calibrated")
    return both[~is_after], both[is_after]
