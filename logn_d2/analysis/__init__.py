"""Beyond AP: intervals, kinds of errors, calibration quality, thresholds. Needs no torch."""

from .best_f1 import best_f1_threshold
from .bootstrap import BootstrapResult, bootstrap_difference, bootstrap_lvis
from .calibration_quality import CalibrationQuality, calibration_quality, calibration_table
from .choice import Choice, choose
from .errors import ErrorAnalysis, error_analysis, error_table
from .outcomes import DetectionOutcomes, label_detections
from .run_table import run_table
from .score_table import format_spread, format_table
from .thresholds import ThresholdCurve, ThresholdSuggestion, ap_against_threshold, suggest_threshold

__all__ = [
    "BootstrapResult",
    "CalibrationQuality",
    "Choice",
    "DetectionOutcomes",
    "ErrorAnalysis",
    "ThresholdCurve",
    "ThresholdSuggestion",
    "ap_against_threshold",
    "best_f1_threshold",
    "bootstrap_difference",
    "bootstrap_lvis",
    "calibration_quality",
    "calibration_table",
    "choose",
    "error_analysis",
    "error_table",
    "format_spread",
    "format_table",
    "label_detections",
    "run_table",
    "suggest_threshold",
]
