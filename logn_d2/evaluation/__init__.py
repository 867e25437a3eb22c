"""Old names of `logn_d2.lvis`, `analysis`, `collection`, `sweeps` and `evaluators`; deprecated.

They work for one release, with a warning that names the new place.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import sys
import warnings
from collections.abc import Sequence
from types import ModuleType
from typing import Any

_NAMES = {
    "BootstrapResult": "analysis",
    "COCOFormEvaluator": "evaluators",
    "CalibrationQuality": "analysis",
    "Detections": "lvis",
    "ErrorAnalysis": "analysis",
    "FixedApResult": "lvis",
    "LVISFormEvaluator": "evaluators",
    "LogitStatisticsCollector": "collection",
    "LvisGroundTruth": "lvis",
    "LvisMatches": "lvis",
    "LvisResult": "lvis",
    "RleMasks": "lvis",
    "StoredPredictions": "sweeps",
    "SweepPredictions": "sweeps",
    "ThresholdCurve": "analysis",
    "ThresholdSuggestion": "analysis",
    "ap_against_threshold": "analysis",
    "best_of_grid": "sweeps",
    "bootstrap_difference": "analysis",
    "bootstrap_lvis": "analysis",
    "calibration_quality": "analysis",
    "calibration_table": "analysis",
    "collect_from_config": "collection",
    "collect_statistics": "collection",
    "detection_limits": "evaluators",
    "error_analysis": "analysis",
    "error_table": "analysis",
    "evaluate_fixed_ap": "lvis",
    "evaluate_lvis": "lvis",
    "evaluate_sweep": "sweeps",
    "format_spread": "analysis",
    "format_table": "analysis",
    "match_lvis": "lvis",
    "pooled_ap": "lvis",
    "resumable_inference": "evaluators",
    "suggest_threshold": "analysis",
    "sweep": "sweeps",
    "sweep_results": "sweeps",
    "sweep_stored": "sweeps",
    "training_groups": "evaluators",
}
_MODULES = {
    "before_after": "pictures.before_after",
    "bootstrap": "analysis.bootstrap",
    "calibration_quality": "analysis.calibration_quality",
    "coco_form_evaluator": "evaluators.coco_form",
    "collect": "collection.run",
    "detection_order": "lvis.order",
    "detection_outcomes": "analysis.outcomes",
    "detection_store": "evaluators.detection_store",
    "detections": "lvis.detections",
    "early_stopping": "collection.stopping",
    "errors": "analysis.errors",
    "fixed_ap": "lvis.fixed_ap",
    "lvis_accumulate": "lvis.accumulate",
    "lvis_ap": "lvis.evaluate",
    "lvis_checks": "lvis.checks",
    "lvis_engines": "lvis.engines",
    "lvis_evaluator": "evaluators.lvis_form",
    "lvis_ground_truth": "lvis.ground_truth",
    "lvis_matches": "lvis.matches",
    "lvis_matching": "lvis.matching",
    "lvis_ranking": "lvis.ranking",
    "lvis_result": "lvis.result",
    "partial_statistics": "passes.shards",
    "prediction_store": "sweeps.output_store",
    "resumable_inference": "evaluators.resumable_inference",
    "resume": "passes.resume",
    "rle_masks": "lvis.masks",
    "run_table": "analysis.run_table",
    "score_table": "analysis.score_table",
    "score_threshold": "analysis.thresholds",
    "side_by_side": "pictures.side_by_side",
    "statistics_collector": "collection.collector",
    "stored_predictions": "sweeps.stored_outputs",
    "sweep": "sweeps.run",
    "sweep_predictions": "sweeps.detections_folder",
    "sweep_ranking": "sweeps.union",
    "sweep_results": "sweeps.results",
    "sweep_runner": "sweeps.network",
}


def __getattr__(name: str) -> Any:
    if name not in _NAMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    _warn(f"{__name__}.{name}", f"logn_d2.{_NAMES[name]}.{name}")
    return getattr(importlib.import_module(f"logn_d2.{_NAMES[name]}"), name)


def _warn(old: str, new: str) -> None:
    warnings.warn(f"{old} is {new} now.", DeprecationWarning, stacklevel=3)


class _Moved(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds a module that has moved under its old name."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        name = fullname.removeprefix(f"{__name__}.")
        known = fullname != name and name in _MODULES
        return importlib.machinery.ModuleSpec(fullname, self) if known else None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        new = f"logn_d2.{_MODULES[spec.name.removeprefix(f'{__name__}.')]}"
        _warn(spec.name, new)
        module = importlib.import_module(new)
        self._spec = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        """Nothing but its own place back: it is loaded already."""
        module.__spec__ = self._spec


sys.meta_path.append(_Moved())
