"""Seesaw loss (Wang et al., CVPR 2021; https://github.com/open-mmlab/mmdetection).

Shapes: R RoIs, F of them foreground, K foreground classes; logits (R, K + 2): K classes, then
foreground, then background.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from .base import IMPOSSIBLE, RoIWiseLoss, check_number, is_foreground
from .distributed import sum_over_processes
from .registry import LOSS_REGISTRY


@LOSS_REGISTRY.register("seesaw")
class SeesawLoss(RoIWiseLoss):
    """Cross-entropy among classes with weights on the competitors, and foreground against the rest.

    The logit of competitor j of the true class i is raised by ``log S_ij``:

        S_ij = min(1, n_j / n_i)^p  max(1, sigma_j / max(sigma_i, eps))^q

    with n the number of sampled RoIs of each class so far, this batch included, and sigma the
    classes' softmax. Both parts of the loss are divided by R; background RoIs are in the second.

    Args:
        num_classes (int): K.
        p (float): mitigation: rarer competitors are punished less.
        q (float): compensation: competitors that are likelier than the truth are punished more.
        eps (float): lower bound of a probability that is divided by.

    Attributes:
        roi_count (Tensor): (K + 1,) int64 buffer, RoIs of each label so far, of all processes.

    Example:
        >>> loss = SeesawLoss(num_classes=3)
        >>> _ = loss(torch.zeros(2, 5), torch.tensor([1, 3]))
        >>> loss.roi_count.tolist()
        [0, 1, 0, 1]
    """

    absent = (0.0, IMPOSSIBLE)  # foreground and background
    roi_count: Tensor

    def __init__(
        self, num_classes: int, *, p: float = 0.8, q: float = 2.0, eps: float = 0.01
    ) -> None:
        super().__init__(num_classes)
        check_number("p", p, "[0, inf)")
        check_number("q", q, "[0, inf)")
        check_number("eps", eps, "(0, 1]")
        self.p = p
        self.q = q
        self.eps = eps
        self.register_buffer("roi_count", torch.zeros(num_classes + 1, dtype=torch.int64))

    @property
    def num_outputs(self) -> int:
        """K + 2."""
        return self.num_classes + 2

    def probabilities(self, logits: Tensor) -> Tensor:
        """(R, K + 1): ``softmax(z)_c P(foreground)``, and ``P(background)``."""
        classes, objectness = self._split(logits)
        foreground, background = objectness.softmax(dim=-1).split(1, dim=-1)
        return torch.cat([classes.softmax(dim=-1) * foreground, background], dim=-1)

    def roi_losses(self, logits: Tensor, targets: Tensor) -> Tensor:
        if self.training:
            counts = torch.bincount(targets, minlength=self.num_classes + 1)
            # Counted before use, so that no class of the batch has a count of 0.
            self.roi_count += sum_over_processes(counts)
        classes, objectness = self._split(logits)
        foreground = is_foreground(targets, self.num_classes)
        losses = F.cross_entropy(objectness, (~foreground).long(), reduction="none")
        labels = targets[foreground]
        adjusted = classes[foreground] + self._log_weights(classes[foreground].detach(), labels)
        of_classes = F.cross_entropy(adjusted, labels, reduction="none")
        # Both parts are divided by R, so they can share one vector over RoIs.
        return losses.index_add(0, foreground.nonzero().flatten(), of_classes)

    def _log_weights(self, logits: Tensor, labels: Tensor) -> Tensor:
        """(F, K) ``log S`` of each competitor; 0 at the true class."""
        # In logarithms, because log S is added to the logits: powers and products become sums.
        log_count = self.roi_count[:-1].clamp(min=1).to(logits).log()
        mitigation = (log_count - log_count[labels][:, None]).clamp(max=0)
        log_scores = logits.log_softmax(dim=1)
        own = log_scores.gather(1, labels[:, None]).clamp(min=math.log(self.eps))
        # The clamp is max(1, .) of the formula, in logarithms.
        compensation = (log_scores - own).clamp(min=0)
        return self.p * mitigation + self.q * compensation

    def _split(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        return logits[:, : self.num_classes], logits[:, self.num_classes :]

    def _calibration_obstacle(self) -> str:
        return "classes and background are not in one softmax"
