"""Training, the statistics pass and evaluation, in one process or many."""

from .config import load_config
from .errors import short_errors
from .launch import launch
from .runs import (
    check_collection,
    check_evaluation,
    check_training,
    run_collection,
    run_evaluation,
    run_training,
)
from .statistics import collect, statistics_path
from .trainer import Trainer

__all__ = [
    "Trainer",
    "check_collection",
    "check_evaluation",
    "check_training",
    "collect",
    "launch",
    "load_config",
    "run_collection",
    "run_evaluation",
    "run_training",
    "short_errors",
    "statistics_path",
]
