"""All numbers of a report, computed from detections and annotations alone.

The intervals are of a bootstrap over images, with the same resamples for all runs, so that the
difference of two runs has an interval of its own (`bootstrap_difference` explains why it is the
narrower one). None of them covers the difference between two trainings.

Shapes: K foreground classes.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from logn_d2.evaluation.bootstrap import BootstrapResult, bootstrap_lvis
from logn_d2.evaluation.calibration_quality import CalibrationQuality, calibration_quality
from logn_d2.evaluation.errors import ErrorAnalysis, error_analysis
from logn_d2.evaluation.lvis_ground_truth import LvisGroundTruth
from logn_d2.evaluation.lvis_matches import LvisMatches, match_lvis
from logn_d2.evaluation.lvis_result import class_members
from logn_d2.evaluation.score_threshold import (
    ThresholdCurve,
    ThresholdSuggestion,
    ap_against_threshold,
    suggest_threshold,
)

from .results import TASKS, ClassInfo
from .run_folder import Run

__all__ = ["FIXED", "Comparison", "Settings", "TaskFigures", "Value", "compare"]

FIXED = "AP fixed"
"""AP of the best 10,000 detections of each class, however many an image has."""

_FIXED_PER_CLASS = 10_000
# Of the curve of AP against the score threshold: denser where most scores are.
_THRESHOLDS = (0, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, *(tenths / 10 for tenths in range(1, 10)))


@dataclass(frozen=True)
class Settings:
    """What a user can choose.

    Attributes:
        resamples (int): of the bootstrap.
        seed (int): of the bootstrap.
        max_dets (int): detections of each image that count; negative for all. Fixed AP keeps all.
        score_threshold (float): that a user of the baseline shows detections with.
        level (float): share of the resamples in an interval.
        groups (Sequence[str] | None): (K,) group of each class in place of the annotations'.
        class_groups (Mapping): further groups: name -> class names or category ids.
    """

    resamples: int = 1000
    seed: int = 0
    max_dets: int = 300
    score_threshold: float = 0.5
    level: float = 0.95
    groups: Sequence[str] | None = None
    class_groups: Mapping[str, Sequence[str | int]] = field(default_factory=dict)


@dataclass(frozen=True)
class Value:
    """A figure or a difference of two, in percent, with its interval; NaN where there is none.

    Attributes:
        value (float): of the images as they are.
        low, high (float): ends of the interval.
    """

    value: float
    low: float = math.nan
    high: float = math.nan


@dataclass(frozen=True, eq=False)
class TaskFigures:
    """The figures of a run for boxes or masks.

    Attributes:
        own (BootstrapResult): figures of the run: those of `LvisResult.metrics`, and `FIXED`.
        change (BootstrapResult): what it has more than the baseline; zeros for the baseline.
        class_ap (ndarray): (K,) percent, NaN for a class without objects.
    """

    own: BootstrapResult
    change: BootstrapResult
    class_ap: np.ndarray

    def value(self, metric: str) -> Value:
        """A figure of the run."""
        return _value(self.own, metric)

    def difference(self, metric: str) -> Value:
        """What the run has more than the baseline."""
        return _value(self.change, metric)


@dataclass(frozen=True, eq=False)
class Comparison:
    """What a report tells.

    Attributes:
        runs (tuple[Run, ...]): the first is the baseline.
        focus (Run): the run that figures and pictures show beside the baseline.
        truth (LvisGroundTruth): the annotations.
        classes (ClassInfo): K classes with their counts in training.
        settings (Settings): as chosen.
        figures (Mapping): (run's name, task) -> its figures, for the tasks that all runs have.
        errors (Mapping): (run's name, task) -> TIDE, for baseline and focus.
        quality (Mapping): run's name -> reliability of box scores.
        thresholds (Mapping): run's name -> suggestions, for all runs but the baseline.
        curves (Mapping): run's name -> box AP against score threshold, for baseline and focus.
    """

    runs: tuple[Run, ...]
    focus: Run
    truth: LvisGroundTruth
    classes: ClassInfo
    settings: Settings
    figures: Mapping[tuple[str, str], TaskFigures]
    errors: Mapping[tuple[str, str], ErrorAnalysis]
    quality: Mapping[str, CalibrationQuality]
    thresholds: Mapping[str, Sequence[ThresholdSuggestion]]
    curves: Mapping[str, ThresholdCurve]

    @property
    def baseline(self) -> Run:
        """The run that the others are compared with."""
        return self.runs[0]

    @property
    def pair(self) -> tuple[Run, Run]:
        """Baseline and focus."""
        return self.baseline, self.focus

    @property
    def tasks(self) -> tuple[str, ...]:
        """Those that all runs are evaluated for, boxes first."""
        return tuple(task for task in TASKS if (self.baseline.name, task) in self.figures)

    @property
    def groups(self) -> tuple[str, ...]:
        """Names of the groups of classes, the one with fewest training images first."""
        return (*self.classes.group_names, *self.settings.class_groups)

    @property
    def metrics(self) -> tuple[str, ...]:
        """AP, and AP of each group."""
        return ("AP", *(f"AP{group}" for group in self.groups))

    @property
    def columns(self) -> tuple[str, ...]:
        """Figures in the tables."""
        return ("AP", "AP50", "AP75", *self.metrics[1:], "AR", FIXED)

    @property
    def level(self) -> str:
        """Share of the resamples in an interval, as people read it."""
        return f"{100 * self.settings.level:g}\u00a0%"

    @property
    def most_detections(self) -> int:
        """Detections of the image that has most of them, in any run."""
        ids = (run.detections.image_id for run in self.runs)
        counts = [np.unique(each, return_counts=True)[1].max(initial=0) for each in ids]
        return int(max(counts))


def compare(
    runs: Sequence[Run],
    truth: LvisGroundTruth,
    classes: ClassInfo,
    *,
    focus: str | None = None,
    settings: Settings | None = None,
) -> Comparison:
    """Computes everything.

    Args:
        runs (Sequence[Run]): at least two; the first is the baseline.
        truth (LvisGroundTruth): the annotations that all runs are evaluated with.
        classes (ClassInfo): K classes.
        focus (str): name or calibration of a run; None for the second.
        settings (Settings): None for the default ones.

    Raises:
        KeyError: no run is called `focus`.
        ValueError: detections of other images or classes.
    """
    settings = settings or Settings()
    chosen = _find_focus(runs, focus)
    figures: dict[tuple[str, str], TaskFigures] = {}
    for task in _common_tasks(runs, truth):
        own = [_bootstrap(run, truth, classes, task, settings) for run in runs]
        for run, each in zip(runs, own, strict=True):
            class_ap = 100 * each.per_class_estimate
            figures[run.name, task] = TaskFigures(each, _minus(each, own[0]), class_ap)
    options = {"max_dets": settings.max_dets, **_grouping(classes, settings)}
    return Comparison(
        runs=tuple(runs),
        focus=chosen,
        truth=truth,
        classes=classes,
        settings=settings,
        figures=figures,
        errors={
            (run.name, task): error_analysis(run.detections, truth, iou_type=task, **options)
            for run in (runs[0], chosen)
            for task in TASKS
            if (run.name, task) in figures
        },
        quality={run.name: calibration_quality(run.detections, truth, **options) for run in runs},
        thresholds={
            run.name: _suggestions(runs[0], run, truth, classes, settings) for run in runs[1:]
        },
        curves={
            run.name: ap_against_threshold(run.detections, truth, _THRESHOLDS, **options)
            for run in (runs[0], chosen)
        },
    )


def _find_focus(runs: Sequence[Run], focus: str | None) -> Run:
    if focus is None:
        return runs[1]
    for run in runs[1:]:
        if focus in (run.name, run.calibration):
            return run
    known = ", ".join(run.calibration for run in runs[1:])
    raise KeyError(f"No run beside the baseline is called '{focus}'. There are: {known}.")


def _common_tasks(runs: Sequence[Run], truth: LvisGroundTruth) -> list[str]:
    masks = truth.masks is not None and all(run.has_masks for run in runs)
    return list(TASKS) if masks else ["bbox"]


def _bootstrap(
    run: Run, truth: LvisGroundTruth, classes: ClassInfo, task: str, settings: Settings
) -> BootstrapResult:
    """Figures of a run, fixed AP among them."""
    arguments = _grouping(classes, settings)
    matches = match_lvis(truth, run.detections, task, max_dets=settings.max_dets, **arguments)
    found = _resample(matches, settings)
    fixed = match_lvis(
        *(truth, run.detections, task),
        max_dets=-1,
        max_dets_per_class=_FIXED_PER_CLASS,
        **arguments,
    )
    # Where no image and no class has more, the same detections count.
    same = np.array_equal(matches.index, fixed.index)
    other = found if same else _resample(fixed, settings)
    return replace(
        found,
        estimate={**found.estimate, FIXED: other.estimate["AP"]},
        samples={**found.samples, FIXED: other.samples["AP"]},
    )


def _grouping(classes: ClassInfo, settings: Settings) -> dict[str, Any]:
    return {"frequency_groups": classes.groups, "class_groups": settings.class_groups}


def _resample(matches: LvisMatches, settings: Settings) -> BootstrapResult:
    return bootstrap_lvis(
        matches, resamples=settings.resamples, seed=settings.seed, level=settings.level
    )


def _minus(second: BootstrapResult, first: BootstrapResult) -> BootstrapResult:
    """What `bootstrap_difference` computes, from resamples that are there already."""
    return replace(
        second,
        estimate=OrderedDict((n, second.estimate[n] - first.estimate[n]) for n in first.estimate),
        samples=OrderedDict((n, second.samples[n] - first.samples[n]) for n in first.samples),
        per_class_estimate=second.per_class_estimate - first.per_class_estimate,
        per_class_samples=second.per_class_samples - first.per_class_samples,
        bounds=(-1.0, 1.0),
    )


def _value(figures: BootstrapResult, metric: str) -> Value:
    if metric not in figures.estimate:
        return Value(math.nan)
    single = replace(figures, samples={metric: figures.samples[metric]})
    low, high = single.intervals[metric]
    return Value(100 * figures.estimate[metric], 100 * low, 100 * high)


def _suggestions(
    before: Run, after: Run, truth: LvisGroundTruth, classes: ClassInfo, settings: Settings
) -> list[ThresholdSuggestion]:
    return suggest_threshold(
        *(before.detections, after.detections, settings.score_threshold),
        num_images=truth.num_images,
        groups=classes.groups,
        class_groups=class_members(
            settings.class_groups, truth.class_names, truth.category_ids.tolist()
        ),
    )
