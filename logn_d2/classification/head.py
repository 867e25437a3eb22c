"""The classifier of whole images: a predictor without boxes and without background.

Shapes: N images, K classes, D feature channels; logits (N, K) in nats.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from detectron2.structures import Instances
from torch import Tensor, nn

from ..core import AffineCalibration, ClassCounts, ClassificationLoss
from ..core.losses import build_loss_without_background
from ..modeling.calibrated import CalibratedPredictor

Logits = tuple[Tensor]
"""Logits (N, K), in a tuple as box predictors return them."""


class ClassifierHead(CalibratedPredictor, nn.Module):
    """Computes logits from features, their loss, and calibrated class probabilities.

    It has the methods of a box predictor, with each image as one "proposal", so that recording,
    `attach`, statistics and second stages work as for detectors.

    Args:
        in_features (int): D.
        num_classes (int): K.
        classifier (str): "linear", or "cosine" as in the paper.
        temperature (float): temperature of the cosine classifier.
        loss (str or ClassificationLoss): a loss of K outputs; see `build_loss_without_background`.
        counts (ClassCounts): counts of the training set, if a loss given by name needs them; or a
            function that returns them.
        dropout (float): share of the features that training sets to 0, in [0, 1).
        calibration (AffineCalibration): K classes, background "none"; None for none.
        weights_check (Callable): see `CalibratedPredictor`.

    Raises:
        KeyError: an unknown loss.
        ValueError: an unknown classifier, or a loss or calibration for another number of classes.

    Example:
        >>> import torch
        >>> head = ClassifierHead(8, num_classes=3)
        >>> head.predict_probs(head(torch.zeros(2, 8)), [range(1)] * 2)[1].shape
        torch.Size([1, 3])
    """

    background = "none"
    classifies_images = True

    def __init__(
        self,
        in_features: int,
        *,
        num_classes: int,
        classifier: str = "linear",
        temperature: float = 20.0,
        loss: str | ClassificationLoss = "cross_entropy",
        counts: ClassCounts | Callable[[], ClassCounts] | None = None,
        dropout: float = 0.0,
        calibration: AffineCalibration | None = None,
        weights_check: Callable[[nn.Module, AffineCalibration], None] | None = None,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.dropout = nn.Dropout(dropout)
        self.cls_score = nn.Linear(in_features, num_classes)
        if isinstance(loss, str):
            loss = build_loss_without_background(loss or "cross_entropy", num_classes, counts)
        self._take_parts(classifier, temperature, loss, calibration, weights_check)

    def forward(self, features: Tensor) -> Logits:
        """Raw logits of features (N, D)."""
        return (self.cls_score(self.dropout(features)),)

    def losses(self, predictions: Logits, images: Sequence[Instances]) -> dict[str, Tensor]:
        """The training loss.

        Args:
            predictions (tuple[Tensor]): logits (N, K).
            images (Sequence[Instances]): N images, each with one entry of "gt_classes".

        Returns:
            dict[str, Tensor]: "loss_cls".
        """
        return {"loss_cls": self.loss(predictions[0], Instances.cat(list(images)).gt_classes)}

    def predict_probs(self, predictions: Logits, images: Sequence[Instances]) -> tuple[Tensor, ...]:
        """Calibrated class probabilities.

        Args:
            predictions (tuple[Tensor]): raw logits (N, K).
            images (Sequence[Instances]): N images.

        Returns:
            tuple[Tensor, ...]: N tensors (1, K) in [0, 1].
        """
        return self.uncalibrated_probs(self.calibrated(predictions), images)

    def uncalibrated_probs(
        self, predictions: Logits, images: Sequence[Instances]
    ) -> tuple[Tensor, ...]:
        """Class probabilities of the given logits, without a calibration."""
        # The loss defines them: the scores of some losses do not sum to 1.
        return self.loss.scores(predictions[0]).split([len(each) for each in images])
