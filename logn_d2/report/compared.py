"""Runs compared by a report of any kind: figures with intervals, and paired differences.

Shapes: K foreground classes.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from ..analysis.bootstrap import BootstrapResult
from ..analysis.calibration_quality import CalibrationQuality
from ..errors import check_known
from ..results import ClassInfo
from .runs import Run
from .words import MEASURES

FEW_RESAMPLES = 200
"""With fewer resamples, the ends of an interval are mostly noise."""


@dataclass(frozen=True)
class Settings:
    """Options of a report.

    Attributes:
        resamples (int): number of bootstrap resamples.
        seed (int): seed of the bootstrap.
        max_dets (int | None): number of detections that count per image; negative for all, None for
            300 in LVIS format and all in COCO format. Fixed AP keeps all.
        score_threshold (float): threshold at which the baseline's detections are shown.
        level (float): share of the resamples in an interval.
        groups (Sequence[str] | None): (K,) group of each class, overriding the annotations.
        class_groups (Mapping): further groups: name -> class names or category ids.
    """

    resamples: int = 1000
    seed: int = 0
    max_dets: int | None = None
    score_threshold: float = 0.5
    level: float = 0.95
    groups: Sequence[str] | None = None
    class_groups: Mapping[str, Sequence[str | int]] = field(default_factory=dict)


@dataclass(frozen=True)
class Value:
    """A figure, or a difference of two, in percent with its interval; NaN if undefined.

    Attributes:
        value (float): the figure on the original images.
        low, high (float): ends of the interval.
    """

    value: float
    low: float = math.nan
    high: float = math.nan

    @property
    def sign(self) -> int:
        """1 or -1 if the interval is above or below 0 in the digits shown, else 0."""
        value, low, high = (round(each, 1) for each in (self.value, self.low, self.high))
        return int(value > 0 and low > 0) - int(value < 0 and high < 0)


@dataclass(frozen=True, eq=False)
class TaskFigures:
    """The figures of a run for boxes, masks or images.

    Attributes:
        own (BootstrapResult): figures of the run: those of `LvisResult.metrics`, and `FIXED` where
            it differs from AP; for images accuracies.
        change (BootstrapResult): the run minus the baseline; zeros for the baseline.
        class_ap (ndarray): (K,) percent, NaN for a class without objects; for images accuracy.
    """

    own: BootstrapResult
    change: BootstrapResult
    class_ap: np.ndarray

    def value(self, metric: str) -> Value:
        """A figure of the run."""
        return _value(self.own, metric)

    def difference(self, metric: str) -> Value:
        """The run minus the baseline."""
        return _value(self.change, metric)


@dataclass(frozen=True, eq=False)
class ComparedRuns:
    """The runs compared by a report, with their figures.

    Attributes:
        runs (tuple[Run, ...]): the first is the baseline.
        focus (Run): the run that figures and pictures show beside the baseline.
        classes (ClassInfo): K classes with their counts in training.
        settings (Settings): options of the report.
        figures (Mapping): (run's name, task) -> its figures, for the tasks that all runs have.
        quality (Mapping): run's name -> reliability of scores.
    """

    runs: tuple[Run, ...]
    focus: Run
    classes: ClassInfo
    settings: Settings
    figures: Mapping[tuple[str, str], TaskFigures]
    quality: Mapping[str, CalibrationQuality] = field(default_factory=dict)

    of_images = False
    """Whether whole images are classified, rather than objects detected."""

    @property
    def baseline(self) -> Run:
        """The run with which the others are compared."""
        return self.runs[0]

    @property
    def pair(self) -> tuple[Run, Run]:
        """Baseline and focus."""
        return self.baseline, self.focus

    @property
    def tasks(self) -> tuple[str, ...]:
        """Tasks for which all runs are evaluated, boxes first."""
        return tuple(task for task in MEASURES if (self.baseline.name, task) in self.figures)

    @property
    def level(self) -> str:
        """Share of the resamples in an interval, in percent."""
        return f"{100 * self.settings.level:g}\u00a0%"

    def best(self, metric: str, task: str) -> float:
        """The highest figure of all runs, rounded as shown; NaN if all are equal."""
        # In the digits shown: runs that a reader sees as equal are all the best, or none.
        values = [self.figures[run.name, task].value(metric).value for run in self.runs]
        known = {round(value, 1) for value in values if not math.isnan(value)}
        return max(known) if len(known) > 1 else math.nan


def find_focus(runs: Sequence[Run], focus: str | None) -> Run:
    """The run with a name or calibration, not the first; None for the second.

    Raises:
        KeyError: no such run; the message lists the runs.
    """
    if focus is None:
        return runs[1]
    # Reversed, so that of several runs with one calibration the first wins.
    named = {name: run for run in reversed(runs[1:]) for name in (run.calibration, run.name)}
    check_known("run", focus, named, " besides the baseline")
    return named[focus]


def minus(second: BootstrapResult, first: BootstrapResult) -> BootstrapResult:
    """The result of `bootstrap_difference`, from existing resamples with the same draws."""
    # Resample i of both runs holds the same images, so subtracting sample by sample is paired.
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
    # Intervals of all metrics are computed together, and each takes a quantile; only one is needed.
    single = replace(figures, samples={metric: figures.samples[metric]})
    low, high = single.intervals[metric]
    return Value(100 * figures.estimate[metric], 100 * low, 100 * high)
