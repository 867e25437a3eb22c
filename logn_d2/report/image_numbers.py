"""All figures of a report about image classifiers, from stored predictions alone.

As for detectors, all runs see the same resamples, so that differences are paired; unknown images
are resampled beside the known ones. No interval covers the variation between trainings.

Shapes: N images, K classes, B resamples.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from ..analysis.bootstrap import BootstrapResult
from ..analysis.calibration_quality import CalibrationQuality
from ..classification.accuracy import ImageResult
from ..classification.predictions import StoredPredictions
from ..errors import UserError
from ..ood import evaluate_ood, resample_ood
from ..progress import Progress
from ..results import ClassInfo
from .compared import ComparedRuns, Settings, TaskFigures, find_focus, minus
from .runs import Run

logger = logging.getLogger(__name__)

_METRICS = {"All": "acc", "Few": "few", "Medium": "medium", "Many": "many"}
OOD_METRICS = {
    "auroc": "AUROC",
    "fpr95_id_pos": "FPR95, ID positive",
    "fpr95_ood_pos": "FPR95, OOD positive",
    "aupr_in": "AUPR in",
    "aupr_out": "AUPR out",
    "detection_error": "Detection error",
}
_BASE_SCORE = "msp"
_BINS = 15  # of confidence, as in the expected calibration error of `ImageResult`


@dataclass(frozen=True, eq=False)
class UnknownSet:
    """Separation of a set of unknown images from the known ones, by run.

    Attributes:
        dataset (str): name of the unknown set.
        num_known, num_unknown (int): number of images.
        figures (Mapping): (run's name, score) -> metrics, and their difference from the baseline's
            MSP.
        scores (Mapping): (run's name, score) -> scores of known and of unknown images, for the
            figure.
    """

    dataset: str
    num_known: int
    num_unknown: int
    figures: Mapping[tuple[str, str], TaskFigures]
    scores: Mapping[tuple[str, str], tuple[np.ndarray, np.ndarray]]

    @property
    def best_auroc(self) -> float:
        """The highest, rounded as shown."""
        return max(round(each.value("auroc").value, 1) for each in self.figures.values())


@dataclass(frozen=True, eq=False, kw_only=True)
class ImageComparison(ComparedRuns):
    """The content of a report about image classifiers.

    Attributes:
        results (Mapping): run's name -> predictions of its calibration.
        unknown (tuple[UnknownSet, ...]): for each set of unknown images that all runs have.
    """

    results: Mapping[str, ImageResult]
    unknown: tuple[UnknownSet, ...] = field(default=())

    of_images = True

    @property
    def num_images(self) -> int:
        """Evaluated images."""
        return len(self.results[self.baseline.name].labels)

    @property
    def groups(self) -> tuple[str, ...]:
        """Names of the groups of classes, the one with the fewest training images first."""
        return self.classes.group_names

    @property
    def metrics(self) -> tuple[str, ...]:
        """Accuracy over all images, and of each group."""
        return tuple(_METRICS)

    columns = metrics

    def temperature(self, run: Run) -> dict[str, float]:
        """The sweep's fitted "T", and "ECE_T" in percent; empty if it fitted none."""
        if run.folder.results is None:
            return {}
        found = run.folder.results.row(run.calibration).tasks["image"]
        return {name: found[name] for name in ("T", "ECE_T") if name in found}


def compare_images(
    runs: Sequence[Run], *, focus: str | None = None, settings: Settings | None = None
) -> ImageComparison:
    """Compute all figures of a report.

    Args:
        runs (Sequence[Run]): at least two, in an `ImageRunFolder` each; the first is the baseline.
        focus (str): name or calibration of a run; None for the second.
        settings (Settings): None for the defaults.

    Raises:
        KeyError: no run is called `focus`.
        ValueError: predictions for other images or classes, or without class counts.
    """
    settings = settings or Settings()
    chosen = find_focus(runs, focus)
    stored = {run.name: run.folder.predictions for run in runs}
    _check_same(runs)
    # Once for each run: resamples, groups and reliability all start from it.
    results = {run.name: stored[run.name].result(run.calibration) for run in runs}
    # A set of unknown images costs about as much as the known ones.
    progress = Progress(logger, len(runs) * (1 + len(_unknown_sets(runs))))
    own = {}
    for name, result in results.items():
        progress.step(f"{name}: {settings.resamples:,} resamples", 1)
        own[name] = _accuracies(result, settings)
    first = own[runs[0].name]
    return ImageComparison(
        tuple(runs),
        chosen,
        class_info(stored[runs[0].name]),
        settings,
        {
            (name, "image"): TaskFigures(each, minus(each, first), 100 * each.per_class_estimate)
            for name, each in own.items()
        },
        {name: _quality(result) for name, result in results.items()},
        results=results,
        unknown=tuple(
            _unknown(runs, chosen, dataset, settings, progress) for dataset in _unknown_sets(runs)
        ),
    )


def class_info(stored: StoredPredictions) -> ClassInfo:
    """The classes, whose groups are called "many", "medium" and "few"."""
    names, counts = stored.class_names, stored.image_count
    return ClassInfo(names, names, stored.group_names, counts, counts)


def _check_same(runs: Sequence[Run]) -> None:
    """Refuse runs on other images or classes, or without class counts."""
    first = runs[0].folder.predictions
    for run in runs:
        each = run.folder.predictions
        if each.image_count is None:
            raise UserError(
                f"The predictions in '{run.folder.source}' lack the number of training images of "
                "each class, because the training set could not be read. Evaluate again on a "
                "machine that has the training set (DATASETS.TRAIN)."
            )
        if each.class_names != first.class_names or not np.array_equal(each.labels, first.labels):
            raise UserError(
                f"'{run.folder.path}' has {len(each.labels)} images of {len(each.class_names)} "
                f"classes, '{runs[0].folder.path}' has {len(first.labels)} of "
                f"{len(first.class_names)}; images, classes or labels differ. Only runs on the "
                "same images can be compared."
            )


def _accuracies(result: ImageResult, settings: Settings) -> BootstrapResult:
    samples = result.resampled(settings.resamples, settings.seed)
    return _figures(_METRICS, result.metrics(), samples, result.per_class(), settings)


def _figures(
    names: Mapping[str, str],
    estimate: Mapping[str, float],
    samples: Mapping[str, np.ndarray],
    per_class: np.ndarray,
    settings: Settings,
) -> BootstrapResult:
    """Figures under their names in the report, which maps them to those of the results."""
    return BootstrapResult(
        estimate={title: estimate[name] for title, name in names.items()},
        samples={title: samples[name] for title, name in names.items()},
        per_class_estimate=per_class,
        per_class_samples=np.empty((0, len(per_class))),
        class_names=(),
        level=settings.level,
        method="percentile",  # means and areas under curves: their resamples are not biased
    )


def _quality(result: ImageResult) -> CalibrationQuality:
    """Reliability by the predicted class, as for a detection."""
    # A bin holds its upper edge, and the first one 0 too, as in `expected_calibration_error`: the
    # figure and the table then show the same number.
    edges = np.linspace(0, 1, _BINS + 1)
    bins = np.maximum(np.searchsorted(edges, result.confidence) - 1, 0)
    shape = result.num_classes, _BINS
    place = result.predicted * _BINS + bins

    def total(weights: np.ndarray | None = None) -> np.ndarray:
        return np.bincount(place, weights, shape[0] * shape[1]).reshape(shape)

    members = {"all": np.arange(result.num_classes)}
    groups = (("few", "r"), ("medium", "c"), ("many", "f"))
    members |= {name: np.flatnonzero(result.groups == letter) for name, letter in groups}
    # Every image has exactly one label: nothing is unverified, and nothing lies on background.
    nothing = np.zeros(shape, dtype=np.int64)
    return CalibrationQuality(
        iou_type="image",
        edges=edges,
        count=total(),
        hits=total(result.right).astype(np.int64),
        background=nothing,
        score_sum=total(result.confidence),
        unlabelled=nothing[:, 0],
        members=members,
    )


def _unknown_sets(runs: Sequence[Run]) -> list[str]:
    """Unknown images whose scores all runs have."""
    known = [run.folder.predictions.scores for run in runs]
    own = runs[0].folder.dataset
    return [name for name in known[0] if name != own and all(name in each for each in known)]


def _unknown(
    runs: Sequence[Run], focus: Run, dataset: str, settings: Settings, progress: Progress
) -> UnknownSet:
    figures: dict[tuple[str, str], BootstrapResult] = {}
    drawn = {}
    for run in runs:
        progress.step(f"{run.name} against {dataset}: {settings.resamples:,} resamples", 1)
        known, unknown = (
            run.folder.predictions.scores_of(each, run.calibration)
            for each in (run.folder.dataset, dataset)
        )
        for score, values in known.items():
            sides = values, unknown[score]
            figures[run.name, score] = _separation(*sides, settings)
            # Other scores appear only in the table; their arrays need not stay in memory.
            if score.startswith(_BASE_SCORE) and run in (runs[0], focus):
                drawn[run.name, score] = sides
    base = figures[runs[0].name, _BASE_SCORE]
    numbers = [len(side) for side in drawn[runs[0].name, _BASE_SCORE]]
    return UnknownSet(
        dataset,
        *numbers,
        {key: TaskFigures(each, minus(each, base), np.empty(0)) for key, each in figures.items()},
        drawn,
    )


def _separation(known: np.ndarray, unknown: np.ndarray, settings: Settings) -> BootstrapResult:
    found = evaluate_ood(known, unknown).as_dict()
    samples = resample_ood(known, unknown, settings.resamples, settings.seed)
    names = {name: name for name in OOD_METRICS}
    return _figures(names, found, samples, np.empty(0), settings)
