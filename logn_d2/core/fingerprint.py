"""Fingerprints of classifiers: one number per class, equal if the weights are equal.

Shapes: C logit columns, D feature channels.
"""

from __future__ import annotations

import torch
from torch import Tensor

# Relative to the root mean square (RMS) over columns. Measured at C = 1204, D = 1024: a bf16 copy
# of the same weights differs by an RMS of 0.002 and by 0.013 in its worst column; another training
# by an RMS of 0.06 (large biases) to 1.4. The second limit finds the change of a single class.
RMS_TOLERANCE = 0.01
COLUMN_TOLERANCE = 0.1


def classifier_fingerprint(weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Compute one number per class that tells whether two classifiers are the same.

    A fixed projection of each weight row, plus the bias. Unlike a hash it survives a cast to half
    precision, and it shows *which* classes differ.

    Args:
        weight (Tensor): (C, D) classifier weights.
        bias (Tensor): (C,) or None.

    Returns:
        Tensor: (C,) float64, on the CPU.

    Example:
        >>> weight = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
        >>> [round(value, 4) for value in classifier_fingerprint(weight).tolist()]
        [0.5403, -0.8323]
    """
    # On the CPU and in float64, so that the number is the same wherever the model runs. A
    # convolution's kernel is one row.
    weight = weight.detach().cpu().double().flatten(1)
    # Any fixed direction does. Cosines need no random generator, whose stream could change between
    # releases, and no row is likely to be orthogonal to them.
    direction = torch.arange(1, weight.shape[1] + 1, dtype=torch.float64).cos()
    projection = weight @ direction
    return projection if bias is None else projection + bias.detach().cpu().double()


def fingerprint_differences(expected: Tensor, found: Tensor) -> Tensor:
    """Find the columns in which two classifiers differ.

    The decision is taken over all columns together: rounding to half precision shifts each column
    in proportion to its own norm, and the norms of a long-tailed classifier differ a lot.

    Args:
        expected (Tensor): (C,) of `classifier_fingerprint`.
        found (Tensor): (C,) of the other classifier.

    Returns:
        Tensor: (C,) bool, none of them set if the classifiers are the same up to rounding.

    Example:
        >>> expected = torch.tensor([1.0, -1.0, 2.0])
        >>> fingerprint_differences(expected, torch.tensor([1.0, -1.0, -2.0])).tolist()
        [False, False, True]
    """
    if expected.shape != found.shape:
        return torch.ones_like(expected, dtype=torch.bool)
    distance = (expected - found).abs()
    # One scale for all columns: a single projection may be near 0 by chance, and relative to it
    # rounding would look large.
    scale = expected.square().mean().sqrt()
    # Both comparisons are written so that NaN differs.
    same = distance.square().mean().sqrt() <= RMS_TOLERANCE * scale
    same &= (distance <= COLUMN_TOLERANCE * scale).all()
    return (
        torch.zeros_like(distance, dtype=torch.bool)
        if same
        else ~(distance <= RMS_TOLERANCE * scale)
    )
