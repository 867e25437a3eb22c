"""Softmax cross-entropy, the loss of Fast R-CNN.

Shapes: R RoIs, K foreground classes; logits (R, K + 1), background last.
"""

from __future__ import annotations

from .base import SoftmaxLoss
from .registry import LOSS_REGISTRY


@LOSS_REGISTRY.register("cross_entropy")
class CrossEntropy(SoftmaxLoss):
    """Mean of ``-log softmax(z)_y`` over all RoIs.

    Args:
        num_classes (int): K.

    Example:
        >>> import torch
        >>> round(CrossEntropy(1)(torch.zeros(2, 2), torch.tensor([0, 1])).item(), 4)
        0.6931
    """

    background_is_class = True
