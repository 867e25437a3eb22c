"""LogN for Detectron2: make a trained long-tail detector fair to its rare classes.

LogN (Zhao, Teng, Wang, IJCV 2024) calibrates a trained detector after training. It is not LogitNorm
(Wei et al., ICML 2022), a training loss for out-of-distribution detection.

Names load on first use, so that `logn_d2.core` works where Detectron2 is not installed.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_HOMES = {
    "AffineCalibration": "logn_d2.core",
    "LogitMoments": "logn_d2.core",
    "LogitStatistics": "logn_d2.core",
    "logn": "logn_d2.core",
    "add_logn_config": "logn_d2.config",
    "config_file": "logn_d2.config",
    "attach": "logn_d2.modeling",
    "detach": "logn_d2.modeling",
    "fold": "logn_d2.modeling",
    "LogNCascadeROIHeads": "logn_d2.modeling",
    "LogNFastRCNNOutputLayers": "logn_d2.modeling",
    "LogNROIHeads": "logn_d2.modeling",
    "LogNRes5ROIHeads": "logn_d2.modeling",
    "LogitStatisticsCollector": "logn_d2.evaluation",
    "collect_statistics": "logn_d2.evaluation",
    "register_lvis_form": "logn_d2.data",
}

__all__ = sorted([*_HOMES, "__version__"])


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
