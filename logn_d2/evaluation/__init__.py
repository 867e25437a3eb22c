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

# Package -> the names that it has now.
_PACKAGES = {
    "analysis": "BootstrapResult CalibrationQuality ErrorAnalysis ThresholdCurve "
    "ThresholdSuggestion ap_against_threshold bootstrap_difference bootstrap_lvis "
    "calibration_quality calibration_table error_analysis error_table format_spread format_table "
    "suggest_threshold",
    "collection": "LogitStatisticsCollector collect_from_config collect_statistics",
    "evaluators": "COCOFormEvaluator LVISFormEvaluator detection_limits resumable_inference "
    "training_groups",
    "lvis": "Detections FixedApResult LvisGroundTruth LvisMatches LvisResult RleMasks "
    "evaluate_fixed_ap evaluate_lvis match_lvis pooled_ap",
    "sweeps": "StoredPredictions SweepPredictions best_of_grid evaluate_sweep sweep sweep_results "
    "sweep_stored",
}
# Package -> its modules as OLD or OLD=NEW.
_MOVED = {
    "analysis": "bootstrap calibration_quality detection_outcomes=outcomes errors run_table "
    "score_table score_threshold=thresholds",
    "collection": "collect=run early_stopping=stopping statistics_collector=collector",
    "evaluators": "coco_form_evaluator=coco_form detection_store lvis_evaluator=lvis_form "
    "resumable_inference",
    "lvis": "detection_order=order detections fixed_ap lvis_accumulate=accumulate "
    "lvis_ap=evaluate lvis_checks=checks lvis_engines=engines lvis_ground_truth=ground_truth "
    "lvis_matches=matches lvis_matching=matching lvis_ranking=ranking lvis_result=result "
    "rle_masks=masks",
    "passes": "partial_statistics=shards resume",
    "pictures": "before_after side_by_side",
    "sweeps": "prediction_store=output_store stored_predictions=stored_outputs sweep=run "
    "sweep_predictions=detections_folder sweep_ranking=union sweep_results=results "
    "sweep_runner=network",
}
_NAMES = {name: home for home, names in _PACKAGES.items() for name in names.split()}
_MODULES = {
    old: f"{home}.{new or old}"
    for home, names in _MOVED.items()
    for old, _, new in (name.partition("=") for name in names.split())
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
