"""One pass of the network, and the detections and AP of any number of calibrations."""

from .detections_folder import SweepPredictions
from .results import best_of_grid, evaluate_sweep, sweep_results
from .run import sweep
from .stored_outputs import StoredPredictions, sweep_stored

__all__ = [
    "StoredPredictions",
    "SweepPredictions",
    "best_of_grid",
    "evaluate_sweep",
    "sweep",
    "sweep_results",
    "sweep_stored",
]
