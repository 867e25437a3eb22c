"""Losses of classifiers without background, whose inputs all belong to a class: whole images.

Each loss of the registry is written for K classes and background. Its form for K classes alone is
the same code, with background ruled out.

Shapes: R inputs, K classes; logits (R, K), labels in [0, K).
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...errors import UserError
from ...frequency import CountsSource
from .base import ClassificationLoss
from .registry import LOSS_REGISTRY, build_loss, parse_loss


class LossWithoutBackground(ClassificationLoss):
    """A loss of K classes made from a loss with background.

    Where background is one more class to the loss, the last of the K takes its place. Elsewhere the
    logits get constant columns (`ClassificationLoss.absent`) with which the probability of
    background is exactly 0, so nothing is learned about it.

    Args:
        loss (ClassificationLoss): a loss for K classes; for K - 1 if its ``background_is_class``.

    Raises:
        ValueError: the loss has no form without background.

    Example:
        >>> from logn_d2.core.losses import SeesawLoss
        >>> loss = LossWithoutBackground(SeesawLoss(num_classes=2))
        >>> loss.num_outputs, loss.scores(torch.zeros(1, 2)).tolist()
        (2, [[0.5, 0.5]])
    """

    def __init__(self, loss: ClassificationLoss) -> None:
        super().__init__(loss.num_classes + loss.background_is_class)
        _check_form(type(loss), type(loss).__name__)
        self.inner = loss
        # The inner loss answers for its own columns; this one, which has no background, for both.
        loss._inside_another = not loss.background_is_class
        self.initial_bias = loss.initial_bias

    @property
    def num_outputs(self) -> int:
        """K."""
        return self.num_classes

    def loss(self, logits: Tensor, targets: Tensor, objects: Tensor | None = None) -> Tensor:
        """The mean over the inputs; 0, with a gradient of zeros, where there are none."""
        # `loss`, not the call: the outer call has checked and widened the logits already.
        return self.inner.loss(self._with_absent(logits), targets, None)

    def probabilities(self, logits: Tensor) -> Tensor:
        """(R, K) as the method defines them; rows sum to 1 for softmax methods."""
        return self.inner.probabilities(self._with_absent(logits))[:, : self.num_classes]

    def _with_absent(self, logits: Tensor) -> Tensor:
        missing = self.inner.num_outputs - self.num_classes
        if missing == 0:
            return logits
        columns = logits.new_tensor(self.inner.absent[:missing]).expand(len(logits), missing)
        return torch.cat([logits, columns], dim=1)

    def _calibration_obstacle(self) -> str:
        # Without background, no product of sigmoids and no second softmax remains.
        return self.inner._calibration_obstacle() if self.inner.background_is_class else ""


def build_loss_without_background(
    text: str,
    num_classes: int,
    counts: CountsSource = None,
) -> LossWithoutBackground:
    """Build a loss of K outputs from its text.

    Args:
        text (str): see `parse_loss`.
        num_classes (int): K, at least 2.
        counts (ClassCounts): see `build_loss`.

    Raises:
        KeyError: unknown name; the message lists the known ones.
        ValueError: wrong options, fewer than two classes, or a loss without such a form.

    Example:
        >>> loss = build_loss_without_background("logit_norm(tau=0.04)", num_classes=3)
        >>> logits, labels = torch.randn(4, 3), torch.tensor([0, 1, 2, 0])
        >>> unit = torch.nn.functional.normalize(logits) / 0.04
        >>> torch.allclose(loss(logits, labels), torch.nn.functional.cross_entropy(unit, labels))
        True
    """
    name, _ = parse_loss(text)
    entry = LOSS_REGISTRY.get(name)
    _check_form(entry, name)
    if num_classes < 2:
        raise UserError(
            f"A classifier of {num_classes} classes has nothing to decide; expected at least 2."
        )
    return LossWithoutBackground(build_loss(text, num_classes - entry.background_is_class, counts))


def _check_form(entry: type[ClassificationLoss], name: str) -> None:
    if not _has_form(entry):
        known = ", ".join(sorted(n for n in LOSS_REGISTRY if _has_form(LOSS_REGISTRY.get(n))))
        raise UserError(
            f"The loss '{name}' has no form without background and can't train an image "
            f"classifier. Losses that can: {known}."
        )


def _has_form(entry: type[ClassificationLoss]) -> bool:
    return entry.background_is_class or entry.absent is not None
