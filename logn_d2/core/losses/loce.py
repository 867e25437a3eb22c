"""Equilibrium loss of LOCE (Feng, Zhong, Huang, ICCV 2021; https://github.com/fcjian/LOCE).

Shapes: R RoIs, K foreground classes; logits (R, K + 1), background last.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .base import IMPOSSIBLE, SoftmaxLoss, check_number, is_foreground
from .distributed import sum_over_processes
from .registry import LOSS_REGISTRY


@LOSS_REGISTRY.register("loce")
class EquilibriumLoss(SoftmaxLoss):
    """Cross-entropy of ``z + log m``, where m_c is the mean score that class c gets on its objects.

    A class that is recognised well must win by a larger margin. Before each step's loss, every
    object counts once, with the mean score v of its RoIs: for a class with k objects in the batch,
    ``m_c <- a^k m_c + (1 - a^k) mean(v)``, with the objects of all processes.

    Args:
        num_classes (int): K.
        momentum (float): a.
        background_score (float): m of background, constant.
        initial_score (float): m of the classes before their first object.

    Attributes:
        mean_score (Tensor): (K + 1,) float64 buffer, m.

    Example:
        >>> loss = EquilibriumLoss(num_classes=1)
        >>> _ = loss(torch.zeros(2, 2), torch.tensor([0, 1]))
        >>> [round(score, 3) for score in loss.mean_score.tolist()]
        [0.059, 0.01]
    """

    needs_objects = True
    absent = (IMPOSSIBLE,)
    mean_score: Tensor

    def __init__(
        self,
        num_classes: int,
        *,
        momentum: float = 0.9,
        background_score: float = 0.01,
        initial_score: float = 0.01,
    ) -> None:
        super().__init__(num_classes)
        check_number("momentum", momentum, "[0, 1)")
        check_number("background_score", background_score, "(0, 1]")  # their logarithms are taken
        check_number("initial_score", initial_score, "(0, 1]")
        self.momentum = momentum
        scores = torch.full((num_classes + 1,), initial_score, dtype=torch.float64)
        scores[-1] = background_score
        self.register_buffer("mean_score", scores)

    def loss(self, logits: Tensor, targets: Tensor, objects: Tensor | None) -> Tensor:
        """As `forward`; without ``objects`` each RoI counts as one of its own."""
        if self.training:
            self._observe(logits.detach(), targets, objects)
        return super().loss(logits, targets, objects)

    def training_logits(self, logits: Tensor) -> Tensor:
        return logits + self.mean_score.log().to(logits)

    @torch.no_grad()
    def _observe(self, logits: Tensor, targets: Tensor, objects: Tensor | None) -> None:
        sums = sum_over_processes(self._object_scores(logits, targets, objects))
        total, number = sums
        kept = self.momentum**number  # 1 where the class has no object
        mean = total / number.clamp(min=1)
        self.mean_score[:-1] = kept * self.mean_score[:-1] + (1 - kept) * mean

    def _object_scores(self, logits: Tensor, targets: Tensor, objects: Tensor | None) -> Tensor:
        """(2, K) float64: sum of the objects' scores, and number of objects."""
        foreground = is_foreground(targets, self.num_classes)
        labels = targets[foreground]
        scores = logits[foreground].double().softmax(dim=1).gather(1, labels[:, None])[:, 0]
        if objects is not None:
            # Renumbered, because only some objects have RoIs.
            _, objects = objects[foreground].unique(return_inverse=True)
            num_objects = int(objects.max()) + 1 if len(objects) else 0
            number = torch.bincount(objects, minlength=num_objects)
            # An object with many RoIs, a large one, would otherwise outweigh the others.
            scores = scores.new_zeros(num_objects).index_add(0, objects, scores) / number
            # All RoIs of an object have its label, so whichever is copied last is right.
            labels = labels.new_zeros(num_objects).index_copy(0, objects, labels)
        sums = scores.new_zeros(self.num_classes).index_add(0, labels, scores)
        return torch.stack([sums, torch.bincount(labels, minlength=self.num_classes).double()])
