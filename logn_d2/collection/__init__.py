"""The statistics pass: mean and variance of each class's logit over a training set."""

from .collector import LogitStatisticsCollector
from .run import collect_from_config, collect_statistics

__all__ = [
    "LogitStatisticsCollector",
    "collect_from_config",
    "collect_statistics",
]
