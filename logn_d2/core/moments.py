"""Mean and variance of each class's logit over a data set, accumulated batch by batch.

Shapes: R RoIs in a batch, C logit columns (K foreground classes and the background, or just K
classes for a classifier without background). Logits are in nats.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Hashable, Iterable, Iterator, Mapping

import torch
from torch import Tensor

from ..errors import UserError

# Groups of images with separate moments. A standard error from 20 groups has itself a standard
# deviation of 1 / sqrt(2 * 19), 16 %; more groups would be more precise and make larger files.
NUM_GROUPS = 20

# Entries. All RoIs of an image are one block, even with LVIS's classes.
_BLOCK = 2**22

Moments = tuple[Tensor, Tensor, Tensor]
"""Weight, mean, and sum of squared deviations."""


class NonFiniteLogitsError(UserError):
    """A batch of logits contains NaN or infinity."""


class LogitMoments:
    """Exact count, mean and variance of each logit column, mergeable in any order.

    Accumulates in float64 with the parallel update of Chan, Golub and LeVeque (1983), so that any
    split of the same RoIs into batches, processes or files gives the same result to about 1e-12.

    An image that training repeats may count more than once: with weight w, each of its RoIs counts
    as w RoIs, and the variance is that of w copies.

    RoIs of one image look alike, and so do the views of a repeated image: the standard error of the
    mean is not ``std / sqrt(count)``. Images are therefore divided into `NUM_GROUPS` groups by a
    hash of their ids, and the state also contains the moments of each group: leaving out one group
    at a time (delete-a-group jackknife) gives the standard error of any function of mean and
    variance; see `leave_one_out` and `logn_d2.core.sampling_error`. Files of early releases have no
    groups; their errors are NaN.

    Args:
        num_columns (int): C.
        device (torch.device or str): device of the state.

    Example:
        >>> moments = LogitMoments(num_columns=2)
        >>> moments.update(torch.tensor([[0.0, 1.0], [2.0, 1.0]]))
        >>> moments.update(torch.tensor([[4.0, 1.0]]))
        >>> moments.mean.tolist(), moments.var.tolist()
        ([2.0, 1.0], [4.0, 0.0])
    """

    _GROUPS = ("group_weight", "group_mean", "group_sum_square")
    _STATE = ("count", "weight", "mean", "sum_square", *_GROUPS)

    def __init__(self, num_columns: int, device: torch.device | str = "cpu") -> None:
        def zeros(*shape: int) -> Tensor:
            return torch.zeros(*shape, num_columns, dtype=torch.float64, device=device)

        # Numbers of logits decide what is usable and stay exact as integers; weights need not be
        # integers.
        self.count = zeros().long()
        self.weight = zeros()
        self.mean = zeros()
        self.sum_square = zeros()  # weighted sum of squared deviations from the mean, "M2"
        self.group_weight = zeros(NUM_GROUPS)
        self.group_mean = zeros(NUM_GROUPS)
        self.group_sum_square = zeros(NUM_GROUPS)

    @property
    def num_columns(self) -> int:
        """C."""
        return len(self.count)

    @property
    def var(self) -> Tensor:
        """(C,) float64, unbiased variance of all pooled logits; 0 for fewer than two."""
        return variance(self.sum_square, self.weight)

    @property
    def std_error(self) -> Tensor:
        """(C,) float64, standard error of the mean; infinite if all images are in one group.

        It describes the spread over other sets of as many images, drawn as these were. Since it
        comes from 20 groups, it has itself a standard deviation of about 16 %.
        """
        share, means, _ = self.leave_one_out()
        return jackknife_error(means, self.mean, share)

    def leave_one_out(self) -> tuple[Tensor, Tensor, Tensor]:
        """The moments without one of the groups, for each group.

        Returns:
            tuple[Tensor, Tensor, Tensor]: (G, C) float64 each: the group's share of the weight, and
            mean and variance without the group. NaN if the state is from an early release.
        """
        left, mean, square = separated(self._totals(), self._groups())
        # A column without any logit has share 0 in all groups, which makes its error infinite.
        total = torch.where(self.weight > 0, self.weight, 1.0)
        return self.group_weight / total, mean, variance(square, left)

    @torch.no_grad()
    def update(
        self,
        logits: Tensor,
        mask: Tensor | None = None,
        *,
        weight: float = 1.0,
        image: Hashable | None = None,
    ) -> None:
        """Add the RoIs of one image.

        Args:
            logits (Tensor): (R, C), any floating type; R may be 0. It is not changed.
            mask (Tensor): (R, C) bool, entries that count; None for all.
            weight (float): multiplicity of the image, above 0.
            image (Hashable): its id, the same for all views of an image; its text determines the
                group. Without an id, the logits of the first RoI determine it.

        Raises:
            NonFiniteLogitsError: an entry that counts is NaN or infinite; nothing is added.
            ValueError: another number of columns, a mask of another shape, or a weight that is not
                above 0.
        """
        check_columns(logits, self.num_columns)
        if mask is not None and mask.shape != logits.shape:
            raise UserError(
                f"Expected a mask of the logits' shape {tuple(logits.shape)}, found "
                f"{tuple(mask.shape)}."
            )
        # NaN fails the comparison too.
        if not 0 < weight < math.inf:
            raise UserError(f"The weight of an image is {weight}, expected a number above 0.")
        if len(logits) == 0:
            return
        count, mean, sum_square = batch_moments(
            logits.to(self.mean.device, torch.float64),
            None if mask is None else mask.to(self.mean.device),
        )
        # Before any state changes, so that a caller may drop the image and go on.
        check_finite(mean)
        # w copies of an image have the same mean, and w times its weight and squares.
        added = (count.double() * float(weight), mean, sum_square * float(weight))
        group = image_group(image, logits)
        # New tensors rather than in-place updates: state dicts and statistics taken earlier keep
        # their values.
        self.weight, self.mean, self.sum_square = combined(self._totals(), added)
        for rows, row in zip(self._groups(), combined(self._groups(group), added), strict=True):
            rows[group] = row
        self.count = self.count + count

    def _totals(self) -> Moments:
        return self.weight, self.mean, self.sum_square

    def _groups(self, group: int | slice = slice(None)) -> Moments:
        return self.group_weight[group], self.group_mean[group], self.group_sum_square[group]

    def merge(self, other: LogitMoments) -> LogitMoments:
        """Add the RoIs of ``other`` to this object, and return this object.

        Raises:
            ValueError: another number of columns.
        """
        if other.num_columns != self.num_columns:
            raise UserError(
                f"Moments of {other.num_columns} logit columns can't be merged into moments of "
                f"{self.num_columns}. Merge only files of the same head."
            )
        other = other.to(self.mean.device)
        self.weight, self.mean, self.sum_square = combined(self._totals(), other._totals())
        merged = combined(self._groups(), other._groups())
        self.group_weight, self.group_mean, self.group_sum_square = merged
        self.count = self.count + other.count
        return self

    @classmethod
    def merged(cls, parts: Iterable[LogitMoments]) -> LogitMoments:
        """A new object with the RoIs of all parts.

        Raises:
            ValueError: no parts, or parts with different numbers of columns.
        """
        parts = list(parts)
        if not parts:
            raise UserError("There are no moments to merge: expected at least one object.")
        # A fresh object, because `merge` changes its left side: the parts may still be in use.
        total = cls(parts[0].num_columns, parts[0].mean.device)
        for part in parts:
            total.merge(part)
        return total

    def to(self, device: torch.device | str) -> LogitMoments:
        """These moments on another device; this object itself if it is there already."""
        # A merge of many parts would otherwise copy each of them.
        if self.mean.device == torch.device(device):
            return self
        return self.from_state_dict({k: v.to(device) for k, v in self.state_dict().items()})

    def state_dict(self) -> dict[str, Tensor]:
        """The complete state: name -> copy of the tensor, (C,), or (G, C) for groups."""
        return {name: getattr(self, name).clone() for name in self._STATE}

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Tensor]) -> LogitMoments:
        """Invert :meth:`state_dict`; groups missing in an older state are NaN.

        Raises:
            KeyError: a tensor is missing.
            ValueError: groups of another shape.
        """
        moments = cls(len(state["count"]), state["count"].device)
        if not any(name in state for name in cls._GROUPS):  # early releases, all weights 1
            unknown = torch.full_like(moments.group_mean, torch.nan)
            state = {**dict.fromkeys(cls._GROUPS, unknown), "weight": state["count"], **state}
        for name in cls._STATE:
            own = getattr(moments, name)
            if state[name].shape != own.shape:
                raise UserError(
                    f"{name} has the shape {tuple(state[name].shape)}, expected {tuple(own.shape)}."
                )
            setattr(moments, name, state[name].to(own.dtype).clone())
        return moments


def jackknife_error(replicates: Tensor, whole: Tensor, share: Tensor) -> Tensor:
    """Standard error of an estimate from its values without each group of images.

    Groups differ in size. With a group's share a of the weight, d = whole - replicate and b = sum
    (1 - a) d, the pseudo-value of the group deviates by (1 - a) / a d - b, and its variance
    relative to the whole is (1 - a) / a (Busing, Meijer and van der Leeden 1999).

    Args:
        replicates (Tensor): (G, ..., C) the estimates without each group.
        whole (Tensor): (..., C) the estimate.
        share (Tensor): (G, C) each group's share of the weight.

    Returns:
        Tensor: (..., C) float64; infinite if fewer than two groups have weight.

    Example:
        >>> left_out = torch.tensor([[3.0], [1.0]], dtype=torch.float64)  # of the values 1 and 3
        >>> share = torch.full((2, 1), 0.5, dtype=torch.float64)
        >>> jackknife_error(left_out, torch.tensor([2.0]), share).tolist()
        [1.0]
    """
    shape = (len(share), *[1] * (replicates.dim() - 2), share.shape[1])
    share = share.reshape(shape)
    has_part = (share > 0) & (share < 1)
    # Groups without weight, and a group that has all of it, say nothing about the spread. `where`
    # evaluates both sides, so the clamp keeps 1 / 0 out of them.
    odds = torch.where(has_part, (1 - share) / share.clamp(min=torch.finfo(share.dtype).tiny), 1.0)
    difference = whole - replicates
    common = ((1 - share) * difference).sum(dim=0)
    square = torch.where(has_part, (odds * difference - common).square() / odds, 0.0).sum(dim=0)
    groups = has_part.sum(dim=0)
    error = (square / groups.clamp(min=1)).sqrt()
    # One group is no sample of groups: the spread is unknown, and infinity keeps a pass from
    # stopping on it.
    error = torch.where(groups > 1, error, torch.inf)
    # NaN shares mark files of early releases; comparisons with NaN above are False, so it has to be
    # put back.
    return torch.where(share.isnan().any(dim=0), torch.nan, error)


def combined(a: Moments, b: Moments) -> Moments:
    """Moments of the union of two sets of RoIs; `separated` is the inverse."""
    (weight, mean, square), (added, other_mean, other_square) = a, b
    total = weight + added
    share = added / torch.where(total == 0, 1.0, total)  # keeps NaN for unknown groups
    # The update through the difference of means avoids the cancellation of sums of squares (Chan et
    # al.).
    delta = other_mean - mean
    return total, mean + delta * share, square + other_square + delta**2 * (weight * share)


def separated(whole: Moments, part: Moments) -> Moments:
    """Moments of a set of RoIs without some of its RoIs: the inverse of `combined`."""
    (weight, mean, square), (taken, part_mean, part_square) = whole, part
    left = weight - taken
    # Rounding of weights may leave a little less than 0 for a part that is the whole.
    rest = mean - (part_mean - mean) * (taken / torch.where(left > 0, left, 1.0))
    # Rounding may leave a value slightly below zero.
    between = (part_mean - rest) * (part_mean - mean) * taken
    return left, rest, (square - part_square - between).clamp(min=0)


def variance(sum_square: Tensor, weight: Tensor) -> Tensor:
    """Unbiased variance of weighted copies; 0 for a weight of at most one."""
    # Weights are frequencies (w copies), hence weight - 1. The clamp also serves fractional weights
    # below 2.
    return sum_square / (weight - 1).clamp(min=1)


def image_group(image: Hashable | None, logits: Tensor) -> int:
    """The group of an image: the same in every pass, process and release.

    Args:
        image (Hashable): its id, or None.
        logits (Tensor): (R, C) logits of its RoIs, R > 0; the first row replaces a missing id.
    """
    if image is None:
        # float64, so that the same logits give the same group from a model in half precision and
        # from its stored outputs.
        image = logits[0].double().cpu().numpy().tobytes()
    name = image if isinstance(image, bytes) else str(image).encode()
    # Python's own hash differs between processes, and a random choice between passes; CRC-32 is
    # fixed, so files of shards and of resumed passes agree on the groups.
    return zlib.crc32(name) % NUM_GROUPS


def batch_moments(logits: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Count, mean and sum of squared deviations of each column, about the batch's own mean.

    Two plain passes are as exact as `torch.var_mean`, and ten times as fast along this dimension.

    Args:
        logits (Tensor): (R, C) float64, R > 0.
        mask (Tensor): (R, C) bool, entries that count; None for all.

    Returns:
        tuple[Tensor, Tensor, Tensor]: (C,) each; mean 0 for columns without entries.
    """
    if mask is None:
        mean = logits.mean(dim=0)
        count = torch.full_like(mean, len(logits), dtype=torch.int64)
        return count, mean, (logits - mean).square_().sum(dim=0)
    count = mask.sum(dim=0)
    # `where` and not a product: entries that don't count may be infinite, and infinity times 0 is
    # NaN.
    mean = torch.where(mask, logits, 0.0).sum(dim=0) / count.clamp(min=1)
    return count, mean, torch.where(mask, logits - mean, 0.0).square_().sum(dim=0)


def blocks(*tensors: Tensor | None) -> Iterator[tuple[Tensor | None, ...]]:
    """Rows of tensors, so many at a time that their float64 copies fit into a processor's cache.

    A dense detector has hundreds of thousands of anchors: with 1,203 classes, one image's logits
    take 2 GB in float64.

    Args:
        *tensors (Tensor): the first is (R, C), the others have R rows or are None.

    Yields:
        tuple: the rows of each, in order; one tuple where R is 0.
    """
    first = tensors[0]
    # At least one row, however wide.
    rows = max(_BLOCK // max(first.shape[1], 1), 1)
    # One block even of no rows, so that a reduction over blocks always has a start.
    for start in range(0, max(len(first), 1), rows):
        yield tuple(None if each is None else each[start : start + rows] for each in tensors)


def check_columns(logits: Tensor, num_columns: int) -> None:
    if logits.dim() != 2 or logits.shape[1] != num_columns:
        raise UserError(
            f"Expected logits of shape (R, {num_columns}), found {tuple(logits.shape)}. "
            "The number of columns is that of the classifier's outputs, background included."
        )


def check_finite(mean: Tensor) -> None:
    """Refuse logits that are not finite; a mean is finite only if every summand is."""
    bad = (~mean.isfinite()).nonzero().flatten().tolist()
    if bad:
        shown = ", ".join(map(str, bad[:5])) + (", ..." if len(bad) > 5 else "")
        raise NonFiniteLogitsError(
            f"NaN or infinite logits in {len(bad)} of {len(mean)} columns ({shown}). Check the "
            "weights and the input: statistics of such logits would invalidate every score."
        )
