"""Calibrations that divide a class's score by a power of its prior: shifts of the logits.

Shapes: K foreground classes. Logits are in nats.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ..errors import UserError
from .affine import AffineCalibration, Background
from .calls import check_number

__all__ = ["CENTRES", "class_balanced", "logit_adjustment", "norcal", "prior_shift"]

Counts = Sequence[int] | np.ndarray | Tensor

CENTRES = ("none", "mean", "mass")


def prior_shift(
    log_prior: Tensor, strength: float, *, centre: str = "none", offset: float = 0.0
) -> Tensor:
    """The shifts of a family of calibrations that differ in their prior and in one number.

        s_c = -strength (log prior_c - m) + offset

    A prior has a scale of its own: counts, shares and mean scores differ by a constant, and against
    an untouched background that constant decides how high all foreground logits are. ``centre``
    takes it out.

    Args:
        log_prior (Tensor): (K,) float64, log of each class's count, share or mean score.
        strength (float): of the correction; 0 leaves the offset alone.
        centre (str): what m is. "none": 0, the prior's own scale. "mean": the mean of log_prior, so
            that the shifts without the offset sum to 0. "mass": log of the mean of prior, which is
            0 for a class with the average share of the foreground.
        offset (float): of all foreground logits, in nats; negative ones favour the background, and
            rank detections more by z_c - z_bg than by which class they are.

    Returns:
        Tensor: (K,) float64.

    Raises:
        ValueError: another centre, or an offset that is no finite number.

    Example:
        >>> prior_shift(torch.tensor([100.0, 4.0]).log(), 0.5, centre="mean").exp()
        tensor([0.4472, 2.2361])
    """
    check_number("offset", offset, "(-inf, inf)")
    middles = {"none": 0.0, "mean": log_prior.mean(), "mass": log_prior.exp().mean().log()}
    if centre not in middles:
        raise UserError(f"centre is {centre!r}, expected one of {', '.join(CENTRES)}.")
    return -strength * (log_prior - middles[centre]) + offset


def norcal(
    image_count: Counts,
    *,
    gamma: float,
    centre: str = "none",
    offset: float = 0.0,
    background: Background = "last",
) -> AffineCalibration:
    """NorCal (Pan et al., NeurIPS 2021): foreground scores divided by N_c^gamma.

        z'_c = z_c - gamma log N_c + b,     z'_bg = z_bg

    NorCal is b = 0; gamma is a hyper-parameter that its authors choose on the training set, and
    there is no default. It is what the LogN paper calls LogA in a detector. Other b give other
    methods: gamma log(sum N) is `logit_adjustment`, gamma log(T / K), for T training images, the
    frequency part of FRACAL. ``offset`` is added to the b that ``centre`` gives.

    Args:
        image_count (list, ndarray or Tensor): (K,) training images of each class; 0 counts as 1.
        gamma (float): 0 leaves the offset alone.
        centre (str): "none" (NorCal), "mean" or "mass"; see `prior_shift`.
        offset (float): a common shift of the foreground, in nats.
        background (str): "last", "first" or "none".

    Example:
        >>> norcal([100, 4], gamma=0.5)(torch.zeros(1, 3)).exp()  # 1 / 10 and 1 / 2
        tensor([[0.1000, 0.5000, 1.0000]])
    """
    check_number("gamma", gamma, "(-inf, inf)")
    shift = prior_shift(positive_counts(image_count).log(), gamma, centre=centre, offset=offset)
    return _shifted(shift, background, "norcal")


def class_balanced(
    image_count: Counts, *, gamma: float, background: Background = "last"
) -> AffineCalibration:
    """NorCal's other rule: scores times the class-balanced weight (1 - gamma) / (1 - gamma^N_c).

    Args:
        image_count (list, ndarray or Tensor): (K,) training images of each class; 0 counts as 1.
        gamma (float): in (0, 1), for example 0.999.
        background (str): "last", "first" or "none".

    Raises:
        ValueError: gamma outside (0, 1).

    Example:
        >>> class_balanced([1, 2], gamma=0.5)(torch.zeros(1, 3)).exp()  # 0.5 / 0.5, 0.5 / 0.75
        tensor([[1.0000, 0.6667, 1.0000]])
    """
    check_number("gamma", gamma, "(0, 1)")
    count = positive_counts(image_count)
    return _shifted(torch.log((1 - gamma) / (1 - gamma**count)), background, "class_balanced")


def logit_adjustment(
    image_count: Counts, *, tau: float = 1.0, background: Background = "last"
) -> AffineCalibration:
    """Post-hoc logit adjustment (Menon et al., ICLR 2021) with the prior pi_c = N_c / sum N.

        z'_c = z_c - tau log pi_c,     z'_bg = z_bg

    With a background column this is *not* NorCal at gamma = tau: the normalised prior lifts all
    foreground logits by tau log(sum N) more.

    Args:
        image_count (list, ndarray or Tensor): (K,) training images of each class; 0 counts as 1.
        tau (float): 0 changes nothing.
        background (str): "last", "first" or "none".

    Example:
        >>> logit_adjustment([8, 2], background="none")(torch.zeros(1, 2)).exp()  # 10 / 8, 10 / 2
        tensor([[1.2500, 5.0000]])
    """
    check_number("tau", tau, "(-inf, inf)")
    count = positive_counts(image_count)
    return _shifted(prior_shift((count / count.sum()).log(), tau), background, "logit_adjustment")


def positive_counts(image_count: Counts) -> Tensor:
    """Counts as float64; a class without images counts as one, since log 0 has no use here."""
    count = torch.as_tensor(image_count).double()
    if (count < 0).any():
        raise UserError("A class count is negative; count the training set again.")
    return count.clamp(min=1)


def _shifted(shift: Tensor, background: Background, name: str) -> AffineCalibration:
    return AffineCalibration(torch.ones_like(shift), shift, background=background, name=name)
