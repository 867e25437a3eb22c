"""Mean posteriors over a data set, and the contribution of each column's own RoIs to statistics.

Shapes: R RoIs in a batch, C logit columns, G groups of images. Logits are in nats, posteriors in
[0, 1]; a label is the column of an RoI's class (the background's column for background).
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping

import torch
from torch import Tensor

from ..errors import UserError
from .moments import NUM_GROUPS, combined, image_group


class PosteriorMoments:
    """Exact sums of posteriors, over all RoIs and over each column's negatives, and label counts.

    The negatives of a column are the RoIs of any other class, including background. Most RoIs are
    negatives of most columns, so only the logit moments of the few others, the column's own RoIs,
    are kept: `StageStatistics.negatives` subtracts these from the moments of all RoIs.

    Weights, groups of images and merging are as in `LogitMoments`, next to which this is updated.
    Only sums per group are kept; totals are computed from the 20 groups when needed.

    Args:
        num_columns (int): C.
        device (torch.device or str): device of the state.

    Attributes:
        labelled (bool): whether all RoIs so far had labels; otherwise only the sums over all RoIs
            are valid.

    Example:
        >>> posteriors = PosteriorMoments(num_columns=2)
        >>> logits, labels = torch.tensor([[0.0, 0.0], [1.0, 1.0]]), torch.tensor([0, 1])
        >>> posteriors.update(logits, logits.softmax(dim=1), labels)
        >>> posteriors.mean("all").tolist(), posteriors.label_count.tolist()
        ([0.5, 0.5], [1, 1])
    """

    _ALL = ("roi_count", "roi_weight", "posterior_sum")
    _LABELLED = (
        "label_count", "own_weight", "own_mean", "own_sum_square", "negative_posterior_sum",
    )  # fmt: skip
    NAMES = (*_ALL, *_LABELLED)

    def __init__(self, num_columns: int, device: torch.device | str = "cpu") -> None:
        def zeros(*shape: int) -> Tensor:
            return torch.zeros(NUM_GROUPS, *shape, dtype=torch.float64, device=device)

        self.labelled = True
        self.roi_count = zeros().long()
        self.roi_weight = zeros()
        self.posterior_sum = zeros(num_columns)
        self.negative_posterior_sum = zeros(num_columns)
        self.label_count = torch.zeros(num_columns, dtype=torch.int64, device=device)
        self.own_weight = zeros(num_columns)
        self.own_mean = zeros(num_columns)
        self.own_sum_square = zeros(num_columns)

    @property
    def num_columns(self) -> int:
        """C."""
        return len(self.label_count)

    @torch.no_grad()
    def update(
        self,
        logits: Tensor,
        posteriors: Tensor,
        labels: Tensor | None = None,
        *,
        weight: float = 1.0,
        image: Hashable | None = None,
    ) -> None:
        """Add the RoIs of one image.

        Args:
            logits (Tensor): (R, C), finite, any floating type; R may be 0.
            posteriors (Tensor): (R, C), their softmax, or sigmoid if the scores are sigmoids.
            labels (Tensor): (R,) int64; values outside the columns belong to no class. None if
                unknown; there are then no statistics of negatives, even if later images have
                labels.
            weight (float): multiplicity of the image.
            image (Hashable): its id; see `LogitMoments.update`.

        Raises:
            ValueError: tensors that do not fit together.
        """
        expected = (len(logits), self.num_columns)
        if tuple(logits.shape) != expected or tuple(posteriors.shape) != expected:
            raise UserError(
                f"Expected logits and posteriors of one shape (R, {self.num_columns}), found "
                f"{tuple(logits.shape)} and {tuple(posteriors.shape)}."
            )
        if labels is not None and labels.shape != logits.shape[:1]:
            raise UserError(f"Expected {len(logits)} labels, found {tuple(labels.shape)}.")
        if len(logits) == 0:
            return
        device, group = self.roi_weight.device, image_group(image, logits)
        # float64, because sums run over millions of RoIs whose posteriors are mostly tiny.
        posteriors = posteriors.to(device, torch.float64)
        self.roi_count[group] += len(logits)
        self.roi_weight[group] += weight * len(logits)
        # Sticky: sums over negatives that miss some images would be of another set than the sums
        # over all.
        self.labelled = self.labelled and labels is not None
        if not self.labelled:
            self.posterior_sum[group] += weight * posteriors.sum(dim=0)
            return
        labels = labels.to(device)
        # Without a background column, the label K of background is no column, and the RoI is a
        # negative of all.
        rows = ((labels >= 0) & (labels < self.num_columns)).nonzero().flatten()
        # One (row, column) pair per labelled RoI: its own column, which is no negative there.
        own = (rows, labels[rows])
        self._add_own(group, own[1], logits[own].to(device, torch.float64), weight)
        # Not as a difference of two sums: for a class whose own posteriors dominate, cancellation
        # would leave few correct digits.
        negative = posteriors.index_put(own, posteriors.new_zeros(())).sum(dim=0)
        self.negative_posterior_sum[group] += weight * negative
        # The sum over all RoIs from its two parts, which saves a second pass over (R, C).
        added = self._total(own[1], posteriors[own])
        self.posterior_sum[group] += weight * (negative + added)

    def _add_own(self, group: int, columns: Tensor, logits: Tensor, weight: float) -> None:
        count = torch.bincount(columns, minlength=self.num_columns)
        # Two passes, as in `batch_moments`: sums of squares alone would cancel.
        mean = self._total(columns, logits) / count.clamp(min=1)
        square = self._total(columns, (logits - mean[columns]).square())
        rows = (self.own_weight[group], self.own_mean[group], self.own_sum_square[group])
        found = combined(rows, (count.double() * weight, mean, square * weight))
        for row, value in zip(rows, found, strict=True):
            # The rows are views of this group's sums, so that only these are written.
            row.copy_(value)
        self.label_count += count

    def _total(self, columns: Tensor, values: Tensor) -> Tensor:
        """Sum of the values in each column, (C,)."""
        # Sparse: one entry per RoI instead of an (R, C) mask.
        return self.roi_weight.new_zeros(self.num_columns).index_add_(0, columns, values)

    def mean(self, source: str) -> Tensor:
        """Mean posterior of each column.

        Args:
            source (str): "all" RoIs, or each column's "negatives".

        Returns:
            Tensor: (C,) float64; 0 for columns without RoIs.
        """
        weight, total = self.roi_weight.sum(), self.posterior_sum.sum(dim=0)
        if source == "negatives":
            # Integer counts decide whether there are negatives, because a difference of weights is
            # rounded.
            others = self.label_count < self.roi_count.sum()
            weight = torch.where(others, weight - self.own_weight.sum(dim=0), 0.0)
            total = self.negative_posterior_sum.sum(dim=0)
        return torch.where(weight > 0, total / torch.where(weight > 0, weight, 1.0), 0.0)

    def own(self) -> tuple[Tensor, Tensor, Tensor]:
        """Weight, mean and sum of squared deviations of the own RoIs' logits, (C,) each."""
        weight = self.own_weight.sum(dim=0)
        mean = (self.own_weight * self.own_mean).sum(dim=0) / torch.where(weight > 0, weight, 1.0)
        # Law of total variance: squares within groups, plus those between the groups' means.
        between = self.own_weight * (self.own_mean - mean).square()
        return weight, mean, (self.own_sum_square + between).sum(dim=0)

    def own_share(self) -> Tensor:
        """Share of each column's posterior that is on RoIs of its own label.

        Returns:
            Tensor: (C,) in [0, 1]; NaN for columns without posterior.
        """
        negative, total = (s.sum(dim=0) for s in (self.negative_posterior_sum, self.posterior_sum))
        return 1 - negative / total

    def without_group(self, group: int) -> PosteriorMoments:
        """These sums without one group of images; label counts are reduced like weights."""
        left = self.from_state_dict(self.state_dict())
        weight = self.own_weight.sum(dim=0)
        share = self.own_weight[group] / torch.where(weight > 0, weight, 1.0)
        # Label counts are not kept per group, since only this estimate of an error needs them.
        left.label_count = (self.label_count * (1 - share)).round().long()
        # A group with weight 0 takes no part in any total, so zeroing it is the subtraction,
        # without its rounding.
        for name in {*self.NAMES} - {"label_count"}:
            getattr(left, name)[group] = 0
        return left

    def merge(self, other: PosteriorMoments) -> PosteriorMoments:
        """Add the RoIs of ``other`` to this object, and return this object.

        Raises:
            ValueError: another number of columns.
        """
        if other.num_columns != self.num_columns:
            raise UserError(
                f"Posteriors of {other.num_columns} columns can't be merged into those of "
                f"{self.num_columns}. Merge only files of the same head."
            )
        other = other.to(self.roi_weight.device)
        self.labelled = self.labelled and other.labelled
        mine, theirs = (
            (each.own_weight, each.own_mean, each.own_sum_square) for each in (self, other)
        )
        self.own_weight, self.own_mean, self.own_sum_square = combined(mine, theirs)
        # All other sums simply add up; means do not.
        for name in {*self.NAMES} - {"own_weight", "own_mean", "own_sum_square"}:
            setattr(self, name, getattr(self, name) + getattr(other, name))
        return self

    def to(self, device: torch.device | str) -> PosteriorMoments:
        """A copy of these sums on a device."""
        return self.from_state_dict({k: v.to(device) for k, v in self.state_dict().items()})

    def state_dict(self) -> dict[str, Tensor]:
        """A copy of the complete state; parts that need labels only if all RoIs had one."""
        names = self.NAMES if self.labelled else self._ALL
        return {name: getattr(self, name).clone() for name in names}

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Tensor]) -> PosteriorMoments:
        """Invert :meth:`state_dict`.

        Raises:
            KeyError: a tensor is missing.
            ValueError: a tensor has a wrong shape, or a value impossible for a sum.
        """
        sums = state["posterior_sum"]
        moments = cls(sums.shape[-1], sums.device)
        moments.labelled = any(name in state for name in cls._LABELLED)
        for name in cls.NAMES if moments.labelled else cls._ALL:
            own, found = getattr(moments, name), state[name]
            if found.shape != own.shape:
                raise UserError(
                    f"{name} has the shape {tuple(found.shape)}, expected {tuple(own.shape)}."
                )
            # A flipped bit of a file is found here if it gives nonsense; only means of logits may
            # be negative.
            if not found.isfinite().all() or (name != "own_mean" and (found < 0).any()):
                raise UserError(f"{name} has a value that is negative or not finite.")
            setattr(moments, name, found.to(own.dtype).clone())
        return moments
