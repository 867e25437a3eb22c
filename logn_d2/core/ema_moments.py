"""Mean and variance of each class's logit as the released LogN code computes them.

Shapes: R RoIs in a batch, C logit columns. Logits are in nats.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping

import torch
from torch import Tensor

from ..errors import UserError
from .moments import batch_moments, blocks, check_columns, check_finite, combined


class EmaLogitMoments:
    """Moving averages of mean and variance, as in the released LogN code.

    The released code puts a ``BatchNorm1d(affine=False)`` behind the classifier, in training mode:
    the averages start at mean 0 and variance 1, and each batch of two or more RoIs moves them by

        mean <- (1 - m) mean + m * batch mean,    var <- (1 - m) var + m * unbiased batch variance.

    After T batches a share (1 - m)^T of the start values remains, and the variance *between* images
    is missing. :meth:`debiased` corrects only the first. Use :class:`LogitMoments` except to
    reproduce published numbers.

    Args:
        num_columns (int): C.
        momentum (float): m in (0, 1]; 5e-5 in the released fine-tuning configs.
        device (torch.device or str): device of the state.

    Raises:
        ValueError: a momentum outside (0, 1].

    Example:
        >>> moments = EmaLogitMoments(num_columns=1, momentum=0.5)
        >>> moments.update(torch.tensor([[1.0], [3.0]]))
        >>> moments.mean.tolist(), moments.var.tolist()
        ([1.0], [1.5])
        >>> [moment.tolist() for moment in moments.debiased()]
        [[2.0], [2.0]]
    """

    _STATE = ("mean", "var", "steps", "count")

    def __init__(
        self, num_columns: int, momentum: float = 5e-5, device: torch.device | str = "cpu"
    ) -> None:
        if not 0 < momentum <= 1:
            raise UserError(
                f"The momentum is {momentum}, expected a value in (0, 1]; the released configs "
                "have 5e-5 (MODEL.LOGN.COLLECT.MOMENTUM)."
            )
        self.momentum = momentum
        self.mean = torch.zeros(num_columns, dtype=torch.float64, device=device)
        self.var = torch.ones(num_columns, dtype=torch.float64, device=device)
        self.steps = torch.zeros((), dtype=torch.int64, device=device)
        self.count = torch.zeros(num_columns, dtype=torch.int64, device=device)

    @property
    def num_columns(self) -> int:
        """C."""
        return len(self.mean)

    @torch.no_grad()
    def update(self, logits: Tensor, mask: Tensor | None = None) -> None:
        """Update the averages with one batch; batches of fewer than two RoIs are ignored.

        Args:
            logits (Tensor): (R, C).
            mask: must be None: a moving average has no meaning where columns see different RoIs.

        Raises:
            NonFiniteLogitsError: NaN or infinite logits; nothing changes.
            ValueError: another number of columns, or a mask.
        """
        check_columns(logits, self.num_columns)
        if mask is not None:
            raise UserError("Moving averages take every RoI: use the exact estimator with a mask.")
        # BatchNorm1d raises an error for a single value in training mode; there is no unbiased
        # variance of one RoI.
        if len(logits) < 2:
            return
        # In float64 and in blocks, as the exact estimator: only the rule of averaging differs from
        # it.
        found = (
            batch_moments(part.to(self.mean.device, torch.float64)) for (part,) in blocks(logits)
        )
        weighted = ((count.double(), *others) for count, *others in found)
        _, mean, sum_square = functools.reduce(combined, weighted)
        # Before any state changes, so that a caller may drop the batch and go on.
        check_finite(mean)
        var = sum_square / (len(logits) - 1)
        # New tensors, so that statistics taken earlier keep their values.
        self.mean = self.mean + self.momentum * (mean - self.mean)
        self.var = self.var + self.momentum * (var - self.var)
        self.steps = self.steps + 1
        self.count = self.count + len(logits)

    def debiased(self) -> tuple[Tensor, Tensor]:
        """Mean and variance, each (C,), without the share of the start values 0 and 1.

        Raises:
            ValueError: no batch has been seen.
        """
        if self.steps == 0:
            raise UserError("No batch was seen, so there is nothing to correct.")
        # The share of the start values, 0 for the mean and 1 for the variance.
        left = (1 - self.momentum) ** int(self.steps)
        # A class whose logit never varies may come out below 0 by rounding.
        return self.mean / (1 - left), ((self.var - left) / (1 - left)).clamp(min=0)

    def state_dict(self) -> dict[str, Tensor]:
        """The whole state but the momentum, a copy."""
        return {name: getattr(self, name).clone() for name in self._STATE}

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Tensor], momentum: float) -> EmaLogitMoments:
        """The object that :meth:`state_dict` came from."""
        moments = cls(len(state["mean"]), momentum, state["mean"].device)
        for name in cls._STATE:
            setattr(moments, name, state[name].clone())
        return moments
