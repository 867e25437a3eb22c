"""Equalization loss v2 (Tan et al., CVPR 2021, https://github.com/tztztztztz/eqlv2).

Shapes: R RoIs, K foreground classes; logits (R, K + 1), the last one a detector of background.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .base import IMPOSSIBLE, check_number, log_odds, one_hot
from .distributed import sum_over_processes
from .one_vs_all import OneVsAllLoss
from .registry import LOSS_REGISTRY
from .sigmoid_cross_entropy import binary_cross_entropy

# Ratio of a class that has had no gradient yet: all weights are then 1, as in the source.
NO_GRADIENT_YET = 100.0
EPSILON = 1e-10


@LOSS_REGISTRY.register("eql_v2")
class EqualizationLossV2(OneVsAllLoss):
    """Sigmoid cross-entropy whose weights keep positive and negative gradients in balance.

    With ``g_c`` the ratio of class c's accumulated positive to negative gradients and
    ``phi(x) = sigmoid(gamma (x - mu))``, negatives weigh ``phi(g_c)`` and positives
    ``1 + alpha (1 - phi(g_c))``; the background column weighs 1. The gradients of this step count
    from the next one on, summed over processes.

    Args:
        num_classes (int): K.
        gamma (float): steepness of phi.
        mu (float): the ratio at which phi is 1/2.
        alpha (float): largest additional weight of positives.
        prior (float): initial probability of each column.

    Attributes:
        positive_gradient (Tensor): (K,) float64 buffer.
        negative_gradient (Tensor): (K,) float64 buffer.

    Example:
        >>> loss = EqualizationLossV2(num_classes=1)
        >>> _ = loss(torch.zeros(2, 2), torch.tensor([0, 1]))
        >>> round(loss.ratio.item(), 4)
        1.0
    """

    absent = (IMPOSSIBLE,)
    positive_gradient: Tensor
    negative_gradient: Tensor

    def __init__(
        self,
        num_classes: int,
        *,
        gamma: float = 12.0,
        mu: float = 0.8,
        alpha: float = 4.0,
        prior: float = 0.001,
    ) -> None:
        super().__init__(num_classes)
        check_number("gamma", gamma, "[0, inf)")
        check_number("mu", mu, "(-inf, inf)")
        check_number("alpha", alpha, "[0, inf)")
        self.gamma = gamma
        self.mu = mu
        self.alpha = alpha
        self.initial_bias = log_odds(prior)
        for name in ("positive_gradient", "negative_gradient"):
            self.register_buffer(name, torch.zeros(num_classes, dtype=torch.float64))

    @property
    def ratio(self) -> Tensor:
        """(K,) float64 g, accumulated positive over negative gradients."""
        positive, negative = self.positive_gradient, self.negative_gradient
        ratio = positive / (negative + EPSILON)
        return torch.where(positive + negative > 0, ratio, NO_GRADIENT_YET)

    def roi_losses(self, logits: Tensor, targets: Tensor) -> Tensor:
        positives = one_hot(targets, self.num_outputs)
        # Before accumulation, so that this step is weighed by the gradients of earlier ones, as in
        # the source.
        weights = torch.where(positives, *self._weights(logits))
        if self.training:
            self._accumulate(logits.detach(), positives, weights)
        return (weights * binary_cross_entropy(logits, positives)).sum(dim=1)

    def _weights(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """(K + 1,) of positives and of negatives."""
        negative = ((self.ratio - self.mu) * self.gamma).sigmoid()
        positive = 1 + self.alpha * (1 - negative)
        one = torch.ones_like(negative[:1])
        return torch.cat([positive, one]).to(logits), torch.cat([negative, one]).to(logits)

    @torch.no_grad()
    def _accumulate(self, logits: Tensor, positives: Tensor, weights: Tensor) -> None:
        # |s(z) - t| is s(-z) where t is 1.
        gradient = weights * torch.where(positives, -logits, logits).sigmoid()
        of_positives = torch.where(positives, gradient, 0.0).sum(dim=0)
        sums = torch.stack([of_positives, torch.where(positives, 0.0, gradient).sum(dim=0)])
        # float64: the sums grow over the whole training, and late steps would be rounded away in
        # float32.
        positive, negative = sum_over_processes(sums[:, :-1].double())
        self.positive_gradient += positive
        self.negative_gradient += negative
