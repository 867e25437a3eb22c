"""Balanced group softmax (Li et al., CVPR 2020; https://github.com/FishYuLi/BalancedGroupSoftmax).

Shapes: R RoIs, K foreground classes, G groups of classes; logits (R, K + 2 + G): background,
foreground, then the groups, each with "others" first.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from .base import ClassificationLoss, is_foreground
from .counts import CountBuffers, CountsSource
from .registry import LOSS_REGISTRY

__all__ = ["BalancedGroupSoftmax"]


@LOSS_REGISTRY.register("bags")
class BalancedGroupSoftmax(ClassificationLoss):
    """Classes compete only with classes of about as many training instances.

    One softmax decides background against foreground, and each group has a softmax over its classes
    and "others". An RoI is "others" in the groups that its class is not in. Of those, a group's
    loss has at most ``others_ratio`` for each member, drawn at random, and none in a batch without
    members. Each group's loss is a mean over its RoIs; they are added.

    Columns are in the official order: background, foreground, then for each group "others" and its
    classes in their order.

    Args:
        num_classes (int): K.
        counts (ClassCounts): of the training set.
        edges (Sequence[int]): instances that divide the groups; a class with as many as an edge is
            in the group above it.
        others_ratio (float): see above.

    Attributes:
        generator (torch.Generator): of the drawing; None for PyTorch's own.

    Example:
        >>> import numpy as np
        >>> from logn_d2.core import ClassCounts
        >>> counts = ClassCounts(("cat", "axolotl"), np.array([90, 1]), np.array([99, 1]), 100)
        >>> loss = BalancedGroupSoftmax(2, counts=counts)
        >>> loss.num_outputs, [group.tolist() for group in loss.groups()]
        (8, [[1], [0], [], []])
    """

    needs_counts = True

    def __init__(
        self,
        num_classes: int,
        *,
        counts: CountsSource = None,
        edges: Sequence[int] = (10, 100, 1000),
        others_ratio: float = 8.0,
    ) -> None:
        super().__init__(num_classes)
        self.counts = CountBuffers(num_classes, counts)
        self.edges = tuple(edges)
        self.others_ratio = others_ratio
        self.generator: torch.Generator | None = None
        if list(self.edges) != sorted(set(self.edges)):
            raise ValueError(f"edges are {self.edges}, expected ascending numbers of instances.")

    @property
    def num_outputs(self) -> int:
        """K + 2 + G: the classes, background and foreground, "others" of each group."""
        return self.num_classes + 2 + len(self.edges) + 1

    def groups(self) -> list[Tensor]:
        """G tensors: the classes of each group, ascending; some may be empty.

        Raises:
            ValueError: the class counts are not known.
        """
        count = self.counts.of("instance")
        edges = torch.tensor(self.edges, dtype=count.dtype, device=count.device)
        group = torch.bucketize(count, edges, right=True)
        return [(group == index).nonzero().flatten() for index in range(len(self.edges) + 1)]

    def scores(self, logits: Tensor) -> Tensor:
        """(R, K + 1): ``softmax_group(z)_c P(foreground)``, and ``P(background)``."""
        background, foreground = logits[:, :2].softmax(dim=1).split(1, dim=1)
        parts = list(self._parts(logits))
        scores = [part.softmax(dim=1)[:, 1:] * foreground for part, _ in parts]
        place = torch.cat([classes for _, classes in parts]).argsort()
        return torch.cat([torch.cat(scores, dim=1)[:, place], background], dim=1)

    def loss(self, logits: Tensor, targets: Tensor, objects: Tensor | None) -> Tensor:
        foreground = is_foreground(targets, self.num_classes)
        total = F.cross_entropy(logits[:, :2], foreground.long(), reduction="sum")
        total = total / max(len(targets), 1)
        for part, classes in self._parts(logits):
            place = torch.zeros(self.num_classes + 1, dtype=torch.int64, device=targets.device)
            place[classes] = torch.arange(1, len(classes) + 1, device=targets.device)
            labels = place[targets]
            chosen = self._choose(labels > 0)
            losses = F.cross_entropy(part[chosen], labels[chosen], reduction="sum")
            total = total + losses / max(len(chosen), 1)
        return total

    def _parts(self, logits: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Each group's logits, "others" first, and its classes."""
        start = 2
        for classes in self.groups():
            end = start + 1 + len(classes)
            yield logits[:, start:end], classes
            start = end

    def _choose(self, members: Tensor) -> Tensor:
        """The RoIs in a group's loss: its members and some others; none without members."""
        inside, others = members.nonzero().flatten(), (~members).nonzero().flatten()
        number = min(int(self.others_ratio * len(inside)), len(others))
        order = torch.randperm(len(others), generator=self.generator, device=others.device)
        return torch.cat([inside, others[order[:number]]])

    def _calibration_obstacle(self) -> str:
        return "each group of classes has a softmax of its own"
