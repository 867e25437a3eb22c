"""Logit statistics of one classifier.

Shapes: C logit columns (K foreground classes and the background, if there is one).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from ..errors import UserError
from .moments import LogitMoments

__all__ = ["MIN_VARIANCE", "StageStatistics", "StatisticsError"]

# The released code's clamp of the variance. A smaller one is a constant logit with rounding noise.
MIN_VARIANCE = 1e-11


class StatisticsError(UserError):
    """Statistics can't be read, make no sense, or do not belong to this model."""


@dataclass(frozen=True, eq=False)
class StageStatistics:
    """Statistics of one classifier.

    Attributes:
        mean (Tensor): (C,) float64.
        var (Tensor): (C,) float64, variance of all logits pooled, or the moving average.
        count (Tensor): (C,) int64, logits behind each column.
        moments (LogitMoments): the exact state, mergeable; None for moving averages.
        fingerprint (Tensor): (C,) float64 of `classifier_fingerprint`; None if unknown.

    Raises:
        StatisticsError: tensors of different shapes, or values that no logits can have.

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
                    f"{name} holds {bad} values that are not finite; collect the statistics again."
                )
        if (self.var < 0).any() or (self.count < 0).any():
            raise StatisticsError("A variance or count is negative; collect the statistics again.")

    @classmethod
    def from_moments(
        cls, moments: LogitMoments, fingerprint: Tensor | None = None
    ) -> StageStatistics:
        """Statistics of an exact pass so far, on the CPU; a later update does not change them."""
        moments = LogitMoments.from_state_dict(moments.state_dict()).to("cpu")
        return cls(moments.mean, moments.var, moments.count, moments, fingerprint)

    @property
    def std(self) -> Tensor:
        """(C,) float64."""
        return self.var.sqrt()

    @property
    def usable(self) -> Tensor:
        """(C,) bool: seen at least twice, with different logits. LogN leaves other columns raw."""
        return (self.count >= 2) & (self.var > MIN_VARIANCE)

    def tensors(self, prefix: str) -> dict[str, Tensor]:
        """Everything, as tensors for a file, named ``{prefix}.mean`` and so on."""
        named = {"mean": self.mean, "var": self.var, "count": self.count}
        if self.moments is not None:
            named.update(self.moments.state_dict())
        if self.fingerprint is not None:
            named["fingerprint"] = self.fingerprint
        # Copies: a file may not hold one tensor under two names, and stages may share theirs.
        return {
            f"{prefix}.{name}": tensor.cpu().contiguous().clone() for name, tensor in named.items()
        }

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], prefix: str) -> StageStatistics:
        """The inverse of :meth:`tensors`.

        Raises:
            KeyError: a tensor is missing.
            StatisticsError: a value makes no sense.
        """
        start = f"{prefix}."
        named = {k.removeprefix(start): v for k, v in tensors.items() if k.startswith(start)}
        moments = LogitMoments.from_state_dict(named) if "sum_square" in named else None
        return cls(
            named["mean"].double(),
            named["var"].double(),
            named["count"].long(),
            moments,
            named.get("fingerprint"),
        )
