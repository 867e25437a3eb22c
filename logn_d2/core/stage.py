"""Logit statistics of one classifier.

A stage is one of the box predictors of a cascade; other heads have a single one. The *second* stage
of decoupled training is something else and always has its adjective (SECOND_STAGE).

Shapes: C logit columns (K foreground classes and the background, if there is one).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import UserError
from .moments import LogitMoments, separated, variance
from .posterior_moments import PosteriorMoments

# The released code's clamp of the variance. Smaller values mean a constant logit with rounding
# noise.
MIN_VARIANCE = 1e-11


class StatisticsError(UserError):
    """Statistics can't be read, are invalid, or do not belong to this model."""


@dataclass(frozen=True, eq=False)
class StageStatistics:
    """Statistics of one classifier.

    Attributes:
        mean (Tensor): (C,) float64.
        var (Tensor): (C,) float64, variance of all pooled logits, or the moving average.
        count (Tensor): (C,) int64, number of logits of each column.
        moments (LogitMoments): the exact state, mergeable; None for moving averages.
        fingerprint (Tensor): (C,) float64 of `classifier_fingerprint`; None if unknown.
        posteriors (PosteriorMoments): sums over the same RoIs, if every RoI counts for every
            column; None for moving averages, and in files of releases without them.

    Raises:
        StatisticsError: tensors of different shapes, or values impossible for logits.

    Example:
        >>> import torch
        >>> moments = LogitMoments(num_columns=2)
        >>> moments.update(torch.tensor([[1.0, 5.0], [3.0, 5.0]]))
        >>> stage = StageStatistics.from_moments(moments)
        >>> stage.mean.tolist(), stage.usable.tolist()
        ([2.0, 5.0], [True, False])
    """

    mean: Tensor
    var: Tensor
    count: Tensor
    moments: LogitMoments | None = None
    fingerprint: Tensor | None = None
    posteriors: PosteriorMoments | None = None

    def __post_init__(self) -> None:
        shapes = {tuple(t.shape) for t in (self.mean, self.var, self.count)}
        if len(shapes) > 1 or self.mean.dim() != 1:
            raise StatisticsError(
                "Expected mean, var and count of one shape (C,), found "
                f"{tuple(self.mean.shape)}, {tuple(self.var.shape)} and {tuple(self.count.shape)}."
            )
        for name in ("mean", "var"):
            bad = int((~getattr(self, name).isfinite()).sum())
            if bad:
                raise StatisticsError(
                    f"{name} has {bad} values that are not finite; collect the statistics again."
                )
        if (self.var < 0).any() or (self.count < 0).any():
            raise StatisticsError("A variance or count is negative; collect the statistics again.")
        if self.posteriors is not None and self.posteriors.num_columns != len(self.mean):
            raise StatisticsError(
                f"There are posteriors of {self.posteriors.num_columns} columns beside logits of "
                f"{len(self.mean)}; collect the statistics again."
            )

    @classmethod
    def from_moments(
        cls,
        moments: LogitMoments,
        fingerprint: Tensor | None = None,
        posteriors: PosteriorMoments | None = None,
    ) -> StageStatistics:
        """Statistics of an exact pass so far, copied to the CPU, so that updates do not change
        them."""
        moments = LogitMoments.from_state_dict(moments.state_dict()).to("cpu")
        posteriors = None if posteriors is None else posteriors.to("cpu")
        return cls(moments.mean, moments.var, moments.count, moments, fingerprint, posteriors)

    @property
    def std(self) -> Tensor:
        """(C,) float64."""
        return self.var.sqrt()

    @property
    def usable(self) -> Tensor:
        """(C,) bool: at least two logits that differ. LogN leaves other columns unchanged."""
        return (self.count >= 2) & (self.var > MIN_VARIANCE)

    def mean_posterior(self, source: str = "all") -> Tensor:
        """(C,) float64, mean posterior over "all" RoIs, or over each column's "negatives".

        Raises:
            StatisticsError: the pass did not collect it; the message says how to.
        """
        return self._gathered(labels=source == "negatives").mean(source)

    def label_weight(self) -> Tensor:
        """(C,) float64, weighted number of RoIs of each column's class.

        Raises:
            StatisticsError: the pass did not collect it; the message says how to.
        """
        return self._gathered(labels=True).own_weight.sum(dim=0)

    def negatives(self) -> StageStatistics:
        """Statistics of the logits of each column's negatives: RoIs of any other class.

        They exclude objects of the column's class, which training may have memorised.

        Raises:
            StatisticsError: the pass did not collect the needed sums; the message says how to.
        """
        posteriors = self._gathered(labels=True)
        total = posteriors.roi_weight.sum()
        # The sum of squares out of the variance: `variance` divided by weight - 1. Every RoI counts
        # for every column where there are posteriors, so all columns have one weight.
        whole = (total.expand_as(self.var), self.mean, self.var * (total - 1).clamp(min=1))
        weight, mean, square = separated(whole, posteriors.own())
        # Integer counts decide whether there are negatives; a difference of weights is rounded.
        count = (self.count - posteriors.label_count).clamp(min=0)
        var = torch.where(count > 1, variance(square, weight), 0.0)
        return StageStatistics(
            torch.where(count > 0, mean, 0.0), var, count, fingerprint=self.fingerprint
        )

    def leave_one_out(self) -> Iterator[StageStatistics]:
        """Yield these exact statistics without one of the groups of images, for each group."""
        for group, (share, mean, var) in enumerate(zip(*self.moments.leave_one_out(), strict=True)):
            # Counts are not kept per group; only `usable` reads this one.
            count = (self.count * (1 - share)).round().long()
            posteriors = self.posteriors and self.posteriors.without_group(group)
            yield StageStatistics(mean, var, count, posteriors=posteriors)

    def merge(self, other: StageStatistics) -> StageStatistics:
        """Exact statistics of both passes; without posteriors if one pass has none."""
        posteriors = None
        if self.posteriors is not None and other.posteriors is not None:
            posteriors = self.posteriors.to("cpu").merge(other.posteriors)
        return self.from_moments(
            # A new object: `merge` would change the moments of this frozen one.
            LogitMoments.merged([self.moments, other.moments]),
            # The check for other weights must survive a merge with a file that has no fingerprint.
            other.fingerprint if self.fingerprint is None else self.fingerprint,
            posteriors,
        )

    def _gathered(self, *, labels: bool) -> PosteriorMoments:
        """The posteriors, with labels if these are needed."""
        again = "Collect them again: logn collect --config-file CONFIG --output PATH"
        if self.posteriors is None:
            raise StatisticsError(
                "This calibration needs mean posteriors, which these statistics lack: they are "
                "from an older logn_d2, moving averages, or for positives only. "
                f"{again}, with the exact estimator and the population sampled."
            )
        if labels and not self.posteriors.labelled:
            raise StatisticsError(
                "This calibration needs the classes that RoIs are matched to, which statistics of "
                f"proposals lack. {again}, with the population sampled."
            )
        return self.posteriors

    def tensors(self, prefix: str) -> dict[str, Tensor]:
        """All content as tensors for a file, named ``{prefix}.mean`` and so on."""
        named = {"mean": self.mean, "var": self.var, "count": self.count}
        if self.moments is not None:
            named.update(self.moments.state_dict())
        if self.posteriors is not None:
            named.update(self.posteriors.state_dict())
        if self.fingerprint is not None:
            named["fingerprint"] = self.fingerprint
        # Copies, because a safetensors file refuses tensors that share memory, and stages may.
        return {
            f"{prefix}.{name}": tensor.cpu().contiguous().clone() for name, tensor in named.items()
        }

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], prefix: str) -> StageStatistics:
        """Invert :meth:`tensors`.

        Raises:
            KeyError: a tensor is missing.
            StatisticsError: a value is invalid.
        """
        start = f"{prefix}."
        named = {k.removeprefix(start): v for k, v in tensors.items() if k.startswith(start)}
        # Moving averages have no sums of squares, which also tells the two kinds of file apart.
        moments = LogitMoments.from_state_dict(named) if "sum_square" in named else None
        has_posteriors = any(name in named for name in PosteriorMoments.NAMES)
        posteriors = PosteriorMoments.from_state_dict(named) if has_posteriors else None
        return cls(
            named["mean"].double(),
            named["var"].double(),
            named["count"].long(),
            moments,
            named.get("fingerprint"),
            posteriors,
        )
