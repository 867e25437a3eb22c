"""Losses with a sigmoid for each class and one for background, whose scores are products of two.

Shapes: R RoIs, K foreground classes; logits (R, K + 1), the last one a detector of background.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .base import RoIWiseLoss


class OneVsAllLoss(RoIWiseLoss):
    """K + 1 outputs, the last one a detector of background that affects every score.

    Example:
        >>> class Free(OneVsAllLoss):
        ...     def roi_losses(self, logits, targets):
        ...         return logits.sum(dim=1) * 0
        >>> Free(num_classes=1).scores(torch.zeros(1, 2)).tolist()
        [[0.25, 0.5]]
    """

    @property
    def num_outputs(self) -> int:
        """K + 1."""
        return self.num_classes + 1

    def probabilities(self, logits: Tensor) -> Tensor:
        """(R, K + 1): ``sigmoid(z_c) (1 - sigmoid(z_bg))``, and ``sigmoid(z_bg)``."""
        background = logits[:, -1:]
        foreground = logits[:, :-1].sigmoid() * (-background).sigmoid()
        return torch.cat([foreground, background.sigmoid()], dim=1)

    def _calibration_obstacle(self) -> str:
        return "each score is a product of two sigmoids"
