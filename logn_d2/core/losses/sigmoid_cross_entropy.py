"""Binary cross-entropy of every class against all else.

Shapes: R RoIs, K foreground classes; logits (R, K + 1), of which the last column is not used.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from .base import SigmoidLoss
from .registry import LOSS_REGISTRY


def binary_cross_entropy(logits: Tensor, positives: Tensor) -> Tensor:
    """Elementwise binary cross-entropy with logits; ``positives`` may be bool."""
    return F.binary_cross_entropy_with_logits(logits, positives.to(logits), reduction="none")


@LOSS_REGISTRY.register("sigmoid_cross_entropy")
class SigmoidCrossEntropy(SigmoidLoss):
    """``(1 / R) sum_i sum_c BCE(z_ic, 1[y_i = c])``, as Detectron2's USE_SIGMOID_CE.

    Args:
        num_classes (int): K.
        prior (float): initial probability of each class; Detectron2's is 0.5, a bias of 0, with
            which the first loss is K ln 2.
        unused_column (bool): see `SigmoidLoss`.

    Example:
        >>> import torch
        >>> round(SigmoidCrossEntropy(1)(torch.zeros(2, 2), torch.tensor([0, 1])).item(), 4)
        0.6931
    """

    def __init__(self, num_classes: int, *, prior: float = 0.5, unused_column: bool = True) -> None:
        super().__init__(num_classes, prior=prior, unused_column=unused_column)

    def entries(self, logits: Tensor, positives: Tensor, targets: Tensor) -> Tensor:
        return binary_cross_entropy(logits, positives)
