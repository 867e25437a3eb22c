"""The report: one HTML file that needs nothing else."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from logn_d2.core import LogitStatistics, atomic_write

from .assets import STYLE
from .class_table import class_table
from .comparison import Comparison
from .drawn import Drawn
from .gallery import Gallery
from .gallery_section import gallery_section
from .html import Html, element, join, raw_element
from .results import ClassInfo, group_title
from .run_folder import RunFolder
from .script import SCRIPT
from .sections import errors_section, results_section, scores_section
from .sections_statistics import (
    foreground,
    logits_section,
    of_all_rois,
    prior_section,
    study_section,
)
from .summary import summarise
from .tables import fact_table

__all__ = ["Report", "build_report", "write_report"]


@dataclass(frozen=True, eq=False)
class Report:
    """All that a page is made from; what is None or empty is left out of it.

    Attributes:
        comparison (Comparison): all numbers.
        statistics (Mapping[str, LogitStatistics]): name of a run's folder -> of its raw logits.
        gallery (Gallery): images of baseline and focus.
        notes (Sequence[str]): what the page has to say of itself, such as why it has no pictures.
        command (str): that made the page.
        title (str): of the page.
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
                raise ValueError(
                    f"The statistics of {name} are of {each.num_classes} classes (first "
                    f"{each.class_names[:1]}), the annotations of {len(names)} (first "
                    f"{names[:1]}). Give runs of one data set."
                )

    @property
    def folders(self) -> list[RunFolder]:
        """Of the runs, each once."""
        return list({id(run.folder): run.folder for run in self.comparison.runs}.values())


def write_report(
    path: str | os.PathLike[str],
    report: Report,
    figures: str | os.PathLike[str] | None = None,
) -> None:
    """Writes the page; one that was there before stays whole if this fails.

    Args:
        path (PathLike): of the page.
        report (Report): what it tells.
        figures (PathLike): a folder for all figures as SVG and PNG; None for none.
    """
    sections = _sections(report)
    text = _page(report, sections)
    for part in (part for section in sections for part in section.content):
        if figures is not None and isinstance(part, Drawn):
            part.save(figures)
    with atomic_write(path) as temporary:
        Path(temporary).write_text(text, encoding="utf-8")


def build_report(report: Report) -> str:
    """The page as text; see `write_report`."""
    return _page(report, _sections(report))


def _page(report: Report, sections: Sequence[_Section]) -> str:
    body = [
        _header(report, sections),
        element("main", *(section.element() for section in sections)),
        element("footer", element("p", _NOT_LOGITNORM, class_="soft")),
        raw_element("script", SCRIPT),
    ]
    head = [
        element("meta", charset="utf-8"),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        # Else a browser asks the page's place for an icon.
        element("link", rel="icon", href="data:,"),
        element("title", report.title),
        raw_element("style", STYLE),
    ]
    page = element("html", element("head", join(head)), element("body", join(body)), lang="en")
    return f"<!DOCTYPE html>\n{page}\n"


_NOT_LOGITNORM = (
    "LogN (Zhao, Teng, Wang: Logit Normalization for Long-tail Object Detection, IJCV 2024) "
    "calibrates the classification logits of a trained detector. It is not LogitNorm (Wei et al., "
    "ICML 2022), a training loss for the detection of out-of-distribution inputs."
)


@dataclass(frozen=True)
class _Section:
    name: str
    title: str
    content: Sequence[Html | Drawn]

    def element(self) -> Html:
        heading = element("h2", self.title, id=f"{self.name}-title")
        parts = (part.element() if isinstance(part, Drawn) else part for part in self.content)
        return element(
            "section", heading, *parts, id=self.name, aria_labelledby=f"{self.name}-title"
        )


def _sections(report: Report) -> list[_Section]:
    """Those that have something to say."""
    return [section for section in _all_sections(report) if section.content]


def _all_sections(report: Report) -> Iterator[_Section]:
    comparison, statistics = report.comparison, report.statistics
    yield _Section("results", "What each run reaches", results_section(comparison))
    pictures = []
    if report.gallery is not None:
        pictures = gallery_section(report.gallery, comparison.classes)
    yield _Section("images", "Images before and after", pictures)
    yield _Section("scores", "Scores and thresholds", scores_section(comparison))
    yield _Section("errors", "Which errors cost AP", errors_section(comparison))
    title = "Logits against the number of training images"
    yield _Section("logits", title, logits_section(comparison, statistics))
    mean = std = None
    if of_all_rois(statistics):
        first = next(iter(of_all_rois(statistics).values()))
        (mean, std), *_ = foreground(first)
        prior = prior_section(comparison, statistics, _foreground_share(report.folders))
        yield _Section("prior", "What the model leans to", prior)
    studies = [folder.statistics_study for folder in report.folders if folder.statistics_study]
    yield _Section("statistics", "How many images the statistics need", study_section(studies))
    yield _Section("classes", "Every class", [class_table(comparison, mean, std)])
    yield _Section("provenance", "How these numbers were made", _provenance(report))


def _foreground_share(folders: Sequence[RunFolder]) -> float | None:
    """Of the RoIs in training, where a run has measured it."""
    known = (folder.provenance.get("foreground_share") for folder in folders)
    return next((share for share in known if share is not None), None)


def _header(report: Report, sections: Sequence[_Section]) -> Html:
    lead, *others = summarise(report.comparison)
    others += report.notes
    links = [
        element("li", element("a", section.name.capitalize(), href=f"#{section.name}"))
        for section in sections
    ]
    return element(
        "header",
        element("h1", report.title),
        element("p", _data_line(report.comparison), class_="soft"),
        element("p", lead, class_="lead", id="summary"),
        element("ul", *(element("li", sentence) for sentence in others)),
        element("nav", element("ul", *links), aria_label="Sections"),
    )


def _data_line(comparison: Comparison) -> str:
    classes, truth = comparison.classes, comparison.truth
    return (
        f"{comparison.baseline.folder.dataset}: {truth.num_images:,} images with {len(truth):,} "
        f"objects of {_classes_text(classes)}."
    )


def _classes_text(classes: ClassInfo) -> str:
    sizes = ", ".join(f"{classes.groups.count(n)} {group_title(n)}" for n in classes.group_names)
    fewest, most = (int(pick(classes.image_count)) for pick in (np.min, np.max))
    return f"{len(classes)} classes ({sizes}), each seen in {fewest:,} to {most:,} training images"


def _provenance(report: Report) -> list[Html]:
    content = []
    for folder in report.folders:
        facts = {"data set": folder.dataset, "trained on": ", ".join(folder.train_sets) or None}
        facts |= {n: v for n, v in folder.provenance.items() if n != "commands"}
        content.append(fact_table(f"{folder.path}: where its numbers come from", facts))
        commands = folder.provenance.get("commands")
        if commands:
            content.append(element("h3", f"To make {folder.path} again"))
            content.append(element("pre", element("code", "\n".join(commands))))
    settings = report.comparison.settings
    content.append(element("h3", "This page"))
    content.append(element("p", (
        f"All figures were computed from the stored detections (at most "
        f"{report.comparison.most_detections:,} an image) and the annotations; bootstrap with "
        f"{settings.resamples:,} resamples, seed {settings.seed}."
    )))  # fmt: skip
    if report.command:
        content.append(element("pre", element("code", report.command)))
    return content
