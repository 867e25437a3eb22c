"""The figures of a page by name, and the numbers that appear only in captions.

Shapes: K foreground classes.
"""

from __future__ import annotations

import abc
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from ..analysis.correlation import spearman
from ..core import LogitStatistics
from ..core.affine import foreground_columns
from ..results import TASKS
from . import figures, words
from .compared import ComparedRuns
from .image_numbers import ImageComparison, UnknownSet
from .numbers import Comparison, label_prior

_POSITIVES = "positives"


def draw(
    comparison: ComparedRuns,
    statistics: Mapping[str, LogitStatistics],
    studies: Sequence[Mapping[str, Any]] = (),
) -> Drawings:
    """Draw all figures of a page.

    Args:
        comparison (ComparedRuns): runs of detectors or image classifiers.
        statistics (Mapping): name of a run's folder -> statistics of its raw logits.
        studies (Sequence[Mapping]): studies of AP versus images in the statistics pass.
    """
    kind = _ImageDrawings if comparison.of_images else _DetectorDrawings
    return kind(comparison, statistics, studies)


class Drawings(abc.ABC):
    """The figures common to all pages: logits and results.

    Attributes:
        figures (dict[str, Figure]): file name without suffix -> figure.
        stages (list[dict]): one figure of logits for each run's statistics and stage.
        populations (dict[str, float]): population of RoIs -> rank correlation of its mean logits.
        prior (dict): content of the section "prior"; None without statistics.
        raw_logits (tuple | None): mean and standard deviation, (K,) each.
    """

    def __init__(
        self,
        comparison: ComparedRuns,
        statistics: Mapping[str, LogitStatistics],
        studies: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        self.figures: dict[str, Figure] = {}
        self.stages: list[dict[str, Any]] = []
        self.populations: dict[str, float] = {}
        self.prior: dict[str, Any] | None = None
        self.raw_logits: tuple[np.ndarray, np.ndarray] | None = None
        self._comparison, self._classes = comparison, comparison.classes
        self._statistics = statistics
        self._draw_comparison()
        # In the population of positives each class has RoIs of its own, so its means do not
        # compare between classes and do not show a bias.
        calibrating = {n: each for n, each in statistics.items() if each.population != _POSITIVES}
        if calibrating:
            self.raw_logits = _foreground(next(iter(calibrating.values())))[0]
            self._draw_logits(calibrating)
        self._draw_others(studies)

    @abc.abstractmethod
    def _draw_comparison(self) -> None:
        """Draw the results."""

    @abc.abstractmethod
    def _draw_others(self, studies: Sequence[Mapping[str, Any]]) -> None:
        """Draw the figures that depend on those of the logits, or follow them."""

    def _draw_results(self, task: str, name: str, what: str) -> None:
        """Draw bars of baseline and focus, and differences of all runs."""
        comparison = self._comparison
        own = {run.name: comparison.figures[run.name, task].own for run in comparison.pair}
        self.figures[f"ap_{name}"] = figures.interval_figure(
            {run: each.estimate for run, each in own.items()},
            comparison.metrics,
            {run: each.intervals for run, each in own.items()},
            level=comparison.settings.level,
            what=what,
        )
        changes = {
            run.name: {
                m: comparison.figures[run.name, task].difference(m) for m in comparison.metrics
            }
            for run in comparison.runs[1:]
        }
        self.figures[f"changes_{name}"] = figures.change_figure(changes, what)

    def _draw_logits(self, statistics: Mapping[str, LogitStatistics]) -> None:
        images = self._classes.image_count
        for folder, each in statistics.items():
            stages = _foreground(each)
            for index, (mean, std) in enumerate(stages):
                name = f"logits_{len(self.stages) + 1}"
                which = f"{folder}. " if len(self._statistics) > 1 else ""
                which += f"Cascade stage {index + 1}. " if len(stages) > 1 else ""
                self.figures[name] = figures.logit_figure(mean, std, self._classes)
                rho = {"rho_mean": spearman(images, mean), "rho_std": spearman(images, std)}
                self.stages.append({"name": name, "which": which, "statistics": each, **rho})


class _DetectorDrawings(Drawings):
    _comparison: Comparison

    def _draw_comparison(self) -> None:
        comparison = self._comparison
        for task in comparison.tasks:
            what = TASKS[task]
            self._draw_results(task, what, f"AP of {what}")
            analyses = {run.name: comparison.errors[run.name, task] for run in comparison.pair}
            self.figures[f"errors_{what}"] = figures.error_figure(analyses, comparison.groups)
        qualities = {run.name: comparison.quality[run.name] for run in comparison.pair}
        self.figures["thresholds"] = figures.threshold_figure(comparison.curves, comparison.metrics)
        self.figures["reliability"] = figures.reliability_figure(qualities, comparison.groups)
        self.figures["scores"] = figures.score_figure(qualities)

    def _draw_others(self, studies: Sequence[Mapping[str, Any]]) -> None:
        if self.raw_logits is not None:
            self._draw_prior()
        self._draw_populations()
        for number, study in enumerate(studies, start=1):
            self.figures[f"statistics_images_{number}"] = figures.images_figure(study)

    def _draw_populations(self) -> None:
        """Draw logits over different RoIs, if there are statistics of several populations."""
        every = self._statistics.values()
        # Of several statistics of one population, those of the first run.
        found = {each.population: each for each in reversed(list(every))}
        if len(found) < 2:
            return
        values, images = {}, self._classes.image_count
        for name, each in reversed(found.items()):
            # A class without RoIs has no logits.
            seen = _counts(each) > 0
            values[name] = tuple(np.where(seen, v, np.nan) for v in _foreground(each)[0])
            known = np.isfinite(values[name][0])
            self.populations[name] = spearman(images[known], values[name][0][known])
        self.figures["populations"] = figures.population_figure(values, images)

    def _draw_prior(self) -> None:
        """Draw the model's label prior, the labels, and the labels that training samples."""
        classes, every = self._classes, self._statistics.values()
        prior = label_prior(self.raw_logits[0])
        # All runs have one training set, so the first that counted its labels tells.
        own = next((each for each in every if _drawn_labels(each) is not None), None)
        sampled, foreground = (None, None) if own is None else _drawn_labels(own)
        self.figures["prior"] = figures.prior_figure(prior, classes, foreground, sampled)
        rare = classes.is_rare
        self.prior = {
            "labels": _share(classes.instance_count, rare),
            "sampled": None if sampled is None else _share(sampled, rare),
            "sampler": None if own is None else own.sampler,
            "model": _share(prior, rare),
            "rho": spearman(classes.instance_count, prior),
        }


class _ImageDrawings(Drawings):
    _comparison: ImageComparison

    def _draw_comparison(self) -> None:
        comparison = self._comparison
        self._draw_results("image", "accuracy", "top-1 accuracy")
        qualities = {run.name: comparison.quality[run.name] for run in comparison.pair}
        self.figures["reliability"] = figures.reliability_figure(
            qualities, comparison.groups, what="accuracy"
        )

    def _draw_others(self, studies: Sequence[Mapping[str, Any]]) -> None:
        for number, unknown in enumerate(self._comparison.unknown, start=1):
            self._draw_unknown(number, unknown)

    def _draw_unknown(self, number: int, unknown: UnknownSet) -> None:
        named = {
            f"{run}: {words.SCORES.get(score, score)}": sides
            for (run, score), sides in unknown.scores.items()
        }
        self.figures[f"unknown_{number}"] = figures.unknown_figure(named)


def _drawn_labels(statistics: LogitStatistics) -> tuple[np.ndarray, float | None] | None:
    """RoIs of each class, (K,), and the share of foreground among all; None if not collected."""
    if statistics.population == _POSITIVES:
        return _counts(statistics), None
    posteriors = statistics.stages[0].posteriors
    if posteriors is None or not posteriors.labelled:
        return None
    labels = posteriors.label_count.cpu().numpy()
    foreground = labels[foreground_columns(statistics.background)]
    if statistics.background == "none":
        return foreground, None
    return foreground, float(foreground.sum() / max(labels.sum(), 1))


def _share(values: np.ndarray, chosen: np.ndarray) -> float:
    return float(values[chosen].sum() / (values.sum() or 1))


def _foreground(statistics: LogitStatistics) -> list[tuple[np.ndarray, np.ndarray]]:
    """Mean and standard deviation of the foreground logits of each stage, (K,) each."""
    columns = foreground_columns(statistics.background)
    return [
        (stage.mean[columns].numpy(), stage.std[columns].numpy()) for stage in statistics.stages
    ]


def _counts(statistics: LogitStatistics) -> np.ndarray:
    """RoIs of each class in the first stage, (K,)."""
    return statistics.stages[0].count[foreground_columns(statistics.background)].numpy()
