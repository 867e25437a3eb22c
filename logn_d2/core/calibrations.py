"""Formulas of post-hoc calibrations: functions that return an `AffineCalibration`.

Shapes: K foreground classes, C logit columns (K + 1 with a background column), D feature channels.
mu and sigma are the mean and standard deviation of a class's logit over the training set; logits
are in nats. Calibrations that divide by a prior are in `prior_calibrations`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import UserError, check_choice
from .affine import AffineCalibration, Background, foreground_columns
from .specs import check_bool, check_number
from .stage import StageStatistics


def logn(
    stage: StageStatistics,
    *,
    background: Background = "last",
    use_mean: bool = True,
    use_std: bool = True,
    beta: str | float = "min",
    std_power: float = 1.0,
    std_reference: str = "none",
    source: str = "all",
    unlabelled: Tensor | None = None,
) -> AffineCalibration:
    """Logit normalization (Zhao, Teng, Wang, IJCV 2024): Eq. 2, or Eq. 1 without background.

        z'_c = (z_c - mu_c + beta) / sigma_c,     z'_bg = z_bg

    Classes without usable statistics (`StageStatistics.usable`) keep their raw logits and are
    ignored when computing beta.

    Args:
        stage (StageStatistics): statistics of this classifier.
        background (str): "last", "first", or "none" for a plain classifier (Eq. 1).
        use_mean (bool): subtract mu (Table 2).
        use_std (bool): divide by sigma (Table 2).
        beta (str or float): "min" (Eq. 2), "max" or "mean" of the foreground means, "background"
            (the background's mean), "none", or a constant (the paper's choices of beta). Without a
            background column every rule means "none".
        std_power (float): exponent of sigma; 2 in the paper's App. B.4.
        std_reference (str): "none" (Eq. 2), or "geometric" to divide by sigma relative to its
            geometric mean over the foreground. Eq. 2 also divides all foreground logits by that
            mean, but not the background's, which changes the temperature between the two.
        source (str): mu and sigma over "all" RoIs (Eq. 2), or over each class's "negatives"; see
            `StageStatistics.negatives`.
        unlabelled (Tensor): (K,) bool, classes without a matched training RoI. Training never
            raised their logits, whose means may lie far below all others, so beta ignores them.
            None if unknown.

    Returns:
        AffineCalibration: K classes, on the CPU.

    Raises:
        StatisticsError: the statistics lack the sums for negatives.
        ValueError: an unknown rule for beta or sigma, the mean of a background without logits, or a
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
    check_choice("source", source, ("all", "negatives"))
    whole, stage = stage, stage.negatives() if source == "negatives" else stage
    foreground = foreground_columns(background)
    # float64 until the end: beta minus mean cancels, and AffineCalibration rounds once to float32.
    mean, usable = stage.mean.double()[foreground], stage.usable[foreground]
    sigma = stage.var.double()[foreground].sqrt() ** std_power / _reference(
        std_reference, std_power, stage, foreground
    )
    # A variance of 0 would give an infinite scale, which `AffineCalibration` refuses.
    sigma = torch.where(usable, sigma, 1.0) if use_std else torch.ones_like(mean)
    # Only beta ignores unlabelled classes; their own logits are still standardised.
    counts = usable if unlabelled is None else usable & ~unlabelled
    # The background's mean comes from all RoIs: it has no negatives in the sense of a class.
    beta = _beta(beta, mean[counts], whole, background)
    offset = beta - mean if use_mean else torch.full_like(mean, beta)
    # With scale 1 and shift 0, an unusable class keeps its raw logits.
    shift = torch.where(usable, offset / sigma, 0.0)
    return AffineCalibration(1 / sigma, shift, background=background, name="logn")


def temperature(
    num_classes: int, *, temperature: float, background: Background = "last"
) -> AffineCalibration:
    """Divide foreground logits by one temperature.

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

    A cosine classifier already has normalised rows, so it stays unchanged.

    Args:
        weight (Tensor): (C, D) weight of the classifier.
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
    # A zero row has norm 0 and an infinite scale, which `AffineCalibration` refuses with its class.
    scale = weight.detach().cpu().double().norm(dim=1)[foreground] ** -tau
    shift = torch.zeros_like(scale)
    if bias is not None:
        bias = bias.detach().cpu().double()[foreground]
        # The map acts on w x + b and so scales the bias too; the shift restores the bias, or
        # removes it, as the formula wants.
        shift = bias * (1 - scale) if keep_bias else -scale * bias
    return AffineCalibration(scale, shift, background=background, name="tau_norm")


def _beta(rule: str | float, mean: Tensor, stage: StageStatistics, background: Background) -> float:
    """beta of Eq. 2 by its rule, from the means of the classes that count; 0 for none."""
    # True is an int in Python, but no constant that anybody would mean.
    if isinstance(rule, (int, float)) and not isinstance(rule, bool):
        return float(rule)
    rules = ("min", "max", "mean", "background", "none")
    if rule not in rules:
        raise UserError(f"beta is {rule!r}, expected one of {', '.join(rules)}, or a number.")
    if rule == "none" or background == "none" or len(mean) == 0:
        return 0.0
    if rule == "background":
        # Count 0 marks a mean that was never measured, such as that of an imported checkpoint.
        index = -1 if background == "last" else 0
        if stage.count[index] == 0:
            raise UserError(
                "beta=background needs the background's mean logit, but these statistics have no "
                "background logits. Collect them with the population 'sampled', or use beta=min."
            )
        return float(stage.mean[index])
    return float(getattr(mean, rule)())


def _reference(
    rule: str, std_power: float, stage: StageStatistics, foreground: slice
) -> Tensor | float:
    """The reference by which sigma to a power is divided."""
    check_choice("std_reference", rule, ("none", "geometric"))
    var = stage.var.double()[foreground][stage.usable[foreground]]
    if rule == "none" or len(var) == 0:
        return 1.0
    # The mean of logs of the variance: half of it is that of sigma.
    return (var.log().mean() * std_power / 2).exp()
