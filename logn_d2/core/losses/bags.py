"""Balanced group softmax (Li et al., CVPR 2020; https://github.com/FishYuLi/BalancedGroupSoftmax).

Shapes: R RoIs, K foreground classes, G groups of classes; logits (R, K + 2 + G): background,
foreground, then the groups, each with "others" first.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from ...errors import UserError
from .base import ClassificationLoss, check_number, is_foreground
from .counts import CountBuffers, CountsSource
from .registry import LOSS_REGISTRY


@LOSS_REGISTRY.register("bags")
class BalancedGroupSoftmax(ClassificationLoss):
    """Classes compete only with classes of about as many training instances.

    One softmax decides background against foreground, and each group has a softmax over its classes
    and "others". An RoI is "others" in the groups that its class is not in. Each group keeps at
    most ``others_ratio`` random "others" per member RoI; a group without members in the batch
    contributes nothing. Each group's loss is a mean over its RoIs, and these means are added.

    Columns are in the official order: background, foreground, then for each group "others" and its
    classes in their order.

    Args:
        num_classes (int): K.
        counts (ClassCounts): counts of the training set.
        edges (Sequence[int]): numbers of instances that separate the groups; a class with exactly
            that many is in the group above.
        others_ratio (float): see above.

    Attributes:
        generator (torch.Generator): source of the random "others"; None for PyTorch's default.

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
        _check_edges(edges)
        check_number("others_ratio", others_ratio, "[0, inf)")
        self.edges = tuple(edges)
        self.others_ratio = others_ratio
        self.generator: torch.Generator | None = None
        self._divided: tuple[Hashable, list[tuple[Tensor, Tensor]]] | None = None

    @property
    def num_outputs(self) -> int:
        """K + 2 + G: the classes, background and foreground, "others" of each group."""
        return self.num_classes + 2 + len(self.edges) + 1

    def groups(self) -> list[Tensor]:
        """G tensors: the classes of each group, ascending; some may be empty.

        Raises:
            ValueError: the class counts are not known.
        """
        return [classes for classes, _ in self._placed_groups()]

    def probabilities(self, logits: Tensor) -> Tensor:
        """(R, K + 1): ``softmax_group(z)_c P(foreground)``, and ``P(background)``."""
        background, foreground = logits[:, :2].softmax(dim=1).split(1, dim=1)
        parts = list(self._parts(logits))
        scores = [part.softmax(dim=1)[:, 1:] * foreground for part, _, _ in parts]
        # Groups are ordered by frequency, scores by class: argsort inverts the permutation.
        place = torch.cat([classes for _, classes, _ in parts]).argsort()
        return torch.cat([torch.cat(scores, dim=1)[:, place], background], dim=1)

    def loss(self, logits: Tensor, targets: Tensor, objects: Tensor | None) -> Tensor:
        foreground = is_foreground(targets, self.num_classes)
        total = F.cross_entropy(logits[:, :2], foreground.long(), reduction="sum")
        # The sum of an empty batch is 0 with a graph; "mean" would be NaN.
        total = total / max(len(targets), 1)
        for part, _, place in self._parts(logits):
            labels = place[targets]
            # Nearly all RoIs are "others" of a rare group; without a limit, it would learn only to
            # say so.
            chosen = self._choose(labels > 0)
            losses = F.cross_entropy(part[chosen], labels[chosen], reduction="sum")
            total = total + losses / max(len(chosen), 1)
        return total

    def _parts(self, logits: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Each group's logits, "others" first, its classes, and their places among them."""
        start = 2
        for classes, place in self._placed_groups():
            end = start + 1 + len(classes)
            yield logits[:, start:end], classes, place
            start = end

    def _placed_groups(self) -> list[tuple[Tensor, Tensor]]:
        """Each group's classes, and (K + 1,) the place of each label in it, 0 where it is not."""
        count = self.counts.of("instance")
        # `nonzero` waits for the GPU, so the groups are computed once and not at each step.
        key = self.counts.version, count.device
        if self._divided is None or self._divided[0] != key:
            self._divided = key, self._divide(count)
        return self._divided[1]

    def _divide(self, count: Tensor) -> list[tuple[Tensor, Tensor]]:
        edges = torch.tensor(self.edges, dtype=count.dtype, device=count.device)
        # `right` puts a count that equals an edge into the group above, as in the source: [10,
        # 100).
        group = torch.bucketize(count, edges, right=True)
        divided = []
        for index in range(len(self.edges) + 1):
            classes = (group == index).nonzero().flatten()
            # 0 is "others", also for background, the last label.
            place = count.new_zeros(self.num_classes + 1, dtype=torch.int64)
            place[classes] = torch.arange(1, len(classes) + 1, device=count.device)
            divided.append((classes, place))
        return divided

    def _choose(self, members: Tensor) -> Tensor:
        """The RoIs in a group's loss: its members and some others; none without members."""
        inside, others = members.nonzero().flatten(), (~members).nonzero().flatten()
        number = min(int(self.others_ratio * len(inside)), len(others))
        order = torch.randperm(len(others), generator=self.generator, device=others.device)
        return torch.cat([inside, others[order[:number]]])

    def _calibration_obstacle(self) -> str:
        return "each group of classes has a softmax of its own"


def _check_edges(edges: Sequence[int]) -> None:
    is_list = isinstance(edges, Sequence) and not isinstance(edges, str)
    for edge in edges if is_list else ():
        check_number("one of the edges", edge, "[0, inf)")
    if not is_list or list(edges) != sorted(set(edges)):
        raise UserError(f"edges are {edges!r}, expected a list of ascending numbers of instances.")
