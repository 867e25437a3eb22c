"""LogN's inverse in training (Zhao et al., IJCV 2024, Eq. 3), with raw logits at test.

Shapes: R RoIs, K foreground classes; logits (R, K + 1), background last.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...errors import check_choice
from .base import IMPOSSIBLE, SoftmaxLoss, check_number
from .distributed import sum_over_processes
from .registry import LOSS_REGISTRY


@LOSS_REGISTRY.register("inverse_logn")
class InverseLogN(SoftmaxLoss):
    """Cross-entropy of ``sigma_c z_c + mu_c - beta``, with moving averages of the logits.

    The loss sees logits that LogN would map back to z, so z needs no correction at test. Mean mu
    and standard deviation sigma are moving averages over the batches of all processes, updated with
    a batch before its loss; no gradient flows through them. They start at 0 and 1, where the loss
    is plain cross-entropy. The momentum is our choice: the paper does not give one.

    Args:
        num_classes (int): K.
        columns (str): "foreground" leaves background unchanged, "all" treats it as a class.
        beta (str): subtracted from the foreground: "none" for 0, or "min", the smallest mean of a
            class. As we read the paper, the first helps and the second hurts.
        momentum (float): momentum of the moving averages, in (0, 1].

    Attributes:
        mean (Tensor): (K + 1,) float64 buffer.
        var (Tensor): (K + 1,) float64 buffer, within batches, divided by R - 1.

    Raises:
        ValueError: an unknown word, or a momentum outside its range.

    Example:
        >>> loss = InverseLogN(num_classes=1, momentum=1.0)
        >>> logits = torch.tensor([[2.0, 0.0], [6.0, 0.0]])
        >>> _ = loss(logits, torch.tensor([0, 1]))
        >>> loss.mean.tolist(), loss.var.tolist()
        ([4.0, 0.0], [8.0, 0.0])
    """

    absent = (IMPOSSIBLE,)
    mean: Tensor
    var: Tensor

    def __init__(
        self,
        num_classes: int,
        *,
        columns: str = "foreground",
        beta: str = "none",
        momentum: float = 1e-4,
    ) -> None:
        super().__init__(num_classes)
        check_choice("columns", columns, ("foreground", "all"))
        check_choice("beta", beta, ("none", "min"))
        check_number("momentum", momentum, "(0, 1]")
        self.columns = columns
        self.beta = beta
        self.momentum = momentum
        # float64: with a momentum of 1e-4, float32 would round small steps to nothing.
        self.register_buffer("mean", torch.zeros(num_classes + 1, dtype=torch.float64))
        self.register_buffer("var", torch.ones(num_classes + 1, dtype=torch.float64))

    def roi_losses(self, logits: Tensor, targets: Tensor) -> Tensor:
        if self.training:
            self._observe(logits.detach())
        return super().roi_losses(logits, targets)

    def training_logits(self, logits: Tensor) -> Tensor:
        # The clamp is that of the released LogN code. A clone, because the next lines write into
        # it.
        scale, shift = self.var.clamp(min=1e-11).sqrt(), self.mean.clone()
        if self.beta == "min":
            shift[:-1] -= self.mean[:-1].min()
        if self.columns == "foreground":
            scale[-1], shift[-1] = 1.0, 0.0
        return scale.to(logits) * logits + shift.to(logits)

    @torch.no_grad()
    def _observe(self, logits: Tensor) -> None:
        logits = logits.double()
        total = logits.sum(dim=0)
        number = torch.full_like(total, len(logits))
        # Mean first, then squares about it: two small reductions instead of a cancelling
        # difference.
        total, number = sum_over_processes(torch.stack([total, number]))
        if number[0] < 2:  # no variance
            return
        mean = total / number
        var = sum_over_processes((logits - mean).square().sum(dim=0)) / (number - 1)
        self.mean += self.momentum * (mean - self.mean)
        self.var += self.momentum * (var - self.var)
