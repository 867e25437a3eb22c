"""The mathematics, for use without Detectron2: imports only torch, numpy and safetensors."""

from ..frequency import ClassCounts, CountsSource, frequency_groups, shot_groups
from . import calibration_entries  # noqa: F401  only registration
from .affine import AffineCalibration
from .auto_calibration import auto
from .batch_norm_import import import_batch_norm, load_batch_norm
from .calibration_grids import expand_grid
from .calibration_registry import (
    CALIBRATION_REGISTRY,
    CalibrationInputs,
    build_calibration,
    parse_calibration,
    stage_calibrations,
)
from .calibrations import logn, tau_norm, temperature
from .ema_moments import EmaLogitMoments
from .fingerprint import classifier_fingerprint
from .fold import fold_cosine, fold_linear
from .fractal import fractal_dimensions_of
from .learned_scales import learned_scales, lws
from .losses import LOSS_REGISTRY, ClassificationLoss, build_loss
from .moments import LogitMoments, NonFiniteLogitsError
from .posterior_moments import PosteriorMoments
from .prior_calibrations import (
    class_balanced,
    fracal,
    logit_adjustment,
    matching_gamma,
    norcal,
    p2p,
    prior_shift,
)
from .registry import Registry
from .sampling_error import sampling_error
from .stage import StageStatistics, StatisticsError
from .statistics import LogitStatistics

__all__ = [
    "CALIBRATION_REGISTRY",
    "LOSS_REGISTRY",
    "AffineCalibration",
    "CalibrationInputs",
    "ClassCounts",
    "CountsSource",
    "ClassificationLoss",
    "EmaLogitMoments",
    "LogitMoments",
    "LogitStatistics",
    "NonFiniteLogitsError",
    "PosteriorMoments",
    "Registry",
    "StageStatistics",
    "StatisticsError",
    "auto",
    "build_calibration",
    "build_loss",
    "class_balanced",
    "classifier_fingerprint",
    "expand_grid",
    "fold_cosine",
    "fold_linear",
    "fracal",
    "fractal_dimensions_of",
    "frequency_groups",
    "import_batch_norm",
    "learned_scales",
    "load_batch_norm",
    "logit_adjustment",
    "logn",
    "lws",
    "matching_gamma",
    "norcal",
    "p2p",
    "parse_calibration",
    "prior_shift",
    "sampling_error",
    "shot_groups",
    "stage_calibrations",
    "tau_norm",
    "temperature",
]
