"""Focal loss (Lin et al., ICCV 2017) in the box head.

Shapes: R RoIs, K foreground classes; logits (R, K + 1), of which the last column is not used.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ...errors import check_choice
from .base import SigmoidLoss, check_number, is_foreground
from .registry import LOSS_REGISTRY


@LOSS_REGISTRY.register("focal")
class FocalLoss(SigmoidLoss):
    """``-a_t (1 - p_t)^gamma log p_t``, summed over classes.

    Args:
        num_classes (int): K.
        gamma (float): strength of the down-weighting of easy examples; 0 for none.
        alpha (float): weight of positives, 1 - alpha that of negatives; below 0 for neither.
        divide_by (str): "rois" for R, as two-stage detectors do, or "positives", as dense ones do.
        prior (float): initial probability of each class (the paper's pi).
        unused_column (bool): see `SigmoidLoss`.

    Raises:
        ValueError: a value outside its range.

    Example:
        >>> plain = FocalLoss(1, gamma=0.0, alpha=-1.0)
        >>> round(plain(torch.zeros(2, 2), torch.tensor([0, 1])).item(), 4)
        0.6931
    """

    def __init__(
        self,
        num_classes: int,
        *,
        gamma: float = 2.0,
        alpha: float = 0.25,
        divide_by: str = "rois",
        prior: float = 0.01,
        unused_column: bool = True,
    ) -> None:
        super().__init__(num_classes, prior=prior, unused_column=unused_column)
        check_number("gamma", gamma, "[0, inf)")
        check_number("alpha", alpha, "(-inf, 1]")
        check_choice("divide_by", divide_by, ("rois", "positives"))
        self.gamma = gamma
        self.alpha = alpha
        self.divide_by = divide_by

    def loss(self, logits: Tensor, targets: Tensor, objects: Tensor | None) -> Tensor:
        if self.divide_by == "rois":
            return super().loss(logits, targets, objects)
        # Nearly all anchors of a dense detector are background; dividing by their number would
        # leave next to nothing of the loss.
        positives = is_foreground(targets, self.num_classes).sum().clamp(min=1)
        return self.roi_losses(logits, targets).sum() / positives

    def entries(self, logits: Tensor, positives: Tensor, targets: Tensor) -> Tensor:
        signed = torch.where(positives, -logits, logits)
        # -log p_t for both signs in one stable function.
        cross_entropy = F.softplus(signed)
        # (1 - p_t)^gamma by its logarithm: a power of 0 has no gradient for gamma < 1.
        entries = (self.gamma * (signed - cross_entropy)).exp() * cross_entropy
        if self.alpha >= 0:
            entries = torch.where(positives, self.alpha, 1 - self.alpha) * entries
        return entries
