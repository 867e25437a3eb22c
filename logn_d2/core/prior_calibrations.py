"""Calibrations that divide a class's score by a power of its prior, that is, shift the logits.

Shapes: K foreground classes. Logits are in nats.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ..errors import UserError
from ..frequency import ClassCounts
from .affine import AffineCalibration, Background, foreground_columns
from .specs import check_number
from .stage import StageStatistics, StatisticsError

Counts = Sequence[int] | np.ndarray | Tensor


def prior_shift(
    log_prior: Tensor, strength: float, *, centre: str = "none", offset: float = 0.0
) -> Tensor:
    """Shifts of a family of calibrations that differ in the prior and its exponent.

        s_c = -strength (log prior_c - m) + offset

    The scale of a prior is arbitrary: counts, shares and mean scores differ by a constant, which
    sets the height of all foreground logits relative to the unchanged background. ``centre``
    removes it.

    Args:
        log_prior (Tensor): (K,) float64, log of each class's count, share or mean score.
        strength (float): strength of the correction; 0 leaves only the offset.
        centre (str): choice of m. "none": 0, the prior's own scale. "mean": the mean of log_prior,
            so that the shifts without the offset sum to 0. "mass": log of the mean of prior, which
            is 0 for a class with the average share of the foreground.
        offset (float): common shift of all foreground logits, in nats; negative values favour the
            background, so that z_c - z_bg matters more in the ranking than the competition between
            classes.

    Returns:
        Tensor: (K,) float64.

    Raises:
        ValueError: an unknown centre, or an offset that is not a finite number.

    Example:
        >>> prior_shift(torch.tensor([100.0, 4.0]).log(), 0.5, centre="mean").exp()
        tensor([0.4472, 2.2361])
    """
    check_number("offset", offset, "(-inf, inf)")
    # All three are cheap; a table of them also lists the names for the error.
    middles = {"none": 0.0, "mean": log_prior.mean(), "mass": log_prior.exp().mean().log()}
    if centre not in middles:
        raise UserError(f"centre is {centre!r}, expected one of {', '.join(middles)}.")
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

    NorCal has b = 0; gamma is a hyper-parameter that its authors choose on the training set,
    without a default. The LogN paper calls this LogA in a detector. Other values of b give other
    methods: gamma log(sum N) is `logit_adjustment`, gamma log(T / K), for T training images, the
    frequency part of FRACAL. ``offset`` is added to the b from ``centre``.

    Args:
        image_count (list, ndarray or Tensor): (K,) training images of each class; 0 counts as 1.
        gamma (float): 0 leaves only the offset.
        centre (str): "none" (NorCal), "mean" or "mass"; see `prior_shift`.
        offset (float): a common shift of the foreground, in nats.
        background (str): "last", "first" or "none".

    In the registry, ``gamma=auto`` takes `matching_gamma` of the statistics.

    Example:
        >>> norcal([100, 4], gamma=0.5)(torch.zeros(1, 3)).exp()  # 1 / 10 and 1 / 2
        tensor([[0.1000, 0.5000, 1.0000]])
    """
    check_number("gamma", gamma, "(-inf, inf)")
    # Dividing a softmax's score by N^gamma and normalising again, background included, as NorCal
    # does, is a shift of the logit.
    shift = prior_shift(positive_counts(image_count).log(), gamma, centre=centre, offset=offset)
    return _shifted(shift, background, "norcal")


def p2p(
    stage: StageStatistics,
    *,
    alpha: float = 1.0,
    source: str = "all",
    centre: str = "mean",
    offset: float = 0.0,
    background: Background = "last",
) -> AffineCalibration:
    """Prior to posterior (Bhat, WACV 2025): scores divided by the detector's own mean posterior.

        z'_c = z_c - alpha (log pi_c - m) + b,     z'_bg = z_bg

    The paper treats image classification; with a background column, b matters. Classes without
    statistics (pi_c = 0) are shifted like the average class.

    Args:
        stage (StageStatistics): statistics with posteriors.
        alpha (float): 1 divides by the full prior.
        source (str): choice of pi: the mean posterior over "all" RoIs, or over each class's
            "negatives", which training can't have memorised; or the share of "labels" among the
            RoIs, where a class without labels counts as one RoI.
        centre (str): "mean": the shifts without b sum to 0. "mass": the posterior mass of the
            foreground is kept, s_c = -alpha log(K pi_c / sum pi). "none": -alpha log pi_c.
        offset (float): b, a common shift of the foreground, in nats.
        background (str): "last", "first" or "none".

    Returns:
        AffineCalibration: K classes, on the CPU.

    Raises:
        StatisticsError: the statistics lack the sums for the source.
        ValueError: an unknown source or centre.

    Example:
        >>> from .moments import LogitMoments
        >>> from .posterior_moments import PosteriorMoments
        >>> logits = torch.tensor([[0.8, 0.1, 0.1], [0.0, 0.1, 0.9]]).clamp(min=1e-9).log()
        >>> moments, posteriors = LogitMoments(3), PosteriorMoments(3)
        >>> moments.update(logits)
        >>> posteriors.update(logits, logits.softmax(dim=1))
        >>> stage = StageStatistics.from_moments(moments, posteriors=posteriors)
        >>> p2p(stage).shift.exp()  # mean posteriors 0.4 and 0.1
        tensor([0.5000, 2.0000])
    """
    check_number("alpha", alpha, "(-inf, inf)")
    log_prior = _log_prior(stage, source, background)
    shift = prior_shift(log_prior, alpha, centre=centre, offset=offset)
    return _shifted(shift, background, "p2p")


def matching_gamma(
    stage: StageStatistics, image_count: Counts, *, background: Background = "last"
) -> float:
    """The gamma with which NorCal removes the dependence of the detector's posteriors on counts.

    It is the slope of the log mean posterior over negatives on log N_c (least squares over
    classes), clipped to [0, 1]. Labels are used only to identify negatives.

    Args:
        stage (StageStatistics): statistics with posteriors and labels.
        image_count (list, ndarray or Tensor): (K,) training images; 0 counts as 1.
        background (str): "last", "first" or "none".

    Returns:
        float: gamma; 0 if all counts are equal.

    Raises:
        StatisticsError: the statistics lack posteriors or labels.

    Example:
        >>> from .moments import LogitMoments
        >>> from .posterior_moments import PosteriorMoments
        >>> scores = torch.tensor([[0.4, 0.2, 0.4]])
        >>> moments, posteriors = LogitMoments(3), PosteriorMoments(3)
        >>> moments.update(scores.log())
        >>> posteriors.update(scores.log(), scores, torch.tensor([2]))
        >>> stage = StageStatistics.from_moments(moments, posteriors=posteriors)
        >>> round(matching_gamma(stage, [80, 20]), 6)  # twice the score at four times the count
        0.5
    """
    # Over negatives, because the posterior of a class on its own objects depends on what it has
    # learned, not only on its prior.
    log_prior = _log_prior(stage, "negatives", background)
    log_count = positive_counts(image_count).log()
    deviation = log_count - log_count.mean()
    square = deviation.square().sum()
    # The slope through equal counts is undefined, and no correction is needed.
    if square == 0:
        return 0.0
    # Below 0 rare classes would be favoured already; above 1 the correction would exceed the full
    # prior.
    return float(((deviation * log_prior).sum() / square).clamp(0, 1))


def _log_prior(stage: StageStatistics, source: str, background: Background) -> Tensor:
    """Log prior of each class, (K,); a class with prior 0 gets the mean of the others."""
    if source not in ("all", "negatives", "labels"):
        raise UserError(f"source is {source!r}, expected one of all, negatives, labels.")
    foreground = foreground_columns(background)
    if source == "labels":
        weight = stage.label_weight()
        # Divided by all RoIs, background included, as posteriors are; the slice comes after it.
        return (weight.clamp(min=1) / weight.sum().clamp(min=1))[foreground].log()
    log_prior = stage.mean_posterior(source)[foreground].log()
    # A mean posterior of 0 has a log of minus infinity, and would be lifted above all other
    # classes.
    known = log_prior[log_prior.isfinite()]
    if len(known) == 0:
        raise StatisticsError("The statistics have no RoIs, so no class has a mean posterior.")
    return torch.where(log_prior.isfinite(), log_prior, known.mean())


def fracal(
    counts: ClassCounts,
    *,
    lam: float = 2.0,
    count: str = "image",
    background: Background = "last",
) -> AffineCalibration:
    """FRACAL (Alexandridis et al., CVPR 2025), for heads with softmax scores.

        z'_c = z_c + log10(T / (K n_c)) - lambda log D_c,     z'_bg = z_bg

    n_c is the number of the class's training images, T that of all training images, and D_c the
    fractal dimension of the positions of its objects. The count's logarithm has base ten, as in the
    released code: the frequency part is `norcal` with gamma 0.434. The rule for sigmoid scores is a
    product of two sigmoids, not an affine map, and can't be folded: heads with sigmoid scores are
    refused.

    Args:
        counts (ClassCounts): counts of the training set, with fractal dimensions.
        lam (float): lambda; 2 in the released configs, 0 for only the frequency part.
        count (str): "image" as in the released results, or "instance", with T all objects.
        background (str): "last", "first" or "none".

    Raises:
        ValueError: the fractal dimensions are unknown, or an unknown count.

    Example:
        >>> names, images = ("axolotl", "bee"), np.array([10, 100])
        >>> dimensions = np.array([1.0, np.e])
        >>> counts = ClassCounts(
        ...     names, images, images, 200, num_records=200, fractal_dimensions=dimensions
        ... )
        >>> [round(shift, 4) for shift in fracal(counts).shift.tolist()]  # 1, and 0 - 2
        [1.0, -2.0]
    """
    check_number("lam", lam, "(-inf, inf)")
    if count not in ("image", "instance"):
        raise UserError(f"count is {count!r}, expected image or instance.")
    number = positive_counts(counts.image_count if count == "image" else counts.instance_count)
    total = counts.num_images if counts.num_records is None else counts.num_records
    if count == "instance":
        total = float(number.sum())
    # log10(x) = gamma log(x): FRACAL's frequency part in the terms of `prior_shift`.
    gamma = 1 / math.log(10)
    shift = prior_shift(number.log(), gamma, offset=gamma * math.log(total / len(number)))
    # With lam=0 the fractal dimensions are not needed: computing them takes a pass over all boxes.
    if lam != 0:
        shift = shift - lam * torch.as_tensor(_fractal_dimensions(counts)).double().log()
    return AffineCalibration(
        torch.ones_like(shift), shift, background=background, name="fracal", softmax_only=True
    )


def _fractal_dimensions(counts: ClassCounts) -> np.ndarray:
    found = counts.fractal_dimensions
    if found is None:
        raise UserError(
            "FRACAL needs the fractal dimensions of the training set's classes, which these counts "
            "lack. Count with class_counts(DATASET), set fractal_dimensions, or use lam=0."
        )
    return found() if callable(found) else found


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

    This is a method for image classification. With a background column it is unpublished, and it is
    *not* NorCal at gamma = tau, which the LogN paper calls LogA in a detector: the normalised prior
    lifts all foreground logits by an additional tau log(sum N), but not the background's. It serves
    classifiers without background, and comparisons.

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
    """Counts as float64; a class without images counts as one, which avoids log 0."""
    count = torch.as_tensor(image_count).double()
    if (count < 0).any():
        raise UserError("A class count is negative; count the training set again.")
    return count.clamp(min=1)


def _shifted(shift: Tensor, background: Background, name: str) -> AffineCalibration:
    return AffineCalibration(torch.ones_like(shift), shift, background=background, name=name)
