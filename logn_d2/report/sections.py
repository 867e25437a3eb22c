"""What stands in each section of the page.

Shapes: K foreground classes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from logn_d2.core import LogitStatistics
from logn_d2.core.affine import foreground_columns

from .analysis import label_prior, spearman
from .comparison import Comparison
from .figure_style import svg_data_uri
from .figures import change_figure, logit_figure, prior_figure
from .figures_errors import error_figure
from .figures_groups import interval_figure
from .figures_images import images_figure
from .figures_scores import reliability_figure, score_figure, threshold_figure
from .html import Html, element
from .results import TASKS
from .summary import display_name, format_change, format_interval, format_value
from .tables import change_table, error_table, figure_table, quality_table, threshold_table

__all__ = [
    "errors_section",
    "figure",
    "foreground",
    "logits_section",
    "prior_section",
    "results_section",
    "scores_section",
    "study_section",
]

# Thresholds whose AP is told in words.
_READ_OUT = (0, 0.05, 0.5)


def figure(drawn: Figure, alt: str, caption: str) -> Html:
    """A figure that scrolls sideways rather than shrink until it can't be read."""
    image = element("img", src=svg_data_uri(drawn), alt=alt)
    picture = element("div", image, class_="scroll wide", tabindex="0", role="region",
                      aria_label=caption.partition(".")[0])  # fmt: skip
    return element("figure", picture, element("figcaption", caption))


def results_section(comparison: Comparison) -> list[Html]:
    """What every run reaches, and what it changes."""
    content = []
    for task in comparison.tasks:
        content.append(element("h3", TASKS[task].capitalize()))
        content.append(figure_table(comparison, task))
        content.append(change_table(comparison, task))
        pair = {run.name: comparison.figures[run.name, task].own for run in comparison.pair}
        before, after = pair
        drawn = interval_figure(
            {name: own.estimate for name, own in pair.items()},
            comparison.metrics,
            {name: own.intervals for name, own in pair.items()},
            level=comparison.settings.level,
            what=f"AP of {TASKS[task]}",
        )
        caption = (
            f"AP of each group of classes for {before} and {after}, after Fig. 3 of the paper. "
            "Intervals of the same images overlap even where the difference is certain: that is in "
            "the table of differences."
        )
        content.append(figure(drawn, f"Bar chart. {_values_alt(comparison, task)}", caption))
        content.append(_changes(comparison, task))
    return content


def _values_alt(comparison: Comparison, task: str) -> str:
    said = []
    for run in comparison.pair:
        values = ((m, comparison.figures[run.name, task].value(m)) for m in comparison.metrics)
        listed = ", ".join(f"{m} {format_value(v.value)} {format_interval(v)}" for m, v in values)
        said.append(f"{run.name}: {listed}.")
    return " ".join(said)


def _changes(comparison: Comparison, task: str) -> Html:
    others = [run.name for run in comparison.runs[1:]]
    changes = {
        name: {m: comparison.figures[name, task].difference(m) for m in comparison.metrics}
        for name in others
    }
    said = (
        f"{name}: {', '.join(f'{m} {format_change(v.value)}' for m, v in row.items())}."
        for name, row in changes.items()
    )
    caption = (
        f"What each run changes against {comparison.baseline.name}, {TASKS[task]}. Lines: "
        f"{comparison.level} intervals over images."
    )
    drawn = change_figure(changes, TASKS[task])
    return figure(drawn, f"Dot plot of differences. {' '.join(said)}", caption)


def foreground(statistics: LogitStatistics) -> list[tuple[np.ndarray, np.ndarray]]:
    """Mean and standard deviation of the foreground logits of each stage, (K,) each."""
    columns = foreground_columns(statistics.background)
    return [
        (stage.mean[columns].numpy(), stage.std[columns].numpy()) for stage in statistics.stages
    ]


def logits_section(comparison: Comparison, statistics: Mapping[str, LogitStatistics]) -> list[Html]:
    """Mean and standard deviation of each class's logit, for each run's statistics and stage."""
    content, classes = [], comparison.classes
    for name, each in statistics.items():
        stages = foreground(each)
        for index, (mean, std) in enumerate(stages):
            which = f"{name}. " if len(statistics) > 1 else ""
            which += f"Cascade stage {index + 1}. " if len(stages) > 1 else ""
            caption = (
                f"{which}Each marker is a class: mean and standard deviation of its raw logit over "
                f"{each.num_rois:,} RoIs of {each.num_images:,} training images, after Fig. 2 of "
                "the paper. Where both rise with the number of images, frequent classes have the "
                "larger logits whatever is in the image: that is what LogN takes away."
            )
            rho = [_signed(spearman(classes.image_count, values)) for values in (mean, std)]
            alt = (
                "Two scatter plots against training images of a class, on a logarithmic axis. Rank "
                f"correlation {rho[0]} for the mean logit, {rho[1]} for its standard deviation."
            )
            drawn = logit_figure(mean, std, classes)
            content.append(figure(drawn, alt, caption))
    return content


def prior_section(
    comparison: Comparison, statistics: LogitStatistics, foreground_share: float | None
) -> list[Html]:
    """The model's label prior against the labels."""
    classes = comparison.classes
    prior = label_prior(foreground(statistics)[0][0])
    drawn = prior_figure(prior, classes, foreground_share)
    caption = (
        "Line: share of each class among the objects of the training set. Markers: the model's "
        "prior, here the softmax of the foreground classes' mean logits, since means of logits "
        "are what a statistics file holds; it is not the mean of the predicted probabilities. "
        "After Fig. 1 of the paper. Scales are logarithmic."
    )
    correlation = _signed(spearman(classes.instance_count, prior))
    rare, named = classes.is_rare, classes.rare_classes
    share = classes.instance_count[rare].sum() / max(classes.instance_count.sum(), 1)
    said = (
        f"{named[0].upper()}{named[1:]} hold {100 * share:.2g} % of the labels; the "
        f"model's prior gives them {100 * prior[rare].sum():.2g} %. Rank correlation of both over "
        f"classes: {correlation}."
    )
    alt = f"Label distribution and the model's prior. {said}"
    return [element("p", said), figure(drawn, alt, caption)]


def study_section(studies: Iterable[Mapping[str, Any]]) -> list[Html]:
    """How many images the statistics need, where that was measured."""
    content = []
    for study in studies:
        rows, passes = study["by_images"], study["passes"]
        said = "; ".join(
            f"{row['images']:,} images: "
            + ", ".join(
                f"{display_name(name)} {format_value(row[name]['AP']['mean'])}"
                for name in study["calibrations"]
            )
            for row in rows
        )
        caption = (
            f"AP of boxes with the statistics of so many images, {passes} passes that see the "
            "images in another order. Lines: means; bars: from the least to the largest."
        )
        alt = f"Curves of AP and APr against images. Mean AP at {said}."
        content.append(figure(images_figure(study), alt, caption))
    return content


def _signed(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:+.2f}".replace("-", "−")


def errors_section(comparison: Comparison) -> list[Html]:
    """TIDE before and after."""
    content = []
    for task in comparison.tasks:
        analyses = {run.name: comparison.errors[run.name, task] for run in comparison.pair}
        caption = (
            f"AP at an IoU of 0.5 that {TASKS[task]} would gain without each kind of error, after "
            "Fig. 4 of the paper; the error types are those of TIDE (Bolya et al., ECCV 2020), "
            "counted only where LVIS's annotations can tell. The same numbers are in the table."
        )
        alt = f"Bar chart of the gains of {TASKS[task]} that the table below lists."
        content.append(element("h3", TASKS[task].capitalize()))
        content.append(figure(error_figure(analyses, comparison.groups), alt, caption))
        content.append(error_table(comparison, task))
    return content


def scores_section(comparison: Comparison) -> list[Html]:
    """Thresholds, reliability and histograms of box scores."""
    qualities = {run.name: comparison.quality[run.name] for run in comparison.pair}
    names = " and ".join(qualities)
    ece = ", ".join(f"{n} {format_value(100 * q.ece())} %" for n, q in qualities.items())
    return [
        element("h3", "Which score threshold to use now"),
        element("p", _threshold_sentence(comparison)),
        threshold_table(comparison),
        figure(
            threshold_figure(comparison.curves, comparison.metrics),
            "Curves of AP and of the number of detections against the score threshold. "
            f"{_curves(comparison)}",
            "AP of the boxes above a score threshold. It can only fall: what a threshold takes "
            "away is never given back.",
        ),
        element("h3", "Whether scores are probabilities"),
        quality_table(comparison),
        figure(
            reliability_figure(qualities, comparison.groups),
            f"Reliability diagrams for each group of classes. Expected calibration error: {ece}.",
            "Precision of the boxes in each bin of scores against their mean score. On the "
            "diagonal a score is a probability; below it the detector is overconfident.",
        ),
        figure(
            score_figure(qualities),
            f"Histograms of the scores of true and false positives, {names}.",
            "Scores of true and false positives, and what the boxes in each bin of scores are. "
            "Only boxes whose class is verified for their image count.",
        ),
    ]


def _curves(comparison: Comparison) -> str:
    said = []
    for name, curve in comparison.curves.items():
        points = dict(zip(curve.threshold.tolist(), (100 * curve.metrics["AP"]).tolist()))
        listed = (f"{format_value(points[each])} above {each:g}" for each in _READ_OUT)
        said.append(f"{name}: AP {', '.join(listed)}.")
    return " ".join(said)


def _threshold_sentence(comparison: Comparison) -> str:
    name, old = comparison.focus.name, comparison.settings.score_threshold
    first = comparison.thresholds[name][0]
    before, after = f"{first.per_image:.2f}", f"{first.new_per_image:.2f}"
    reached = "as many" if before == after else f"{after}, which is nearest,"
    return (
        f"Calibration moves scores. Where {comparison.baseline.name} was used with a threshold of "
        f"{old:g}, which shows {before} boxes an image, {name} shows {reached} with "
        f"{first.new_score:.3f}; at {old:g} it would show {first.same_score_per_image:.2f}."
    )
