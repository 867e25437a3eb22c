"""The mathematics: what a project without Detectron2 can use. Imports torch, numpy, safetensors."""

from .affine import AffineCalibration
from .calibrations import (
    CALIBRATION_REGISTRY,
    CalibrationInputs,
    build_calibration,
    class_balanced,
    logit_adjustment,
    logn,
    norcal,
    parse_calibration,
    stage_calibrations,
    temperature,
)
from .files import atomic_write
from .frequency import ClassCounts, frequency_groups, shot_groups
from .moments import EmaLogitMoments, LogitMoments, NonFiniteLogitsError
from .registry import Registry
from .statistics import (
    LogitStatistics,
    StageStatistics,
    StatisticsError,
    classifier_fingerprint,
)

__all__ = [
    "CALIBRATION_REGISTRY",
    "AffineCalibration",
    "CalibrationInputs",
    "ClassCounts",
    "EmaLogitMoments",
    "LogitMoments",
    "LogitStatistics",
    "NonFiniteLogitsError",
    "Registry",
    "StageStatistics",
    "StatisticsError",
    "atomic_write",
    "build_calibration",
    "class_balanced",
    "classifier_fingerprint",
    "frequency_groups",
    "logit_adjustment",
    "logn",
    "norcal",
    "parse_calibration",
    "shot_groups",
    "stage_calibrations",
    "temperature",
]
