"""Passes over a data set: logit statistics, LVIS AP, and sweeps over calibrations."""

from .collect import collect_from_config, collect_statistics
from .detections import Detections, RleMasks
from .lvis_ap import LvisResult, evaluate_lvis
from .lvis_evaluator import LVISFormEvaluator
from .lvis_ground_truth import LvisGroundTruth
from .statistics_collector import LogitStatisticsCollector
from .stored_predictions import StoredPredictions, sweep_stored
from .sweep import sweep
from .sweep_predictions import SweepPredictions
from .sweep_results import best_of_grid, evaluate_sweep, format_table, sweep_results

__all__ = [
    "Detections",
    "LVISFormEvaluator",
    "LogitStatisticsCollector",
    "LvisGroundTruth",
    "LvisResult",
    "RleMasks",
    "StoredPredictions",
    "SweepPredictions",
    "best_of_grid",
    "collect_from_config",
    "collect_statistics",
    "evaluate_lvis",
    "evaluate_sweep",
    "format_table",
    "sweep",
    "sweep_results",
    "sweep_stored",
]
