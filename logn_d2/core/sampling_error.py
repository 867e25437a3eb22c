"""Standard error of calibrated logits due to statistics from finitely many images.

Shapes: K foreground classes, C logit columns (K + 1 with a background column), G groups of images.
Logits are in nats.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .affine import AffineCalibration, Background, foreground_columns
from .calibrations import logn
from .moments import jackknife_error
from .stage import StageStatistics, StatisticsError

# Raw logits at which the error is computed, in standard deviations above the class's mean: from an
# average RoI to one that resembles the class.
DEVIATIONS = (0.0, 3.0)


def sampling_error(
    stage: StageStatistics,
    calibration: Callable[..., AffineCalibration] = logn,
    *,
    background: Background = "last",
) -> Tensor:
    """Standard error that the statistics contribute to calibrated logits, for each class.

    The complete calibration, including beta, is recomputed from the statistics without each of the
    groups of images in `LogitMoments` (delete-a-group jackknife), and its logits are compared at
    the class's mean and 3 standard deviations above (`DEVIATIONS`); the larger error counts. A
    calibrated logit is linear in the raw one, so its variance is a convex parabola, and no error in
    between is larger.

    The error describes other sets of as many images, drawn at random as these were. All views of an
    image are in one group, so repeated images do not count as new ones. For a pass over most of a
    fixed set, the error relative to the complete pass is smaller. With twenty groups, the error
    itself has a standard deviation of about 16 %.

    Args:
        stage (StageStatistics): exact statistics.
        calibration (Callable): ``calibration(stage, background=...)``, for example
            ``functools.partial(logn, beta="mean")``.
        background (str): position of the background column: "last", "first" or "none".

    Returns:
        Tensor: (K,) float64, in units of the calibrated logit. Infinite for classes seen in only
        one group of images, 0 for those whose logit never varies, which LogN leaves unchanged.
        An image counts for all classes unless the population is "positives".

    Raises:
        StatisticsError: moving averages, or exact statistics from a release without groups.

    Example:
        >>> from .moments import LogitMoments
        >>> moments = LogitMoments(num_columns=2)
        >>> for image in torch.randn(100, 50, 2, generator=torch.Generator().manual_seed(0)):
        ...     moments.update(image)
        >>> bool(sampling_error(StageStatistics.from_moments(moments)) < 0.05)
        True
    """
    if stage.moments is None:
        raise StatisticsError(
            "Moving averages have no standard error. Collect with the exact estimator "
            "(MODEL.LOGN.COLLECT.ESTIMATOR exact)."
        )
    # Files of early releases have no groups; their shares are NaN.
    shares = stage.moments.leave_one_out()[0]
    if shares.isnan().any():
        raise StatisticsError(
            "These statistics lack the groups of images that standard errors need: an older "
            "logn_d2 wrote them. Collect them again."
        )
    columns = foreground_columns(background)
    std = stage.var.sqrt()
    # At the same raw logits for all replicates: the spread wanted is that of the map, not of its
    # input.
    logits = torch.stack([stage.mean + d * std for d in DEVIATIONS])
    replicates = torch.stack([
        # The map is rounded to float32 when it is made; applying it in float64 keeps the logits'
        # own rounding out of small differences.
        calibration(left, background=background).double()(logits) for left in stage.leave_one_out()
    ])  # fmt: skip
    whole = calibration(stage, background=background).double()(logits)
    return jackknife_error(replicates, whole, shares).amax(dim=0)[columns]
