"""The report as one self-contained HTML file.

The templates hold the text and `Comparison` the figures; this module joins them.

Shapes: K foreground classes.
"""

from __future__ import annotations

import functools
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from markupsafe import Markup
from matplotlib.figure import Figure

from logn_d2.core.affine import foreground_columns

from ..analysis.errors import ERROR_TYPES
from ..core import LogitStatistics
from ..errors import UserError
from ..files import atomic_write
from . import figures, words
from .gallery import Gallery
from .numbers import Comparison, label_prior, spearman
from .runs import RunFolder
from .summary import summarise

__all__ = ["Report", "build_report", "write_report"]

_POSITIVES = "positives"
# Thresholds whose AP the alternative text of the figure lists.
_READ_OUT = (0, 0.05, 0.5)
_TITLES = {
    "results": "Results",
    "images": "Images before and after",
    "scores": "Scores and thresholds",
    "errors": "AP cost of each kind of error",
    "logits": "Logits versus training images",
    "prior": "The model's class prior",
    "statistics": "AP versus images in the statistics pass",
    "classes": "All classes",
    "provenance": "Provenance",
}


@dataclass(frozen=True, eq=False)
class Report:
    """The content of a page; parts that are None or empty are left out.

    Attributes:
        comparison (Comparison): all figures.
        statistics (Mapping[str, LogitStatistics]): name of a run's folder -> statistics of its raw
            logits.
        gallery (Gallery): images of baseline and focus.
        notes (Sequence[str]): remarks on the page itself, such as the reason for missing pictures.
        command (str): the command that made the page.
        title (str): title of the page.
    """

    comparison: Comparison
    statistics: Mapping[str, LogitStatistics] = field(default_factory=dict)
    gallery: Gallery | None = None
    notes: Sequence[str] = ()
    command: str = ""
    title: str = "Calibrations compared"

    def __post_init__(self) -> None:
        for name, each in self.statistics.items():
            names = self.comparison.classes.names
            if each.class_names != names:
                raise UserError(
                    f"The statistics of {name} have {each.num_classes} classes (first "
                    f"{each.class_names[:1]}), the annotations have {len(names)} (first "
                    f"{names[:1]}). Give runs of one data set."
                )

    @property
    def folders(self) -> list[RunFolder]:
        """Folders of the runs, each once."""
        return list({id(run.folder): run.folder for run in self.comparison.runs}.values())

    @property
    def studies(self) -> list[Mapping[str, Any]]:
        """Studies of AP versus images in the statistics pass, from runs that have one."""
        return [folder.statistics_study for folder in self.folders if folder.statistics_study]


def write_report(
    path: str | os.PathLike[str],
    report: Report,
    figure_folder: str | os.PathLike[str] | None = None,
) -> None:
    """Write the page; on failure an existing page stays intact.

    Args:
        path (PathLike): the HTML file.
        report (Report): its content.
        figure_folder (PathLike): folder for all figures as SVG and PNG; None writes none.
    """
    drawn = _Figures(report)
    text = _render(report, drawn)
    if figure_folder is not None:
        Path(figure_folder).mkdir(parents=True, exist_ok=True)
        for name, figure in drawn.figures.items():
            for ending in ("svg", "png"):
                figures.save_figure(figure, Path(figure_folder, f"{name}.{ending}"))
    with atomic_write(path) as temporary:
        Path(temporary).write_text(text, encoding="utf-8")


def build_report(report: Report) -> str:
    """Return the page as text; see `write_report`."""
    return _render(report, _Figures(report))


def _render(report: Report, drawn: _Figures) -> str:
    comparison = report.comparison
    found = {
        "images": report.gallery is not None,
        "logits": bool(drawn.stages),
        "prior": drawn.prior is not None,
        "statistics": bool(report.studies),
    }
    environment = _environment()
    return environment.get_template("page.html.j2").render(
        report=report,
        comparison=comparison,
        classes=comparison.classes,
        sentences=[*summarise(comparison), *report.notes],
        sections={name: title for name, title in _TITLES.items() if found.get(name, True)},
        drawings={n: figures.svg_data_uri(each) for n, each in drawn.figures.items()},
        logits={"stages": drawn.stages, "populations": drawn.populations},
        prior=drawn.prior,
        studies=report.studies,
        class_columns=_class_columns(comparison, drawn.raw_logits),
        class_order=np.argsort(-comparison.classes.image_count, kind="stable").tolist(),
        style=_asset(environment, "report.css"),
        script=_asset(environment, "report.js"),
    )


@functools.cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("logn_d2.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        change=words.format_change,
        correlation=words.format_correlation,
        display_name=words.display_name,
        group_title=words.group_title,
        number=words.format_value,
        share=lambda value: f"{100 * value:.2g} %",
        threshold=words.format_threshold,
    )
    environment.globals.update(
        ERROR_TYPES=ERROR_TYPES,
        READ_OUT=_READ_OUT,
        TASKS=words.TASKS,
        count=Counter,
        interval=words.format_interval,
        join_words=words.join_words,
        plural=words.plural,
    )
    return environment


def _asset(environment: jinja2.Environment, name: str) -> Markup:
    """Our own style sheet or script, which must not be escaped like text."""
    return Markup(environment.loader.get_source(environment, name)[0])


@dataclass(frozen=True, eq=False)
class _Column:
    """A column of the table of all classes: K figures."""

    title: str
    values: np.ndarray
    decimals: int = 1
    signed: bool = False


def _class_columns(
    comparison: Comparison, raw_logits: tuple[np.ndarray, np.ndarray] | None
) -> list[_Column]:
    """Counts, logits, AP of baseline and focus and their difference, then AP of other runs."""
    classes = comparison.classes
    columns = [
        _Column("Images", classes.image_count, 0),
        _Column("Objects", classes.instance_count, 0),
    ]
    if raw_logits is not None:
        columns += [_Column("Logit mean", raw_logits[0], 2), _Column("Logit std", raw_logits[1], 2)]
    titles = {"bbox": "Box AP", "segm": "Mask AP"}
    for task in comparison.tasks:
        before, after = (comparison.figures[run.name, task].class_ap for run in comparison.pair)
        columns += [
            _Column(f"{titles[task]}, {comparison.baseline.name}", before),
            _Column(f"{titles[task]}, {comparison.focus.name}", after),
            _Column(f"{titles[task]}, difference", after - before, signed=True),
        ]
    first = comparison.tasks[0]
    return columns + [
        _Column(f"{titles[first]}, {run.name}", comparison.figures[run.name, first].class_ap)
        for run in comparison.runs
        if run not in comparison.pair
    ]


class _Figures:
    """The figures of a page by name, and the numbers that appear only in captions.

    Attributes:
        figures (dict[str, Figure]): file name without suffix -> figure.
        stages (list[dict]): one figure of logits for each run's statistics and stage.
        populations (dict[str, float]): population of RoIs -> rank correlation of its mean logits.
        prior (dict): content of the section "prior"; None without statistics.
        raw_logits (tuple | None): mean and standard deviation, (K,) each.
    """

    def __init__(self, report: Report) -> None:
        self.figures: dict[str, Figure] = {}
        self.stages: list[dict[str, Any]] = []
        self.populations: dict[str, float] = {}
        self.prior: dict[str, Any] | None = None
        self.raw_logits: tuple[np.ndarray, np.ndarray] | None = None
        self._report, self._classes = report, report.comparison.classes
        for task in report.comparison.tasks:
            self._draw_results(report.comparison, task)
        self._draw_scores(report.comparison)
        calibrating = {
            n: each for n, each in report.statistics.items() if each.population != _POSITIVES
        }
        if calibrating:
            self.raw_logits = _foreground(next(iter(calibrating.values())))[0]
            self._draw_logits(calibrating)
            self._draw_prior()
        self._draw_populations()
        for number, study in enumerate(report.studies, start=1):
            self.figures[f"statistics_images_{number}"] = figures.images_figure(study)

    def _draw_results(self, comparison: Comparison, task: str) -> None:
        what = words.TASKS[task]
        own = {run.name: comparison.figures[run.name, task].own for run in comparison.pair}
        self.figures[f"ap_{what}"] = figures.interval_figure(
            {name: each.estimate for name, each in own.items()},
            comparison.metrics,
            {name: each.intervals for name, each in own.items()},
            level=comparison.settings.level,
            what=f"AP of {what}",
        )
        changes = {
            run.name: {
                m: comparison.figures[run.name, task].difference(m) for m in comparison.metrics
            }
            for run in comparison.runs[1:]
        }
        self.figures[f"changes_{what}"] = figures.change_figure(changes, what)
        analyses = {run.name: comparison.errors[run.name, task] for run in comparison.pair}
        self.figures[f"errors_{what}"] = figures.error_figure(analyses, comparison.groups)

    def _draw_scores(self, comparison: Comparison) -> None:
        qualities = {run.name: comparison.quality[run.name] for run in comparison.pair}
        self.figures["thresholds"] = figures.threshold_figure(comparison.curves, comparison.metrics)
        self.figures["reliability"] = figures.reliability_figure(qualities, comparison.groups)
        self.figures["scores"] = figures.score_figure(qualities)

    def _draw_logits(self, statistics: Mapping[str, LogitStatistics]) -> None:
        images = self._classes.image_count
        for folder, each in statistics.items():
            stages = _foreground(each)
            for index, (mean, std) in enumerate(stages):
                name = f"logits_{len(self.stages) + 1}"
                which = f"{folder}. " if len(self._report.statistics) > 1 else ""
                which += f"Cascade stage {index + 1}. " if len(stages) > 1 else ""
                self.figures[name] = figures.logit_figure(mean, std, self._classes)
                rho = {"rho_mean": spearman(images, mean), "rho_std": spearman(images, std)}
                self.stages.append({"name": name, "which": which, "statistics": each, **rho})

    def _draw_populations(self) -> None:
        """Draw logits over different RoIs, if there are statistics of several populations."""
        every = self._report.statistics.values()
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
        classes, every = self._classes, self._report.statistics.values()
        prior = label_prior(self.raw_logits[0])
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


def _drawn_labels(statistics: LogitStatistics) -> tuple[np.ndarray, float | None] | None:
    """RoIs of each class, (K,), and the share of foreground among all; None if not gathered."""
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
