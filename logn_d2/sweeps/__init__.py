"""One pass of the network, and the detections and AP of any number of calibrations."""

from .detections_folder import SweepPredictions
from .results import best_of_grid, evaluate_sweep, sweep_results
from .run import sweep
from .stored_outputs import StoredPredictions, sweep_stored
from .unknown_objects import (
    UnknownObjectsResult,
    evaluate_unknown_objects,
    without_known_classes,
)

__all__ = [
    "StoredPredictions",
    "SweepPredictions",
    "UnknownObjectsResult",
    "best_of_grid",
    "evaluate_sweep",
    "evaluate_unknown_objects",
    "sweep",
    "sweep_results",
    "sweep_stored",
    "without_known_classes",
]
