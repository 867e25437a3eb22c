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

from ..analysis.errors import ERROR_TYPES
from ..core import LogitStatistics
from ..errors import UserError
from ..files import write_text
from ..frequency import group_title
from ..results import TASKS
from . import figures, words
from .compared import ComparedRuns
from .drawings import Drawings, draw
from .gallery import Gallery
from .image_numbers import OOD_METRICS
from .runs import RunFolder, folders_of
from .summary import summarise

# Thresholds whose AP the alternative text of the figure lists.
_READ_OUT = (0, 0.05, 0.5)
_DETECTOR_TITLES = {
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
_IMAGE_TITLES = {
    "accuracy": "Accuracy",
    "confusion": "Confusion between groups",
    "confidence": "Confidence",
    "unknown": "Unknown images",
    "logits": "Logits versus training images",
    "classes": "All classes",
    "provenance": "Provenance",
}


@dataclass(frozen=True, eq=False)
class Report:
    """The content of a page; parts that are None or empty are left out.

    Attributes:
        comparison (ComparedRuns): all figures.
        statistics (Mapping[str, LogitStatistics]): name of a run's folder -> statistics of its raw
            logits.
        gallery (Gallery): images of baseline and focus.
        notes (Sequence[str]): remarks on the page itself, such as the reason for missing pictures.
        command (str): the command that made the page.
        title (str): title of the page.
    """

    comparison: ComparedRuns
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
        return folders_of(self.comparison.runs)

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
    drawn = _drawn(report)
    # Rendered before anything is written: a mistake in a template leaves no half-written folder.
    text = _render(report, drawn)
    if figure_folder is not None:
        Path(figure_folder).mkdir(parents=True, exist_ok=True)
        for name, figure in drawn.figures.items():
            for ending in ("svg", "png"):
                figures.save_figure(figure, Path(figure_folder, f"{name}.{ending}"))
    write_text(path, text)


def build_report(report: Report) -> str:
    """Return the page as text; see `write_report`."""
    return _render(report, _drawn(report))


def _drawn(report: Report) -> Drawings:
    return draw(report.comparison, report.statistics, report.studies)


def _render(report: Report, drawn: Drawings) -> str:
    comparison = report.comparison
    titles = _IMAGE_TITLES if comparison.of_images else _DETECTOR_TITLES
    found = {
        "images": report.gallery is not None,
        "logits": bool(drawn.stages),
        "prior": drawn.prior is not None,
        "statistics": bool(report.studies),
        "unknown": comparison.of_images and bool(comparison.unknown),
    }
    environment = _environment()
    return environment.get_template("page.html.j2").render(
        report=report,
        comparison=comparison,
        classes=comparison.classes,
        sentences=[*summarise(comparison), *report.notes],
        sections={name: title for name, title in titles.items() if found.get(name, True)},
        drawings={n: figures.svg_data_uri(each) for n, each in drawn.figures.items()},
        logits={"stages": drawn.stages, "populations": drawn.populations},
        prior=drawn.prior,
        studies=report.studies,
        class_columns=_class_columns(comparison, drawn.raw_logits),
        # Stable, so that classes with equal counts keep the order of their ids.
        class_order=np.argsort(-comparison.classes.image_count, kind="stable").tolist(),
        style=_asset(environment, "report.css"),
        script=_asset(environment, "report.js"),
    )


@functools.cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("logn_d2.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,  # a misspelt name fails instead of printing nothing
        trim_blocks=True,
        lstrip_blocks=True,
    )
    # All that templates call is listed here, so that they hold no Python of their own.
    environment.filters.update(
        change=words.format_change,
        correlation=words.format_correlation,
        display_name=words.display_name,
        group_title=group_title,
        number=words.format_value,
        share=lambda value: f"{100 * value:.2g} %",
        threshold=words.format_threshold,
    )
    environment.globals.update(
        ERROR_TYPES=ERROR_TYPES,
        OOD_METRICS=OOD_METRICS,
        SCORES=words.SCORES,
        READ_OUT=_READ_OUT,
        TASKS=TASKS,
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
    comparison: ComparedRuns, raw_logits: tuple[np.ndarray, np.ndarray] | None
) -> list[_Column]:
    """Counts, logits, AP of baseline and focus and their difference, then AP of other runs.

    For image classifiers, accuracy takes the place of AP.
    """
    classes = comparison.classes
    columns = [_Column("Images", classes.image_count, 0)]
    if not comparison.of_images:
        columns.append(_Column("Objects", classes.instance_count, 0))
    if raw_logits is not None:
        columns += [_Column("Logit mean", raw_logits[0], 2), _Column("Logit std", raw_logits[1], 2)]
    titles = {"bbox": "Box AP", "segm": "Mask AP", "image": "Accuracy"}
    for task in comparison.tasks:
        before, after = (comparison.figures[run.name, task].class_ap for run in comparison.pair)
        columns += [
            _Column(f"{titles[task]}, {comparison.baseline.name}", before),
            _Column(f"{titles[task]}, {comparison.focus.name}", after),
            _Column(f"{titles[task]}, difference", after - before, signed=True),
        ]
    first = comparison.tasks[0]
    # Of further runs one column each: the table would become too wide.
    return columns + [
        _Column(f"{titles[first]}, {run.name}", comparison.figures[run.name, first].class_ap)
        for run in comparison.runs
        if run not in comparison.pair
    ]
