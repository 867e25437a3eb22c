"""All figures of a report about detectors, computed only from detections and annotations.

The intervals come from a bootstrap over images with the same resamples for all runs, so that the
difference of two runs has an interval of its own (`bootstrap_difference` explains why it is
narrower). None of them covers the variation between trainings.

A run of LVIS's size has six million detections. Each run is therefore read, analysed and released
before the next one; only small results remain.

Shapes: K foreground classes.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from ..analysis.bootstrap import BootstrapResult, bootstrap_lvis
from ..analysis.calibration_quality import CalibrationQuality, calibration_quality
from ..analysis.errors import ErrorAnalysis, error_analysis
from ..analysis.outcomes import label_detections
from ..analysis.thresholds import (
    ThresholdCurve,
    ThresholdSuggestion,
    ap_against_threshold,
    suggest_threshold,
)
from ..lvis.detections import Detections
from ..lvis.ground_truth import LvisGroundTruth
from ..lvis.matches import LvisMatches, match_lvis
from ..lvis.result import class_members
from ..progress import Progress
from ..results import TASKS, ClassInfo
from .compared import ComparedRuns, Settings, TaskFigures, find_focus, minus
from .runs import Run
from .shown import shown_detections

logger = logging.getLogger(__name__)

FIXED = "AP fixed"
"""AP of the best 10,000 detections of each class, without a limit per image."""

_FIXED_PER_CLASS = 10_000
# Thresholds of the curve of AP against the score threshold: denser where most scores are.
_THRESHOLDS = (0, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, *(tenths / 10 for tenths in range(1, 10)))


@dataclass(frozen=True, eq=False, kw_only=True)
class Comparison(ComparedRuns):
    """The content of a report about detectors.

    Attributes:
        truth (LvisGroundTruth): the annotations.
        errors (Mapping): (run's name, task) -> TIDE, for baseline and focus.
        thresholds (Mapping): run's name -> suggestions, for all runs but the baseline.
        curves (Mapping): run's name -> box AP against score threshold, for baseline and focus.
        shown (Mapping): run's name -> the detections that pictures show, for baseline and focus.
        most_detections (int): largest number of detections in an image, over all runs.
        empty_images (Mapping): run's name -> number of images without detections.
    """

    truth: LvisGroundTruth
    errors: Mapping[tuple[str, str], ErrorAnalysis] = field(default_factory=dict)
    thresholds: Mapping[str, Sequence[ThresholdSuggestion]] = field(default_factory=dict)
    curves: Mapping[str, ThresholdCurve] = field(default_factory=dict)
    shown: Mapping[str, Detections] = field(default_factory=dict)
    most_detections: int = 0
    empty_images: Mapping[str, int] = field(default_factory=dict)

    @property
    def num_images(self) -> int:
        """Evaluated images."""
        return self.truth.num_images

    @property
    def groups(self) -> tuple[str, ...]:
        """Names of the groups of classes, the one with the fewest training images first."""
        return (*self.classes.group_names, *self.settings.class_groups)

    @property
    def metrics(self) -> tuple[str, ...]:
        """AP, and AP of each group."""
        return ("AP", *(f"AP{group}" for group in self.groups))

    @property
    def has_fixed(self) -> bool:
        """Whether fixed AP can differ from AP: only if an image exceeds the limit."""
        return 0 <= self.settings.max_dets < self.most_detections

    @property
    def columns(self) -> tuple[str, ...]:
        """Metrics in the tables."""
        fixed = (FIXED,) if self.has_fixed else ()
        return ("AP", "AP50", "AP75", *self.metrics[1:], "AR", *fixed)


@dataclass(eq=False)
class _Analysed:
    """Results of a run that are kept after its detections are released."""

    own: dict[str, BootstrapResult]
    errors: dict[str, ErrorAnalysis]
    quality: CalibrationQuality
    curve: ThresholdCurve | None
    scores: Detections
    shown: Detections | None
    empty: int


def compare(
    runs: Sequence[Run],
    truth: LvisGroundTruth,
    classes: ClassInfo,
    *,
    focus: str | None = None,
    settings: Settings | None = None,
) -> Comparison:
    """Compute all figures of a report.

    Args:
        runs (Sequence[Run]): at least two; the first is the baseline.
        truth (LvisGroundTruth): the annotations that all runs are evaluated with.
        classes (ClassInfo): K classes.
        focus (str): name or calibration of a run; None for the second.
        settings (Settings): None for the defaults.

    Raises:
        KeyError: no run is called `focus`.
        ValueError: the detections have other images or classes.
    """
    settings = settings or Settings()
    settings = replace(settings, max_dets=truth.limit(settings.max_dets))
    pair = (runs[0], find_focus(runs, focus))
    tasks = _common_tasks(runs, truth)
    # Detections are read twice rather than kept for all runs. Knowing the largest image first saves
    # the bootstrap of fixed AP, which takes as long as that of AP, where both would be equal.
    most = max(_most(run.detections()) for run in runs)
    analyst = _Analyst(truth, classes, settings, tasks, len(runs), most > settings.max_dets >= 0)
    thresholds: dict[str, list[ThresholdSuggestion]] = {}
    found: dict[str, _Analysed] = {}
    for run in runs:
        each = found[run.name] = analyst(run, in_pair=run in pair)
        if run is not runs[0]:
            first = found[runs[0].name].scores
            thresholds[run.name] = analyst.suggestions(first, each.scores)
            each.scores = Detections.empty()  # only the baseline's are needed again
    first = found[runs[0].name]
    both = {run.name: found[run.name] for run in pair}
    return Comparison(
        runs=tuple(runs),
        focus=pair[1],
        truth=truth,
        classes=classes,
        settings=settings,
        figures={
            (name, task): TaskFigures(
                own, minus(own, first.own[task]), 100 * own.per_class_estimate
            )
            for name, each in found.items()
            for task, own in each.own.items()
        },
        errors={(n, task): e for n, each in both.items() for task, e in each.errors.items()},
        quality={name: each.quality for name, each in found.items()},
        thresholds=thresholds,
        curves={name: each.curve for name, each in both.items()},
        shown={name: each.shown for name, each in both.items()},
        most_detections=most,
        empty_images={name: each.empty for name, each in found.items()},
    )


class _Analyst:
    """Computes the figures of runs with common annotations, groups and settings."""

    def __init__(
        self,
        truth: LvisGroundTruth,
        classes: ClassInfo,
        settings: Settings,
        tasks: Sequence[str],
        num_runs: int,
        fixed: bool,
    ) -> None:
        self._truth, self._settings, self._tasks = truth, settings, tasks
        self._groups, self._fixed = classes.groups, fixed
        self._grouping = {
            "frequency_groups": classes.groups,
            "class_groups": settings.class_groups,
        }
        # One unit of progress is about 40 resamples, which take as long as one analysis.
        self._weight = (1 + fixed) * settings.resamples / 40
        self._progress = Progress(logger, num_runs * len(tasks) * (self._weight + 4))

    def __call__(self, run: Run, in_pair: bool) -> _Analysed:
        settings, truth = self._settings, self._truth
        self._progress.step(f"{run.name}: reading detections", 0)
        detections = run.detections()
        own, errors, curve, quality = {}, {}, None, None
        for task in self._tasks:
            said = f"{run.name}, {TASKS[task]}"
            self._progress.step(f"{said}: {settings.resamples:,} resamples", self._weight + 1)
            # Matching takes longest, so all analyses share its result.
            matches = self._match(detections, task, max_dets=settings.max_dets)
            own[task] = self._bootstrap(matches, detections, task)
            self._progress.step(f"{said}: errors and scores", 3)
            # Figures show only baseline and focus; reliability is a column of all runs, for boxes.
            if not in_pair and task != "bbox":
                continue
            outcomes = label_detections(truth, detections, matches=matches)
            if in_pair:
                errors[task] = error_analysis(truth, detections, outcomes=outcomes)
            if task == "bbox":
                quality = calibration_quality(truth, detections, outcomes=outcomes)
                if in_pair:
                    curve = ap_against_threshold(truth, detections, _THRESHOLDS, matches=matches)
        return _Analysed(
            own=own,
            errors=errors,
            quality=quality,
            curve=curve,
            # Threshold suggestions need neither boxes nor masks, which take most of the memory.
            scores=replace(detections, box=np.zeros((len(detections), 4), np.float32), masks=None),
            shown=shown_detections(truth, detections) if in_pair else None,
            empty=truth.num_images - len(np.unique(detections.image_id)),
        )

    def suggestions(self, before: Detections, after: Detections) -> list[ThresholdSuggestion]:
        """Suggest score thresholds that keep the number of boxes."""
        truth, settings = self._truth, self._settings
        return suggest_threshold(
            *(before, after, settings.score_threshold),
            num_images=truth.num_images,
            groups=self._groups,
            class_groups=class_members(
                settings.class_groups, truth.class_names, truth.category_ids.tolist()
            ),
        )

    def _bootstrap(
        self, matches: LvisMatches, detections: Detections, task: str
    ) -> BootstrapResult:
        """Figures of a run, including fixed AP if it can differ."""
        found = self._resample(matches)
        if not self._fixed:
            return found
        fixed = self._match(detections, task, max_dets=-1, max_dets_per_class=_FIXED_PER_CLASS)
        other = self._resample(fixed)
        return replace(
            found,
            estimate={**found.estimate, FIXED: other.estimate["AP"]},
            samples={**found.samples, FIXED: other.samples["AP"]},
        )

    def _match(self, detections: Detections, task: str, **limits: int) -> LvisMatches:
        return match_lvis(self._truth, detections, task, **limits, **self._grouping)

    def _resample(self, matches: LvisMatches) -> BootstrapResult:
        settings = self._settings
        options = {"resamples": settings.resamples, "seed": settings.seed, "level": settings.level}
        return bootstrap_lvis(matches, **options)


def _common_tasks(runs: Sequence[Run], truth: LvisGroundTruth) -> list[str]:
    # A page compares all runs in all its columns, so one run without masks leaves them out.
    masks = truth.masks is not None and all(run.has_masks for run in runs)
    return list(TASKS) if masks else ["bbox"]


def _most(detections: Detections) -> int:
    """Largest number of detections in an image."""
    return int(np.unique(detections.image_id, return_counts=True)[1].max(initial=0))


def label_prior(mean_logit: np.ndarray) -> np.ndarray:
    """A model's label prior: softmax of the mean logits.

    Args:
        mean_logit (ndarray): (K,) without background.

    Returns:
        ndarray: (K,), sums to 1.
    """
    # The shift keeps exp from overflowing and cancels in the quotient.
    shifted = np.exp(mean_logit - np.max(mean_logit))
    return shifted / shifted.sum()
