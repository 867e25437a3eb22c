"""Detectron2's RoI heads with `LogNFastRCNNOutputLayers` as box predictor.

Shapes: N images, S cascade stages, K foreground classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling.roi_heads import (
    ROI_HEADS_REGISTRY,
    CascadeROIHeads,
    FastRCNNOutputLayers,
    Res5ROIHeads,
    StandardROIHeads,
)
from detectron2.structures import Instances
from torch import Tensor

from ..errors import check_choice
from .build import TrainingClassCounts, calibrations_from_config, logn_node
from .class_scales import add_class_scales
from .fast_rcnn import LogNFastRCNNOutputLayers
from .second_stages import get_second_stage
from .stages import AVERAGES, StageOutput, combine_stages
from .topk_inference import fast_rcnn_inference_exact


@ROI_HEADS_REGISTRY.register()
class LogNROIHeads(StandardROIHeads):
    """StandardROIHeads whose box predictor is a `LogNFastRCNNOutputLayers`."""

    @classmethod
    def _init_box_head(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        arguments = super()._init_box_head(cfg, input_shape)
        (arguments["box_predictor"],) = _replacements(cfg, [arguments["box_predictor"]])
        return arguments


@ROI_HEADS_REGISTRY.register()
class LogNRes5ROIHeads(Res5ROIHeads):
    """Res5ROIHeads (C4 models) whose box predictor is a `LogNFastRCNNOutputLayers`."""

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        arguments = super().from_config(cfg, input_shape)
        (arguments["box_predictor"],) = _replacements(cfg, [arguments["box_predictor"]])
        return arguments


@ROI_HEADS_REGISTRY.register()
class LogNCascadeROIHeads(CascadeROIHeads):
    """CascadeROIHeads, each stage with a `LogNFastRCNNOutputLayers` and its own calibration.

    Args:
        cascade_average (str): quantity averaged over stages at test: "probs" (Detectron2) or
            "logits" (the released LogN code, https://github.com/MCG-NJU/LogN).
        **kwargs: arguments of CascadeROIHeads.
    """

    @configurable
    def __init__(self, *, cascade_average: str = "probs", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        check_choice("MODEL.LOGN.CASCADE_AVERAGE", cascade_average, AVERAGES)
        self.cascade_average = cascade_average

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        return {
            **super().from_config(cfg, input_shape),
            "cascade_average": logn_node(cfg).CASCADE_AVERAGE,
        }

    @classmethod
    def _init_box_head(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        arguments = super()._init_box_head(cfg, input_shape)
        arguments["box_predictors"] = _replacements(cfg, arguments["box_predictors"])
        return arguments

    def _forward_box(
        self,
        features: dict[str, Tensor],
        proposals: list[Instances],
        targets: list[Instances] | None = None,
    ) -> Any:
        if self.training:
            # Losses of a cascade are the parent's: each stage has its own.
            return super()._forward_box(features, proposals, targets)
        # The parent's loop, since what it does with the last logits can't be changed from outside.
        maps = [features[name] for name in self.box_in_features]
        sizes = [each.image_size for each in proposals]
        stages: list[StageOutput] = []
        for index, predictor in enumerate(self.box_predictor):
            if stages:
                boxes = stages[-1].predictor.predict_boxes(stages[-1].predictions, proposals)
                # Each stage refines the boxes of the stage before.
                proposals = self._create_proposals_from_boxes(boxes, sizes)
            predictions = self._run_stage(maps, proposals, index)
            stages.append(StageOutput(predictor, predictions, proposals))
        return self._detections(stages)

    def _detections(self, stages: list[StageOutput]) -> list[Instances]:
        last = stages[-1]
        instances, _ = fast_rcnn_inference_exact(
            last.predictor.predict_boxes(last.predictions, last.proposals),
            combine_stages(stages, self.cascade_average),
            [proposals.image_size for proposals in last.proposals],
            last.predictor.test_score_thresh,
            last.predictor.test_nms_thresh,
            last.predictor.test_topk_per_image,
        )
        return instances


def _replacements(
    cfg: CfgNode, predictors: Sequence[FastRCNNOutputLayers]
) -> list[LogNFastRCNNOutputLayers]:
    """Our predictor for each of Detectron2's, built alike and with the same initial weights."""
    # One object for all stages, which counts the training set once.
    counts, replacements = TrainingClassCounts(cfg), []
    calibrations, guards = calibrations_from_config(cfg, predictors, counts)
    second_stage = get_second_stage(cfg.MODEL.LOGN.SECOND_STAGE)
    # Detectron2's predictor has already drawn its initial weights. Drawing more would change all
    # modules built later, so that the same seed would give another model than Detectron2's.
    with torch.random.fork_rng(devices=[]):
        for predictor, calibration, guard in zip(predictors, calibrations, guards):
            replacement = LogNFastRCNNOutputLayers(
                cfg,
                ShapeSpec(channels=predictor.cls_score.in_features),
                box2box_transform=predictor.box2box_transform,
                counts=counts,
                calibration=calibration,
                weights_check=guard,
            )
            _copy_weights(predictor, replacement)
            if second_stage is not None and second_stage.scales:
                add_class_scales(replacement)
            replacements.append(replacement)
    return replacements


def _copy_weights(predictor: FastRCNNOutputLayers, replacement: LogNFastRCNNOutputLayers) -> None:
    """Copy the common weights; a loss may have other outputs and initial biases of its own."""
    own, theirs = replacement.state_dict(), predictor.state_dict()
    if replacement.loss is not None:
        theirs.pop("cls_score.bias")
        # A loss with other outputs has its own classifier; the layer of deltas is common to both.
        theirs = {name: each for name, each in theirs.items() if each.shape == own[name].shape}
    replacement.load_state_dict({**own, **theirs})
