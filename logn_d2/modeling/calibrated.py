"""The common part of our predictors: a choice of classifier and loss, and calibrated logits.

Shapes: R inputs (regions or images), K foreground classes, C classifier outputs.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from ..core import AffineCalibration, ClassificationLoss
from ..core.affine import Background
from ..errors import UserError, check_choice
from .box_predictors import has_sigmoid_scores
from .cosine import CosineLinear


class CalibratedPredictor:
    """A mixin for an nn.Module with ``num_classes`` and a linear ``cls_score``.

    Attributes:
        background (str): position of the background column: "last", "first" or "none".
        loss (ClassificationLoss): None for the module's own.
        calibration (AffineCalibration): None for none.
        weights_check (Callable): called with the predictor and its calibration before each
            calibrated output, see `WeightsGuard`; raises if the calibration belongs to other
            weights.
    """

    background: Background = "last"
    num_classes: int
    cls_score: nn.Linear
    calibration: AffineCalibration | None
    loss: ClassificationLoss | None

    def _take_parts(
        self,
        classifier: str,
        temperature: float,
        loss: ClassificationLoss | None,
        calibration: AffineCalibration | None,
        weights_check: Callable[[nn.Module, AffineCalibration], None] | None,
    ) -> None:
        """The mixin's part of the constructor; see `LogNFastRCNNOutputLayers` for the arguments."""
        check_choice("The classifier", classifier, ("linear", "cosine"))
        # Before anything is built, so that the message names the loss and not a shape.
        self._check_loss(loss)
        self.register_module("loss", loss)
        self._build_classifier(classifier, temperature)
        self._check_calibration(calibration)
        # Registered even if None, so that attaching and detaching leave no trace.
        self.register_module("calibration", calibration)
        self.weights_check = weights_check

    def calibrated(self, predictions: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """The predictions with calibrated logits; unchanged without a calibration.

        Args:
            predictions (tuple[Tensor, ...]): logits (R, C) first.
        """
        if self.calibration is None:
            return predictions
        if self.weights_check is not None:
            self.weights_check(self, self.calibration)
        logits, *others = predictions
        return (self.calibration(logits), *others)

    def _build_classifier(self, classifier: str, temperature: float) -> None:
        """Replace the linear layer if another kind or number of outputs is needed."""
        linear = self.cls_score
        outputs = linear.out_features if self.loss is None else self.loss.num_outputs
        if classifier == "cosine":
            self.cls_score = CosineLinear(linear.in_features, outputs, temperature)
        elif outputs != linear.out_features:
            self.cls_score = nn.Linear(linear.in_features, outputs)
            nn.init.normal_(self.cls_score.weight, std=0.01)  # as Detectron2
        if self.loss is not None:
            # Sigmoid losses start from rare positives: with a bias of 0 the first loss would be K
            # ln 2.
            nn.init.constant_(self.cls_score.bias, self.loss.initial_bias)

    def _check_loss(self, loss: ClassificationLoss | None) -> None:
        if loss is not None and loss.num_classes != self.num_classes:
            raise UserError(
                f"The {type(loss).__name__} is for {loss.num_classes} classes, this head has "
                f"{self.num_classes}. Build it with num_classes={self.num_classes}."
            )

    def _check_calibration(self, calibration: AffineCalibration | None) -> None:
        if calibration is None:
            return
        calibration.check_columns(self.num_classes, self.background)
        calibration.check_activation(has_sigmoid_scores(self))
        if self.loss is not None:
            self.loss.check_calibratable()
