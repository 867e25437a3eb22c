"""The report: one HTML file that needs nothing else, made from results, statistics and images."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from logn_d2.core import LogitStatistics, atomic_write
from logn_d2.core.affine import foreground_columns

from .analysis import ap_change, label_prior, spearman
from .assets import SCRIPT, STYLE
from .figures import change_figure, group_figure, logit_figure, prior_figure, svg_data_uri
from .html import Html, element, join, raw_element
from .results import BASELINE, GROUPS, METRICS, TASKS, ClassInfo, Results
from .summary import display_name, format_change, summarise
from .tables import class_table, fact_table, metric_table, result_table

if TYPE_CHECKING:
    from .gallery import Gallery, GalleryEntry

__all__ = ["ReportInputs", "build_report", "write_report"]


@dataclass(frozen=True)
class ReportInputs:
    """All that a report is made from; what is None is left out of it.

    Attributes:
        results (Results): with a row of `calibration` and the uncalibrated one.
        statistics (LogitStatistics): of the raw logits; the figures need ``results.classes`` too.
        gallery (Gallery): images before and after.
        foreground_share (float): of the RoIs behind the statistics, in [0, 1].
        calibration (str): what the report is about.
        title (str): of the page.
    """

    results: Results
    statistics: LogitStatistics | None = None
    gallery: Gallery | None = None
    foreground_share: float | None = None
    calibration: str = "logn"
    title: str = "LogN before and after"


def write_report(path: str | os.PathLike[str], inputs: ReportInputs) -> None:
    """Writes the page; one that was there before stays whole if this fails.

    Raises:
        KeyError: the results lack the calibration that the report is about.
        ValueError: statistics and results are of different classes.
    """
    text = build_report(inputs)
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def build_report(inputs: ReportInputs) -> str:
    """The page as text; see `write_report`."""
    _check_classes(inputs)
    sections = [section for section in _sections(inputs) if section.content]
    body = [
        _header(inputs, sections),
        element("main", *(section.element() for section in sections)),
        element("footer", element("p", _NOT_LOGITNORM, class_="soft")),
        raw_element("script", SCRIPT) if inputs.results.classes else Html(""),
    ]
    head = [
        element("meta", charset="utf-8"),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("title", inputs.title),
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
    content: Sequence[str]

    def element(self) -> Html:
        heading = element("h2", self.title, id=f"{self.name}-title")
        return element(
            "section", heading, *self.content, id=self.name, aria_labelledby=f"{self.name}-title"
        )


def _sections(inputs: ReportInputs) -> Iterator[_Section]:
    yield _Section("results", "What each calibration reaches", _results_section(inputs))
    yield _Section("logits", "Logits against the number of training images", _logits(inputs))
    yield _Section("prior", "What the model leans to", _prior(inputs))
    yield _Section("images", "Images before and after", _gallery(inputs.gallery, inputs.results))
    yield _Section("classes", "Every class", _classes(inputs))
    yield _Section("provenance", "How these numbers were made", _provenance(inputs.results))


def _check_classes(inputs: ReportInputs) -> None:
    statistics, classes = inputs.statistics, inputs.results.classes
    if statistics is None or classes is None or statistics.class_names == classes.names:
        return
    raise ValueError(
        f"The statistics are of {statistics.num_classes} classes (first "
        f"{statistics.class_names[:1]}), the results of {len(classes)} (first "
        f"{classes.names[:1]}). Give statistics and results of one data set."
    )


def _header(inputs: ReportInputs, sections: Sequence[_Section]) -> Html:
    lead, *others = summarise(inputs.results, inputs.calibration)
    links = [
        element("li", element("a", section.name.capitalize(), href=f"#{section.name}"))
        for section in sections
    ]
    parts = [element("h1", inputs.title)]
    if inputs.results.classes is not None:
        parts.append(element("p", _data_line(inputs.results.classes), class_="soft"))
    parts.append(element("p", lead, class_="lead"))
    parts.append(element("ul", *(element("li", sentence) for sentence in others)))
    parts.append(element("nav", element("ul", *links), aria_label="Sections"))
    return element("header", *parts)


def _data_line(classes: ClassInfo) -> str:
    sizes = ", ".join(f"{classes.groups.count(group)} {name}" for group, name in GROUPS.items())
    fewest, most = (int(pick(classes.image_count)) for pick in (np.min, np.max))
    return f"{len(classes)} classes ({sizes}), each seen in {fewest:,} to {most:,} training images."


def _results_section(inputs: ReportInputs) -> list[str]:
    results, calibration = inputs.results, inputs.calibration
    rows = {name: results.row(name) for name in (BASELINE, calibration)}
    values = [
        {task: {m: row.value(task, m) for m in METRICS} for task in results.tasks}
        for row in rows.values()
    ]
    names = (display_name(BASELINE), display_name(calibration))
    content: list[str] = [result_table(results)]
    more = metric_table(results)
    if more:
        content.append(element("details", element("summary", "All other metrics"), more))
    bars = group_figure(*values, names=names)
    caption = f"AP of each group for the uncalibrated detector and for {names[1]}."
    content.append(_figure(svg_data_uri(bars), f"Bar chart. {_bars_alt(inputs)}", caption))
    others = [row.calibration for row in results.rows if row.calibration != BASELINE]
    for task in results.tasks if others else ():
        changes = {name: {m: ap_change(results, name, task, m) for m in METRICS} for name in others}
        caption = (
            f"What each calibration changes, {TASKS[task]}. Faint lines: 95 % bootstrap intervals "
            "over classes; they do not cover the difference between two trainings."
        )
        alt = f"Dot plot of the changes of AP of {TASKS[task]} that the table above lists."
        content.append(_figure(svg_data_uri(change_figure(changes, TASKS[task])), alt, caption))
    return content


def _bars_alt(inputs: ReportInputs) -> str:
    results = inputs.results
    parts = (
        f"{metric} of {TASKS[task]} {format_change(change.delta)}"
        for task in results.tasks
        for metric in METRICS
        for change in [ap_change(results, inputs.calibration, task, metric)]
    )
    return f"Changes: {', '.join(parts)}."


def _foreground(inputs: ReportInputs) -> list[tuple[np.ndarray, np.ndarray]]:
    """Mean and standard deviation of the foreground logits of each stage, (K,) each."""
    if inputs.statistics is None or inputs.results.classes is None:
        return []
    columns = foreground_columns(inputs.statistics.background)
    return [
        (stage.mean[columns].numpy(), stage.std[columns].numpy())
        for stage in inputs.statistics.stages
    ]


def _logits(inputs: ReportInputs) -> list[str]:
    content, classes = [], inputs.results.classes
    stages = _foreground(inputs)
    for index, (mean, std) in enumerate(stages):
        figure = logit_figure(mean, std, classes.image_count, classes.groups)
        stage = f" Cascade stage {index + 1}." if len(stages) > 1 else ""
        caption = (
            "Each marker is a class: mean and standard deviation of its raw logit over the RoIs of "
            f"the training set ({inputs.statistics.num_rois:,} RoIs of "
            f"{inputs.statistics.num_images:,} images), after Fig. 2 of the paper. Where both rise "
            "with the number of images, frequent classes win by their logits' scale alone: that is "
            f"what LogN takes away.{stage}"
        )
        correlations = [_signed(spearman(classes.image_count, values)) for values in (mean, std)]
        alt = (
            "Two scatter plots against training images of a class, on a logarithmic axis. Rank "
            f"correlation {correlations[0]} for the mean logit, {correlations[1]} for its "
            "standard deviation."
        )
        content.append(_figure(svg_data_uri(figure), alt, caption))
    return content


def _prior(inputs: ReportInputs) -> list[str]:
    stages, classes = _foreground(inputs), inputs.results.classes
    if not stages:
        return []
    prior = label_prior(stages[0][0])
    figure = prior_figure(prior, classes.instance_count, classes.groups, inputs.foreground_share)
    caption = (
        "Line: share of each class among the objects of the training set. Markers: the model's "
        "prior, here the softmax of the foreground classes' mean logits, since means of logits "
        "are what a statistics file holds; it is not the mean of the predicted probabilities. "
        "After Fig. 1 of the paper. Scales are logarithmic."
    )
    correlation = _signed(spearman(classes.instance_count, prior))
    rare = np.array(classes.groups) == "r"
    share = classes.instance_count[rare].sum() / max(classes.instance_count.sum(), 1)
    alt = (
        f"Label distribution and the model's prior; rank correlation {correlation}. Rare classes "
        f"hold {100 * share:.2g} % of the labels and {100 * prior[rare].sum():.2g} % of the prior."
    )
    said = (
        f"Rare classes hold {100 * share:.2g} % of the labels; the model's prior gives them "
        f"{100 * prior[rare].sum():.2g} %. Rank correlation of both over classes: {correlation}."
    )
    return [element("p", said), _figure(svg_data_uri(figure), alt, caption)]


def _signed(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:+.2f}".replace("-", "−")


def _gallery(gallery: Gallery | None, results: Results) -> list[str]:
    if gallery is None or results.classes is None:
        return []
    before, after = (display_name(name) for name in gallery.names)
    counts = (
        f"Of the {gallery.num_rare:,} rare objects in {gallery.num_images:,} images, {after} finds "
        f"{gallery.gained[0]:,} that the uncalibrated detector misses and misses "
        f"{gallery.lost[0]:,} that it finds; of all {gallery.num_objects:,} objects it gains "
        f"{gallery.gained[1]:,} and loses {gallery.lost[1]:,}. Below are the images with the "
        "largest gains and the largest losses, not typical ones."
    )
    rule = (
        "Calibrations move all scores, so no common threshold would be fair: each picture shows "
        "the n best detections, n being the number of annotated objects, and where several overlap "
        "only the best. Found means: right class and an IoU of at least 0.5."
    )
    key = element(
        "ul",
        _key("outline:2px dashed #fff", "annotated object"),
        _key("outline-color:#56b4e9", "✓ found, ★ found and of a rare class"),
        _key("outline-color:#e69f00", "✗ no annotated object of this class there"),
        class_="key",
    )
    entries = [_entry(entry, results.classes, before, after) for entry in gallery.entries]
    if not entries:
        return [element("p", counts), element("p", "No image differs.")]
    pictures = element("div", *entries, class_="gallery")
    return [element("p", counts), element("p", rule, class_="soft"), key, pictures]


def _key(style: str, text: str) -> Html:
    return element("li", element("span", class_="swatch", style=style), text)


def _entry(entry: GalleryEntry, classes: ClassInfo, before: str, after: str) -> Html:
    said = []
    for text, found in (("Found only after", entry.gained), ("Found only before", entry.lost)):
        if found:
            notes = (_class_note(classes, *item) for item in Counter(found).items())
            said.append(f"{text}: {', '.join(notes)}.")
    gain = len(entry.gained) - len(entry.lost)
    rare_gain = _rare(classes, entry.gained) - _rare(classes, entry.lost)
    verdict = "Gain" if (rare_gain, gain) > (0, 0) else "Loss"
    caption = [element("strong", verdict), f", image {entry.image_id}. {' '.join(said)}"]
    sides = [
        element("div", element("img", src=source, alt=f"{name}: {' '.join(said)}"),
                element("span", name))
        for name, source in ((before, entry.before), (after, entry.after))
    ]  # fmt: skip
    return element("figure", element("div", *sides, class_="pair"), element("figcaption", *caption))


def _rare(classes: ClassInfo, indices: Sequence[int]) -> int:
    return sum(classes.groups[index] == "r" for index in indices)


def _class_note(classes: ClassInfo, index: int, objects: int) -> str:
    group, count = GROUPS[classes.groups[index]], int(classes.image_count[index])
    times = f"{objects} × " if objects > 1 else ""
    return f"{times}{classes.labels[index]} ({group}, {count:,} training image{'s' * (count != 1)})"


def _classes(inputs: ReportInputs) -> list[str]:
    classes = inputs.results.classes
    if classes is None:
        return []
    stages = _foreground(inputs)
    mean, std = stages[0] if stages else (None, None)
    return [class_table(classes, inputs.results.class_ap, inputs.calibration, mean, std)]


def _provenance(results: Results) -> list[str]:
    facts = {name: value for name, value in results.provenance.items() if name != "commands"}
    content = [fact_table("Where the numbers come from", facts)] if facts else []
    commands = results.provenance.get("commands")
    if commands:
        content.append(element("h3", "To make them again"))
        content.append(element("pre", element("code", "\n".join(commands))))
    return content


def _figure(source: str, alt: str, caption: str) -> Html:
    """A figure that scrolls sideways rather than shrink until it can't be read."""
    image = element("img", src=source, alt=alt)
    picture = element("div", image, class_="scroll wide", tabindex="0", role="region",
                      aria_label=caption.partition(".")[0])  # fmt: skip
    return element("figure", picture, element("figcaption", caption))
