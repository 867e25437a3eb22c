"""The formulas of the post-hoc calibrations: functions that return an `AffineCalibration`.

Shapes: K foreground classes, C logit columns (K + 1 with a background column), D feature channels.
mu and sigma are the mean and standard deviation of a class's logit over the training set, N_c is
the number of its training images. Logits are in nats.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ..errors import UserError
from .affine import AffineCalibration, Background, foreground_columns
from .calls import check_bool, check_number
from .stage import StageStatistics

__all__ = ["class_balanced", "logit_adjustment", "logn", "norcal", "tau_norm", "temperature"]

Counts = Sequence[int] | np.ndarray | Tensor


def logn(
    stage: StageStatistics,
    *,
    background: Background = "last",
    use_mean: bool = True,
    use_std: bool = True,
    beta: str | float = "min",
    std_power: float = 1.0,
) -> AffineCalibration:
    """Logit normalization (Zhao, Teng, Wang, IJCV 2024): Eq. 2, or Eq. 1 without background.

        z'_c = (z_c - mu_c + beta) / sigma_c,     z'_bg = z_bg

    Classes that the statistics can't speak for (`StageStatistics.usable`) keep their raw logit, and
    have no say in beta.

    Args:
        stage (StageStatistics): of this classifier.
        background (str): "last", "first", or "none" for a plain classifier (Eq. 1).
        use_mean (bool): subtract mu (Table 2).
        use_std (bool): divide by sigma (Table 2).
        beta (str or float): "min" (Eq. 2), "max" or "mean" of the foreground means, "background"
            (the background's mean), "none", or a constant (the paper's choices of beta). Without a
            background column every rule means "none".
        std_power (float): exponent of sigma; 2 in the paper's App. B.4.

    Returns:
        AffineCalibration: K classes, on the CPU.

    Raises:
        ValueError: an unknown rule for beta, the mean of a background that was never seen, or a
            switch that is neither True nor False.

    Example:
        >>> stage = StageStatistics(
        ...     mean=torch.tensor([-2.0, -3.0, 4.0]),
        ...     var=torch.tensor([4.0, 0.25, 9.0]),
        ...     count=torch.tensor([10, 10, 10]),
        ... )
        >>> logn(stage)(torch.tensor([[2.0, 0.5, 1.0]])).tolist()
        [[0.5, 1.0, 1.0]]
    """
    check_number("std_power", std_power, "(-inf, inf)")
    check_bool("use_mean", use_mean)
    check_bool("use_std", use_std)
    foreground = foreground_columns(background)
    mean, usable = stage.mean.double()[foreground], stage.usable[foreground]
    sigma = stage.var.double()[foreground].sqrt() ** std_power
    sigma = torch.where(usable, sigma, 1.0) if use_std else torch.ones_like(mean)
    offset = _beta(beta, stage, background) - (mean if use_mean else torch.zeros_like(mean))
    shift = torch.where(usable, offset / sigma, 0.0)
    return AffineCalibration(1 / sigma, shift, background=background, name="logn")


def norcal(
    image_count: Counts, *, gamma: float, background: Background = "last"
) -> AffineCalibration:
    """NorCal (Pan et al., NeurIPS 2021): foreground scores divided by N_c^gamma.

        z'_c = z_c - gamma log N_c,     z'_bg = z_bg

    gamma is a hyper-parameter that the authors choose on the training set; there is no default.

    Args:
        image_count (list, ndarray or Tensor): (K,) training images of each class; 0 counts as 1.
        gamma (float): 0 changes nothing.
        background (str): "last", "first" or "none".

    Example:
        >>> norcal([100, 4], gamma=0.5)(torch.zeros(1, 3)).exp()  # 1 / 10 and 1 / 2
        tensor([[0.1000, 0.5000, 1.0000]])
    """
    check_number("gamma", gamma, "(-inf, inf)")
    count = _positive_counts(image_count)
    return AffineCalibration(
        torch.ones_like(count), -gamma * count.log(), background=background, name="norcal"
    )


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
    count = _positive_counts(image_count)
    shift = torch.log((1 - gamma) / (1 - gamma**count))
    return AffineCalibration(
        torch.ones_like(count), shift, background=background, name="class_balanced"
    )


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
    count = _positive_counts(image_count)
    shift = -tau * (count / count.sum()).log()
    return AffineCalibration(
        torch.ones_like(count), shift, background=background, name="logit_adjustment"
    )


def temperature(
    num_classes: int, *, temperature: float, background: Background = "last"
) -> AffineCalibration:
    """Foreground logits divided by one temperature.

    Args:
        num_classes (int): K.
        temperature (float): above 0; 1 changes nothing.
        background (str): "last", "first" or "none".

    Raises:
        ValueError: a temperature that is not above 0.

    Example:
        >>> temperature(1, temperature=2.0)(torch.tensor([[3.0, 3.0]])).tolist()
        [[1.5, 3.0]]
    """
    check_number("temperature", temperature, "(0, inf]")
    scale = torch.full((num_classes,), 1 / temperature)
    return AffineCalibration(
        scale, torch.zeros_like(scale), background=background, name="temperature"
    )


def tau_norm(
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    tau: float = 1.0,
    keep_bias: bool = True,
    background: Background = "last",
) -> AffineCalibration:
    """tau-normalisation (Kang et al., ICLR 2020) of a linear classifier's foreground rows.

        z'_c = w_c x / ||w_c||^tau + b_c,     z'_bg = z_bg

    A cosine classifier normalises its rows already; this changes nothing about it.

    Args:
        weight (Tensor): (C, D) of the classifier.
        bias (Tensor): (C,), or None.
        tau (float): 0 changes nothing; 1 makes all norms 1.
        keep_bias (bool): False drops the foreground bias, as the authors do for image
            classification.
        background (str): "last", "first" or "none".

    Raises:
        ValueError: a weight row is zero, or ``keep_bias`` neither True nor False.

    Example:
        >>> calibration = tau_norm(torch.tensor([[3.0, 4.0], [1.0, 1.0]]))
        >>> calibration(torch.tensor([[10.0, 2.0]])).tolist()
        [[2.0, 2.0]]
    """
    check_number("tau", tau, "(-inf, inf)")
    check_bool("keep_bias", keep_bias)
    foreground = foreground_columns(background)
    scale = weight.detach().cpu().double().norm(dim=1)[foreground] ** -tau
    shift = torch.zeros_like(scale)
    if bias is not None:
        bias = bias.detach().cpu().double()[foreground]
        shift = bias * (1 - scale) if keep_bias else -scale * bias
    return AffineCalibration(scale, shift, background=background, name="tau_norm")


def _beta(rule: str | float, stage: StageStatistics, background: Background) -> float:
    """beta of Eq. 2 by its rule; 0 for none."""
    if isinstance(rule, (int, float)) and not isinstance(rule, bool):
        return float(rule)
    rules = ("min", "max", "mean", "background", "none")
    if rule not in rules:
        raise UserError(f"beta is {rule!r}, expected one of {', '.join(rules)}, or a number.")
    foreground = foreground_columns(background)
    mean = stage.mean.double()[foreground][stage.usable[foreground]]
    if rule == "none" or background == "none" or len(mean) == 0:
        return 0.0
    if rule == "background":
        index = -1 if background == "last" else 0
        if stage.count[index] == 0:
            raise UserError(
                "beta=background needs the background's mean logit, but these statistics saw no "
                "background logit. Collect them with the population 'sampled', or use beta=min."
            )
        return float(stage.mean[index])
    return float(getattr(mean, rule)())


def _positive_counts(image_count: Counts) -> Tensor:
    """Counts as float64; a class without images counts as one, since log 0 has no use here."""
    count = torch.as_tensor(image_count).double()
    if (count < 0).any():
        raise UserError("A class count is negative; count the training set again.")
    return count.clamp(min=1)
