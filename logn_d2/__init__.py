"""LogN for Detectron2: make a trained long-tail detector fair to its rare classes.

LogN (Zhao, Teng, Wang, IJCV 2024) calibrates a trained detector after training. It is not LogitNorm
(Wei et al., ICML 2022), a training loss for out-of-distribution detection.

Names load on first use, so that `logn_d2.core` works without Detectron2.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # editors and type checkers read no __getattr__
    from .collection import LogitStatisticsCollector, collect_statistics
    from .collection import collect_statistics as collect
    from .config import add_logn_config, config_file
    from .core import AffineCalibration, LogitMoments, LogitStatistics, logn
    from .data import register_lvis_form
    from .engine.verbs import evaluate, sweep
    from .modeling import (
        LogNCascadeROIHeads,
        LogNFastRCNNOutputLayers,
        LogNRes5ROIHeads,
        LogNROIHeads,
        attach,
        detach,
        fold,
    )

__version__ = "0.1.0"

UNCALIBRATED = "uncalibrated"
"""The calibration that changes nothing, the baseline of all comparisons."""

_HOMES = {
    name: f"logn_d2.{home}"
    for home, names in {
        "collection": "LogitStatisticsCollector collect collect_statistics",
        "config": "add_logn_config config_file",
        "core": "AffineCalibration LogitMoments LogitStatistics logn",
        "data": "register_lvis_form",
        "engine.verbs": "evaluate sweep",
        "modeling": "LogNCascadeROIHeads LogNFastRCNNOutputLayers LogNROIHeads LogNRes5ROIHeads "
        "attach detach fold",
    }.items()
    for name in names.split()
}

__all__ = [
    "AffineCalibration",
    "LogNCascadeROIHeads",
    "LogNFastRCNNOutputLayers",
    "LogNROIHeads",
    "LogNRes5ROIHeads",
    "LogitMoments",
    "LogitStatistics",
    "LogitStatisticsCollector",
    "__version__",
    "add_logn_config",
    "attach",
    "collect",
    "collect_statistics",
    "config_file",
    "detach",
    "evaluate",
    "fold",
    "logn",
    "register_lvis_form",
    "sweep",
]

_OTHER_NAMES = {"collect": "collect_statistics"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return getattr(importlib.import_module(_HOMES[name]), _OTHER_NAMES.get(name, name))
    except ModuleNotFoundError as error:
        root = (error.name or "").partition(".")[0]
        if root not in ("detectron2", "fvcore", "pycocotools"):
            raise
        raise ModuleNotFoundError(
            f"logn_d2.{name} needs {root}, which is not installed. Install Detectron2 as "
            "described in the README; logn_d2.core works without it.",
            name=error.name,
        ) from error


def __dir__() -> list[str]:
    return __all__
