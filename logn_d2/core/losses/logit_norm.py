"""LogitNorm (Wei et al., ICML 2022), for out-of-distribution detection. It is not LogN.

No published detector uses it; the form for box heads is ours.

Shapes: R RoIs, K foreground classes; logits (R, K + 1), background last.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from ...errors import check_choice
from .base import SoftmaxLoss, check_number
from .registry import LOSS_REGISTRY


@LOSS_REGISTRY.register("logit_norm")
class LogitNorm(SoftmaxLoss):
    """Cross-entropy of ``z / (tau (|z| + eps))``: only the direction of the logits is trained.

    Their length is then free to tell known objects from unknown ones.

    Args:
        num_classes (int): K.
        tau (float): temperature; it limits the largest possible probability, and 0.2 is too large
            for 1,203 classes.
        eps (float): added to the length.
        test_scores (str): "normalized", the trained distribution, or "raw", the softmax of z, as
            the paper does at test. Average precision compares scores across images, where the
            length of raw logits is arbitrary.

    Raises:
        ValueError: an unknown word, or a value outside its range.

    Example:
        >>> import torch
        >>> logits, labels = torch.tensor([[1.0, -2.0]]), torch.tensor([0])
        >>> loss = LogitNorm(num_classes=1)
        >>> torch.allclose(loss(logits, labels), loss(7 * logits, labels))
        True
    """

    background_is_class = True

    def __init__(
        self,
        num_classes: int,
        *,
        tau: float = 0.04,
        eps: float = 1e-7,
        test_scores: str = "normalized",
    ) -> None:
        super().__init__(num_classes)
        check_choice("test_scores", test_scores, ("normalized", "raw"))
        check_number("tau", tau, "(0, inf)")
        check_number("eps", eps, "(0, inf)")
        self.tau = tau
        self.eps = eps
        self.test_scores = test_scores

    def training_logits(self, logits: Tensor) -> Tensor:
        """(R, K + 1) logits of length 1 / tau."""
        return logits / (self.tau * (logits.norm(dim=-1, keepdim=True) + self.eps))

    def probabilities(self, logits: Tensor) -> Tensor:
        """(R, K + 1) softmax of the normalised or of the raw logits."""
        if self.test_scores == "raw":
            return F.softmax(logits, dim=-1)
        return F.softmax(self.training_logits(logits), dim=-1)

    def _calibration_obstacle(self) -> str:
        if self.test_scores == "raw":
            return ""
        return "they are normalised after it (test_scores=raw scores the logits themselves)"
