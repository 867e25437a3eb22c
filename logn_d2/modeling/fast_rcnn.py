"""Detectron2's box predictor with a choice of classifier and loss, and with calibrated logits.

Shapes: R RoIs, K foreground classes; logits (R, C) in nats, where C = K + 1, background last, if
the loss has no other outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling.roi_heads.fast_rcnn import FastRCNNOutputLayers
from detectron2.structures import Instances
from torch import Tensor, nn

from ..core import AffineCalibration, ClassificationLoss, CountsSource, build_loss
from ..errors import UserError
from .build import TrainingClassCounts
from .calibrated import CalibratedPredictor
from .topk_inference import fast_rcnn_inference_exact

Predictions = tuple[Tensor, Tensor]
"""Logits (R, C) and box deltas, the output of a predictor's forward."""


class LogNFastRCNNOutputLayers(CalibratedPredictor, FastRCNNOutputLayers):
    """Detectron2's predictor with any classification loss, and calibrated class probabilities.

    The calibration acts only in `predict_probs`. With a linear classifier, Detectron2's loss and no
    calibration, every output equals the parent's bit for bit. `torch.jit.script` supports only the
    parent: script the folded model, whose heads are Detectron2's (see `logn_d2.fold`).

    Args:
        input_shape (ShapeSpec or int): shape of the features.
        classifier (str): "linear", or "cosine" as in the paper.
        temperature (float): temperature of the cosine classifier.
        loss (str or ClassificationLoss): replaces Detectron2's loss, for example "seesaw(p=0.8)";
            see
            `logn_d2.core.build_loss`. "" or None for Detectron2's own.
        counts (ClassCounts): counts of the training set, or a function that returns them, for a
            loss given by name that needs them.
        calibration (AffineCalibration): K classes, background last; None for none.
        weights_check (Callable): called with this predictor and the calibration before each
            calibrated output, see `WeightsGuard`; raises if the calibration belongs to other
            weights.
        **kwargs: arguments of FastRCNNOutputLayers.

    Raises:
        KeyError: an unknown loss.
        ValueError: an unknown classifier, or a loss or calibration that does not fit.
    """

    @configurable
    def __init__(
        self,
        input_shape: ShapeSpec | int,
        *,
        classifier: str = "linear",
        temperature: float = 20.0,
        loss: str | ClassificationLoss | None = None,
        counts: CountsSource = None,
        calibration: AffineCalibration | None = None,
        weights_check: Callable[[nn.Module, AffineCalibration], None] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(input_shape, **kwargs)
        if isinstance(loss, str):
            loss = build_loss(loss, self.num_classes, counts) if loss else None
        self._take_parts(classifier, temperature, loss, calibration, weights_check)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> dict[str, Any]:
        # No calibration here: only the RoI heads know the cascade stage, and thus the calibration.
        return {
            **super().from_config(cfg, input_shape),
            "classifier": cfg.MODEL.LOGN.CLASSIFIER,
            "temperature": cfg.MODEL.LOGN.TEMPERATURE,
            "loss": cfg.MODEL.LOGN.LOSS,
            "counts": TrainingClassCounts(cfg),
        }

    def losses(self, predictions: Predictions, proposals: list[Instances]) -> dict[str, Tensor]:
        """The parent's losses, with our classification loss.

        Args:
            predictions (tuple[Tensor, Tensor]): logits (R, C) and deltas.
            proposals (list[Instances]): N images, with "gt_classes", and "gt_boxes" if they have
                objects.

        Returns:
            dict[str, Tensor]: "loss_cls" and the parent's other losses.
        """
        if self.loss is None:
            return super().losses(predictions, proposals)
        # Detached below: the parent's classification loss is not used, and would keep a second
        # graph.
        logits, *others = predictions
        # The parent logs accuracies from K + 1 columns of scores; its own loss is overwritten
        # below.
        losses = super().losses((self.loss.scores(logits.detach()), *others), proposals)
        targets = _concatenated([each.gt_classes for each in proposals], logits)
        objects = _matched_objects(proposals) if self.loss.needs_objects else None
        loss = self.loss(logits, targets, objects)
        return {**losses, "loss_cls": loss * self.loss_weight.get("loss_cls", 1.0)}

    def uncalibrated_probs(
        self, predictions: Predictions, proposals: list[Instances]
    ) -> tuple[Tensor, ...]:
        """Class probabilities of the given logits: the loss's scores, or the parent's."""
        if self.loss is None:
            return super().predict_probs(predictions, proposals)
        # As the parent: one tensor for each image.
        return self.loss.scores(predictions[0]).split([len(each) for each in proposals])

    def predict_probs(
        self, predictions: Predictions, proposals: list[Instances]
    ) -> tuple[Tensor, ...]:
        """Calibrated class probabilities.

        Args:
            predictions (tuple[Tensor, Tensor]): raw logits (R, C) and deltas.
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

    def _check_loss(self, loss: ClassificationLoss | None) -> None:
        if loss is not None and getattr(self, "use_sigmoid_ce", False):  # releases after 0.6
            raise UserError(
                f"Detectron2's sigmoid cross-entropy and our {type(loss).__name__} are both "
                "selected. Set MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE (and USE_FED_LOSS) to False, or "
                "leave MODEL.LOGN.LOSS empty."
            )
        super()._check_loss(loss)


def _concatenated(labels: Sequence[Tensor], like: Tensor) -> Tensor:
    """Labels of all images, (R,); empty without images."""
    return torch.cat([torch.zeros(0, dtype=torch.int64, device=like.device), *labels])


def _matched_objects(proposals: Sequence[Instances]) -> Tensor | None:
    """Object number in the batch of each RoI, (R,).

    Detectron2 copies only the box of the matched object to each RoI, not its index, so objects of
    one class with identical boxes count as one.
    """
    keys = []
    for index, each in enumerate(proposals):
        # Without objects in an image, RoIs have no gt_boxes. All are background then, and their
        # numbers are not used.
        boxes = each.gt_boxes if each.has("gt_boxes") else each.proposal_boxes
        image = boxes.tensor.new_full((len(each), 1), index)
        # Image, class and box in one row, for a single `unique` over the batch.
        keys.append(torch.cat([image, each.gt_classes[:, None].to(image), boxes.tensor], dim=1))
    return torch.cat(keys).unique(dim=0, return_inverse=True)[1] if keys else None
