"""The box predictor: Detectron2's, with a choice of classifier and a calibration of its logits.

Shapes: R RoIs, K foreground classes; logits (R, K + 1), background last, in nats.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling.roi_heads.fast_rcnn import FastRCNNOutputLayers
from detectron2.structures import Instances
from torch import Tensor, nn

from ..core import AffineCalibration
from .cosine import CosineLinear
from .topk_inference import fast_rcnn_inference_exact

__all__ = ["LogNFastRCNNOutputLayers", "Predictions"]

Predictions = tuple[Tensor, Tensor]
"""Logits (R, K + 1) and box deltas, as a predictor's forward returns them."""


class LogNFastRCNNOutputLayers(FastRCNNOutputLayers):
    """Detectron2's predictor whose class probabilities can be calibrated.

    Training is Detectron2's own: the calibration acts in `predict_probs` alone. With a linear
    classifier and no calibration every output equals the parent's, bit for bit.

    Args:
        input_shape (ShapeSpec or int): of the features.
        classifier (str): "linear", or "cosine" as in the paper.
        temperature (float): of the cosine classifier.
        calibration (AffineCalibration): K classes, background last; None for none.
        weights_check (Callable): called once with this predictor before its first calibrated
            output, when weights have been loaded; raises if the calibration is of other weights.
        **kwargs: of FastRCNNOutputLayers.

    Raises:
        ValueError: an unknown classifier, or a calibration for another number of classes.
    """

    calibration: AffineCalibration | None

    @configurable
    def __init__(
        self,
        input_shape: ShapeSpec | int,
        *,
        classifier: str = "linear",
        temperature: float = 20.0,
        calibration: AffineCalibration | None = None,
        weights_check: Callable[[nn.Module], None] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(input_shape, **kwargs)
        if classifier not in ("linear", "cosine"):
            raise ValueError(f"The classifier is {classifier!r}, expected 'linear' or 'cosine'.")
        if classifier == "cosine":
            linear = self.cls_score
            self.cls_score = CosineLinear(linear.in_features, linear.out_features, temperature)
        if calibration is not None and calibration.num_classes != self.num_classes:
            raise ValueError(
                f"The calibration '{calibration.name}' has {calibration.num_classes} classes, this "
                f"head has {self.num_classes}. Make it from this model's statistics."
            )
        # Registered also where there is none, so that it can come and go without a trace.
        self.register_module("calibration", calibration)
        self.weights_check = weights_check

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> dict[str, Any]:
        # Which cascade stage this is, and so which calibration it has, only the RoI heads know.
        return {
            **super().from_config(cfg, input_shape),
            "classifier": cfg.MODEL.LOGN.CLASSIFIER,
            "temperature": cfg.MODEL.LOGN.TEMPERATURE,
        }

    def calibrated(self, predictions: Predictions) -> Predictions:
        """The predictions with calibrated logits; the same ones where there is no calibration."""
        if self.calibration is None:
            return predictions
        if self.weights_check is not None:
            self.weights_check(self)
            self.weights_check = None
        logits, *others = predictions
        return (self.calibration(logits), *others)

    def uncalibrated_probs(
        self, predictions: Predictions, proposals: list[Instances]
    ) -> tuple[Tensor, ...]:
        """The parent's `predict_probs`: of the logits as they are given."""
        return super().predict_probs(predictions, proposals)

    def predict_probs(
        self, predictions: Predictions, proposals: list[Instances]
    ) -> tuple[Tensor, ...]:
        """Calibrated class probabilities.

        Args:
            predictions (tuple[Tensor, Tensor]): raw logits (R, K + 1) and deltas.
            proposals (list[Instances]): N images.

        Returns:
            tuple[Tensor, ...]: N tensors (Ri, K + 1) in [0, 1].
        """
        return self.uncalibrated_probs(self.calibrated(predictions), proposals)

    def inference(
        self, predictions: Predictions, proposals: list[Instances]
    ) -> tuple[list[Instances], list[Tensor]]:
        """The parent's detections, found faster; see `fast_rcnn_inference_exact`."""
        return fast_rcnn_inference_exact(
            self.predict_boxes(predictions, proposals),
            self.predict_probs(predictions, proposals),
            [each.image_size for each in proposals],
            self.test_score_thresh,
            self.test_nms_thresh,
            self.test_topk_per_image,
        )
