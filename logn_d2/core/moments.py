"""Mean and variance of each class's logit over a data set, gathered batch by batch.

Shapes: R RoIs in a batch, C logit columns (K foreground classes and the background, or just K
classes for a classifier without background). Logits are in nats.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

__all__ = ["EmaLogitMoments", "LogitMoments", "NonFiniteLogitsError"]


class NonFiniteLogitsError(ValueError):
    """A batch of logits holds NaN or infinity."""


class LogitMoments:
    """Exact count, mean and variance of each logit column, mergeable in any order.

    Accumulates in float64 with the parallel update of Chan, Golub and LeVeque (1983), so that any
    split of the same RoIs into batches, processes or files gives the same result to about 1e-12.

    RoIs of one image look alike, so the standard error of the mean is not ``std / sqrt(count)``.
    Each call of :meth:`update` is taken as one *cluster* of dependent RoIs (one image), and
    :attr:`std_error` is the standard error of a ratio estimator over clusters. Its state is the
    sums, over clusters i with n_i RoIs, residual r_i = sum_i - n_i * mean and spread q_i = sum of
    squared deviations from the mean, of all six products of n_i, r_i and q_i: together these can
    be moved to a new mean, and so merge exactly. Those with q_i give the standard error of the
    variance; they are NaN in what an older file held.

    Args:
        num_columns (int): C.
        device (torch.device or str): where the state lives.

    Example:
        >>> moments = LogitMoments(num_columns=2)
        >>> moments.update(torch.tensor([[0.0, 1.0], [2.0, 1.0]]))
        >>> moments.update(torch.tensor([[4.0, 1.0]]))
        >>> moments.mean.tolist(), moments.var.tolist()
        ([2.0, 1.0], [4.0, 0.0])
    """

    _STATE = (
        "count",
        "mean",
        "sum_square",
        "clusters",
        "residual_square",
        "residual_size",
        "size_square",
        "spread_square",
        "spread_residual",
        "spread_size",
    )

    def __init__(self, num_columns: int, device: torch.device | str = "cpu") -> None:
        def zeros(dtype: torch.dtype) -> Tensor:
            return torch.zeros(num_columns, dtype=dtype, device=device)

        self.count = zeros(torch.int64)
        self.mean = zeros(torch.float64)
        self.sum_square = zeros(torch.float64)  # sum of squared deviations from the mean, "M2"
        self.clusters = zeros(torch.int64)
        self.residual_square = zeros(torch.float64)
        self.residual_size = zeros(torch.float64)
        self.size_square = zeros(torch.float64)
        self.spread_square = zeros(torch.float64)
        self.spread_residual = zeros(torch.float64)
        self.spread_size = zeros(torch.float64)

    @property
    def num_columns(self) -> int:
        """C."""
        return len(self.count)

    @property
    def var(self) -> Tensor:
        """(C,) float64, unbiased variance of all logits pooled; 0 where fewer than two are."""
        return self.sum_square / (self.count - 1).clamp(min=1)

    @property
    def std_error(self) -> Tensor:
        """(C,) float64, standard error of the mean over clusters; infinite below two clusters."""
        return self._over_clusters(self.residual_square)

    def linear_std_error(self, mean_weight: Tensor, var_weight: Tensor) -> Tensor:
        """Standard error of ``mean_weight * mean + var_weight * var``, with their covariance.

        What the delta method needs for a smooth function of mean and variance: its derivatives are
        the weights.

        Args:
            mean_weight (Tensor): (C,).
            var_weight (Tensor): (C,).

        Returns:
            Tensor: (C,) float64; infinite below two clusters, NaN where the state is of a file
            from before the variance's error was kept.
        """
        # A cluster changes the variance by e_i = q_i - n_i * var, divided by the count.
        var = self.sum_square / self.count.clamp(min=1)
        covariance = self.spread_residual - var * self.residual_size
        square = self.spread_square - 2 * var * self.spread_size + var**2 * self.size_square
        return self._over_clusters(
            mean_weight**2 * self.residual_square
            + 2 * mean_weight * var_weight * covariance
            + var_weight**2 * square
        )

    def _over_clusters(self, square: Tensor) -> Tensor:
        """Standard error of a mean over RoIs, from the sum of squares that the clusters add."""
        clusters = self.clusters.double()
        error = (square.clamp(min=0) * clusters / (clusters - 1)).sqrt() / self.count
        return torch.where(clusters > 1, error, torch.inf)

    @torch.no_grad()
    def update(self, logits: Tensor, mask: Tensor | None = None) -> None:
        """Adds the RoIs of one cluster (one image).

        Args:
            logits (Tensor): (R, C), any floating type; R may be 0. It is not changed.
            mask (Tensor): (R, C) bool, which entries count; all of them when not given.

        Raises:
            NonFiniteLogitsError: an entry that counts is NaN or infinite; nothing is added.
            ValueError: another number of columns, or a mask of another shape.
        """
        _check_columns(logits, self.num_columns)
        if mask is not None and mask.shape != logits.shape:
            raise ValueError(
                f"Expected a mask of the logits' shape {tuple(logits.shape)}, found "
                f"{tuple(mask.shape)}."
            )
        if len(logits) == 0:
            return
        batch = LogitMoments(self.num_columns, self.mean.device)
        batch.count, batch.mean, batch.sum_square = _batch_moments(
            logits.to(self.mean.device, torch.float64),
            None if mask is None else mask.to(self.mean.device),
        )
        _check_finite(batch.mean)
        batch.clusters = (batch.count > 0).long()
        batch.size_square = batch.count.double() ** 2
        batch.spread_square = batch.sum_square**2
        batch.spread_size = batch.sum_square * batch.count
        self.merge(batch)

    def merge(self, other: LogitMoments) -> LogitMoments:
        """Adds what ``other`` has seen to this object, and returns this object.

        Raises:
            ValueError: another number of columns.
        """
        if other.num_columns != self.num_columns:
            raise ValueError(
                f"Moments of {other.num_columns} logit columns can't be merged into moments of "
                f"{self.num_columns}. Merge only files of the same head."
            )
        other = other.to(self.mean.device)
        count = self.count + other.count
        share = other.count / count.clamp(min=1).double()  # int64 / int64 would be float32
        delta = other.mean - self.mean
        mean = self.mean + delta * share
        mine, theirs = self._products_about(mean), other._products_about(mean)
        between = delta**2 * (self.count * share)
        self.sum_square = self.sum_square + other.sum_square + between
        for name, product in mine.items():
            setattr(self, name, product + theirs[name])
        self.clusters = self.clusters + other.clusters
        self.count, self.mean = count, mean
        return self

    def _products_about(self, mean: Tensor) -> dict[str, Tensor]:
        """The sums of products over clusters, with r_i and q_i taken about another mean.

        With the mean moved by d: r_i - d n_i, and q_i - 2 d r_i + d^2 n_i.
        """
        d = mean - self.mean
        rr, rn, nn = self.residual_square, self.residual_size, self.size_square
        qq, qr, qn = self.spread_square, self.spread_residual, self.spread_size
        return {
            "residual_square": rr - 2 * d * rn + d**2 * nn,
            "residual_size": rn - d * nn,
            "size_square": nn,
            "spread_square": qq + d * (-4 * qr + d * (4 * rr + 2 * qn + d * (-4 * rn + d * nn))),
            "spread_residual": qr + d * (-qn - 2 * rr + d * (3 * rn - d * nn)),
            "spread_size": qn + d * (-2 * rn + d * nn),
        }

    @classmethod
    def merged(cls, parts: Iterable[LogitMoments]) -> LogitMoments:
        """A new object with everything that the parts have seen.

        Raises:
            ValueError: no parts, or parts with different numbers of columns.
        """
        parts = list(parts)
        if not parts:
            raise ValueError("There are no moments to merge: expected at least one object.")
        total = cls(parts[0].num_columns, parts[0].mean.device)
        for part in parts:
            total.merge(part)
        return total

    def to(self, device: torch.device | str) -> LogitMoments:
        """These moments on another device; this object where it is there already."""
        if self.mean.device == torch.device(device):
            return self
        return self.from_state_dict({k: v.to(device) for k, v in self.state_dict().items()})

    def state_dict(self) -> dict[str, Tensor]:
        """The whole state: name to (C,) tensor, a copy."""
        return {name: getattr(self, name).clone() for name in self._STATE}

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Tensor]) -> LogitMoments:
        """The object that :meth:`state_dict` came from; what an older one lacked becomes NaN."""
        moments = cls(len(state["count"]), state["count"].device)
        unknown = torch.full_like(moments.mean, torch.nan)
        for name in cls._STATE:
            tensor = state.get(name, unknown) if name.startswith("spread_") else state[name]
            setattr(moments, name, tensor.to(getattr(moments, name).dtype).clone())
        return moments


class EmaLogitMoments:
    """Moving-average mean and variance, as the released LogN code gathers them.

    The released code puts a ``BatchNorm1d(affine=False)`` behind the classifier, in training mode:
    the averages start at mean 0 and variance 1, and each batch of two or more RoIs moves them by

        mean <- (1 - m) mean + m * batch mean,    var <- (1 - m) var + m * unbiased batch variance.

    After T batches a share (1 - m)^T of the start value is still in them, and the variance
    *between* images is missing. :meth:`debiased` removes the first. Use :class:`LogitMoments`
    unless the published numbers are to be reproduced.

    Args:
        num_columns (int): C.
        momentum (float): m in (0, 1]; 5e-5 in the released fine-tuning configs.
        device (torch.device or str): where the state lives.

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
            raise ValueError(
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
        """Moves the averages by one batch; batches of fewer than two RoIs are left out.

        Args:
            logits (Tensor): (R, C).
            mask: must be None: a moving average has no meaning where columns see different RoIs.

        Raises:
            NonFiniteLogitsError: NaN or infinite logits; nothing changes.
            ValueError: another number of columns, or a mask.
        """
        _check_columns(logits, self.num_columns)
        if mask is not None:
            raise ValueError("Moving averages take every RoI: use the exact estimator with a mask.")
        if len(logits) < 2:
            return
        _, mean, sum_square = _batch_moments(logits.to(self.mean.device, torch.float64))
        _check_finite(mean)
        var = sum_square / (len(logits) - 1)
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
            raise ValueError("No batch was seen, so there is nothing to correct.")
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


def _batch_moments(logits: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Count, mean and sum of squared deviations of each column, about the batch's own mean.

    Two plain passes: as exact as `torch.var_mean` and ten times as fast along this dimension.

    Args:
        logits (Tensor): (R, C) float64, R > 0.
        mask (Tensor): (R, C) bool, which entries count; None for all.

    Returns:
        tuple[Tensor, Tensor, Tensor]: (C,) each; mean 0 where nothing counts.
    """
    if mask is None:
        mean = logits.mean(dim=0)
        count = torch.full_like(mean, len(logits), dtype=torch.int64)
        return count, mean, (logits - mean).square_().sum(dim=0)
    count = mask.sum(dim=0)
    mean = torch.where(mask, logits, 0.0).sum(dim=0) / count.clamp(min=1)
    return count, mean, torch.where(mask, logits - mean, 0.0).square_().sum(dim=0)


def _check_columns(logits: Tensor, num_columns: int) -> None:
    if logits.dim() != 2 or logits.shape[1] != num_columns:
        raise ValueError(
            f"Expected logits of shape (R, {num_columns}), found {tuple(logits.shape)}. "
            "The number of columns is that of the classifier's outputs, background included."
        )


def _check_finite(mean: Tensor) -> None:
    """A mean is finite only if every summand is, which saves a pass over the logits."""
    bad = (~mean.isfinite()).nonzero().flatten().tolist()
    if bad:
        shown = ", ".join(map(str, bad[:5])) + (", ..." if len(bad) > 5 else "")
        raise NonFiniteLogitsError(
            f"NaN or infinite logits in {len(bad)} of {len(mean)} columns ({shown}). Check the "
            "weights and the input: statistics of such logits would spoil every score."
        )
