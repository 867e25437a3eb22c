"""How far calibrated logits may be off because their statistics come from finitely many images.

Shapes: K foreground classes, C logit columns (K + 1 with a background column). Logits are in nats.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .affine import Background, foreground_columns
from .stage import MIN_VARIANCE, StageStatistics, StatisticsError

__all__ = ["DEVIATIONS", "logn_std_error"]

# Logits that are looked at, in standard deviations above their class's mean: from an average RoI to
# one that looks like the class.
DEVIATIONS = (0.0, 3.0)


def logn_std_error(stage: StageStatistics, *, background: Background = "last") -> Tensor:
    """Standard error of LogN's logits, for each class.

    The calibrated logit z' = (z - mu + beta) / sigma inherits the errors of mu, sigma and beta. By
    the delta method, to first order,

        dz' = -dmu / sigma - z' dsigma / sigma + dbeta / sigma.

    The error of the first two terms has their covariance; images, not RoIs, are what is drawn
    independently (see `LogitMoments`). beta is another class's mean, and how its error goes
    together with this class's is not known from O(K) numbers: its standard error is added in full,
    which makes the result an upper bound. The variance of dz' is convex in z, so the larger of two
    values bounds all z between them: the result holds from z = mu to z = mu + 3 sigma
    (`DEVIATIONS`).

    Which class is beta's counts as known, and images as drawn with replacement: of a pass that is
    nearly complete, the error is smaller.

    Args:
        stage (StageStatistics): exact statistics.
        background (str): where the background column is: "last", "first" or "none".

    Returns:
        Tensor: (K,) float64, in units of the calibrated logit. Infinite for classes seen in fewer
        than two images, 0 for those whose logit never varies: LogN leaves them as they are. An
        image counts for all classes unless the population is "positives".

    Raises:
        StatisticsError: moving averages, or exact statistics of a release that did not keep what
            the error of the variance follows from.

    Example:
        >>> from .moments import LogitMoments
        >>> moments = LogitMoments(num_columns=2)
        >>> for image in torch.randn(100, 50, 2, generator=torch.Generator().manual_seed(0)):
        ...     moments.update(image)
        >>> bool(logn_std_error(StageStatistics.from_moments(moments)) < 0.05)
        True
    """
    if stage.moments is None:
        raise StatisticsError(
            "Moving averages have no standard error. Collect with the exact estimator "
            "(MODEL.LOGN.COLLECT.ESTIMATOR exact)."
        )
    if stage.moments.spread_square.isnan().any():
        raise StatisticsError(
            "These statistics lack what the error of a variance follows from: an older logn_d2 "
            "wrote them. Collect them again."
        )
    # What LogN leaves alone gets values that can be divided by; they are replaced at the end.
    var = stage.moments.var.clamp(min=MIN_VARIANCE)
    std = var.sqrt()
    beta, of_beta, beta_error = _beta(stage, background)
    # In beta's own class, mu and beta cancel.
    mean_weight = torch.where(of_beta, 0.0, -1 / std)
    others = torch.where(of_beta, 0.0, beta_error / std)
    errors = [
        stage.moments.linear_std_error(mean_weight, -(d + beta / std) / (2 * var)) + others
        for d in DEVIATIONS
    ]
    error = torch.where(stage.usable, torch.stack(errors).amax(dim=0), 0.0)
    error = torch.where(stage.moments.clusters < 2, torch.inf, error)
    return error[foreground_columns(background)]


def _beta(stage: StageStatistics, background: Background) -> tuple[float, Tensor, float]:
    """beta of Eq. 2, (C,) bool the column that it is the mean of, and its standard error."""
    columns = torch.arange(len(stage.mean))
    candidates = columns[foreground_columns(background)]
    candidates = candidates[stage.usable[candidates]]
    if background == "none" or len(candidates) == 0:
        return 0.0, torch.zeros_like(columns, dtype=torch.bool), 0.0
    index = candidates[stage.mean[candidates].argmin()]
    return float(stage.mean[index]), columns == index, float(stage.moments.std_error[index])
