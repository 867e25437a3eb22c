"""Passes over a data set: logit statistics, LVIS AP, and sweeps over calibrations."""

from .bootstrap import BootstrapResult, bootstrap_difference, bootstrap_lvis
from .calibration_quality import CalibrationQuality, calibration_quality, calibration_table
from .coco_form_evaluator import COCOFormEvaluator, training_groups
from .collect import collect_from_config, collect_statistics
from .detections import Detections, RleMasks
from .errors import ErrorAnalysis, error_analysis, error_table
from .fixed_ap import FixedApResult, detection_limits, evaluate_fixed_ap, pooled_ap
from .lvis_ap import LvisResult, evaluate_lvis
from .lvis_evaluator import LVISFormEvaluator
from .lvis_ground_truth import LvisGroundTruth
from .lvis_matches import LvisMatches, match_lvis
from .resumable_inference import resumable_inference
from .score_table import format_spread, format_table
from .score_threshold import (
    ThresholdCurve,
    ThresholdSuggestion,
    ap_against_threshold,
    suggest_threshold,
)
from .statistics_collector import LogitStatisticsCollector
from .stored_predictions import StoredPredictions, sweep_stored
from .sweep import sweep
from .sweep_predictions import SweepPredictions
from .sweep_results import best_of_grid, evaluate_sweep, sweep_results

__all__ = [
    "BootstrapResult",
    "COCOFormEvaluator",
    "CalibrationQuality",
    "Detections",
    "ErrorAnalysis",
    "FixedApResult",
    "LVISFormEvaluator",
    "LogitStatisticsCollector",
    "LvisGroundTruth",
    "LvisMatches",
    "LvisResult",
    "RleMasks",
    "StoredPredictions",
    "SweepPredictions",
    "ThresholdCurve",
    "ThresholdSuggestion",
    "ap_against_threshold",
    "best_of_grid",
    "bootstrap_difference",
    "bootstrap_lvis",
    "calibration_quality",
    "calibration_table",
    "collect_from_config",
    "collect_statistics",
    "detection_limits",
    "error_analysis",
    "error_table",
    "evaluate_fixed_ap",
    "evaluate_lvis",
    "evaluate_sweep",
    "format_spread",
    "format_table",
    "match_lvis",
    "pooled_ap",
    "resumable_inference",
    "suggest_threshold",
    "sweep",
    "sweep_results",
    "sweep_stored",
    "training_groups",
]
