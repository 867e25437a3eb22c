"""Passes over a data set: logit statistics, LVIS AP, and sweeps over calibrations."""

from .collect import collect_from_config, collect_statistics
from .detections import Detections, RleMasks
from .lvis_ap import LvisResult, evaluate_lvis
from .lvis_evaluator import LVISFormEvaluator
from .lvis_ground_truth import LvisGroundTruth
from .statistics_collector import LogitStatisticsCollector

__all__ = [
    "Detections",
    "LVISFormEvaluator",
    "LogitStatisticsCollector",
    "LvisGroundTruth",
    "LvisResult",
    "RleMasks",
    "collect_from_config",
    "collect_statistics",
    "evaluate_lvis",
]
