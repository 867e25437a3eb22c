"""One pass of the network, and the detections and AP of any number of calibrations."""

import warnings
from typing import Any

from .detections_folder import SweepDetections
from .results import best_of_grid, evaluate_sweep, sweep_results
from .run import sweep
from .stored_outputs import StoredOutputs, sweep_stored
from .unknown_objects import (
    KnownObjects,
    UnknownObjectsResult,
    evaluate_unknown_objects,
    find_known_objects,
    without_known_classes,
)

__all__ = [
    "KnownObjects",
    "StoredOutputs",
    "SweepDetections",
    "UnknownObjectsResult",
    "best_of_grid",
    "evaluate_sweep",
    "evaluate_unknown_objects",
    "find_known_objects",
    "sweep",
    "sweep_results",
    "sweep_stored",
    "without_known_classes",
]

_OLD_NAMES = {"StoredPredictions": StoredOutputs, "SweepPredictions": SweepDetections}


def __getattr__(name: str) -> Any:
    if name not in _OLD_NAMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    new = _OLD_NAMES[name]
    warnings.warn(
        f"{__name__}.{name} is {__name__}.{new.__name__} now.", DeprecationWarning, stacklevel=2
    )
    return new
