"""A calibration without hyper-parameters, class counts or validation labels."""

from __future__ import annotations

from .affine import AffineCalibration, Background
from .prior_calibrations import p2p
from .stage import StageStatistics


def auto(stage: StageStatistics, *, background: Background = "last") -> AffineCalibration:
    """Minus the log of each class's mean posterior, centred.

        z'_c = z_c - log pi_c + mean_k log pi_k,     z'_bg = z_bg

    pi is the mean posterior over all RoIs of the statistics pass: the detector's own prior. The
    shifts are centred because the share of background among sampled RoIs is the sampler's, and says
    nothing about the images. There is no constant to choose.

    It did not pass as the calibration for every detector: docs/when_logn_helps.md says where it
    gains most, and where it costs AP (GTSDB, frequent classes of linear classifiers).

    Args:
        stage (StageStatistics): statistics with posteriors.
        background (str): "last", "first" or "none".

    Returns:
        AffineCalibration: K classes, on the CPU; it is ``p2p(alpha=1, centre=mean)``.

    Raises:
        StatisticsError: the statistics have no mean posteriors.

    Example:
        >>> import torch
        >>> from .moments import LogitMoments
        >>> from .posterior_moments import PosteriorMoments
        >>> scores = torch.tensor([[0.4, 0.1, 0.5]])
        >>> moments, posteriors = LogitMoments(3), PosteriorMoments(3)
        >>> moments.update(scores.log())
        >>> posteriors.update(scores.log(), scores)
        >>> stage = StageStatistics.from_moments(moments, posteriors=posteriors)
        >>> auto(stage).shift.exp()
        tensor([0.5000, 2.0000])
    """
    calibration = p2p(
        stage, alpha=1.0, source="all", centre="mean", offset=0.0, background=background
    )
    calibration.name = "auto"
    return calibration
