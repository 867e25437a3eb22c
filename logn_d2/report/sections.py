"""What stands in the sections of results, scores and errors."""

from __future__ import annotations

from .comparison import Comparison
from .drawn import Drawn
from .figures import change_figure
from .figures_errors import error_figure
from .figures_groups import interval_figure
from .figures_scores import reliability_figure, score_figure, threshold_figure
from .html import Html, element
from .results import TASKS
from .summary import format_change, format_interval, format_value
from .tables import change_table, error_table, figure_table, quality_table, threshold_table

__all__ = ["errors_section", "results_section", "scores_section"]

# Thresholds whose AP is told in words.
_READ_OUT = (0, 0.05, 0.5)


def results_section(comparison: Comparison) -> list[Html | Drawn]:
    """What every run reaches, and what it changes."""
    content: list[Html | Drawn] = []
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
        alt = f"Bar chart. {_values_alt(comparison, task)}"
        content.append(Drawn(f"ap_{TASKS[task]}", drawn, alt, caption))
        content.append(_changes(comparison, task))
    return content


def _values_alt(comparison: Comparison, task: str) -> str:
    said = []
    for run in comparison.pair:
        values = ((m, comparison.figures[run.name, task].value(m)) for m in comparison.metrics)
        listed = ", ".join(f"{m} {format_value(v.value)} {format_interval(v)}" for m, v in values)
        said.append(f"{run.name}: {listed}.")
    return " ".join(said)


def _changes(comparison: Comparison, task: str) -> Drawn:
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
    alt = f"Dot plot of differences. {' '.join(said)}"
    return Drawn(f"changes_{TASKS[task]}", drawn, alt, caption)


def errors_section(comparison: Comparison) -> list[Html | Drawn]:
    """TIDE before and after."""
    content: list[Html | Drawn] = []
    for task in comparison.tasks:
        analyses = {run.name: comparison.errors[run.name, task] for run in comparison.pair}
        caption = (
            f"AP at an IoU of 0.5 that {TASKS[task]} would gain without each kind of error, after "
            "Fig. 4 of the paper; the error types are those of TIDE (Bolya et al., ECCV 2020), "
            "counted only where LVIS's annotations can tell. The same numbers are in the table."
        )
        alt = f"Bar chart of the gains of {TASKS[task]} that the table below lists."
        content.append(element("h3", TASKS[task].capitalize()))
        drawn = error_figure(analyses, comparison.groups)
        content.append(Drawn(f"errors_{TASKS[task]}", drawn, alt, caption))
        content.append(error_table(comparison, task))
    return content


def scores_section(comparison: Comparison) -> list[Html | Drawn]:
    """Thresholds, reliability and histograms of box scores."""
    qualities = {run.name: comparison.quality[run.name] for run in comparison.pair}
    names = " and ".join(qualities)
    ece = ", ".join(f"{n} {format_value(100 * q.ece())} %" for n, q in qualities.items())
    return [
        element("h3", "Which score threshold to use now"),
        element("p", _threshold_sentence(comparison)),
        threshold_table(comparison),
        Drawn(
            "thresholds",
            threshold_figure(comparison.curves, comparison.metrics),
            "Curves of AP and of the number of detections against the score threshold. "
            f"{_curves(comparison)}",
            "AP of the boxes above a score threshold. It can only fall: what a threshold takes "
            "away is never given back.",
        ),
        element("h3", "Whether scores are probabilities"),
        quality_table(comparison),
        Drawn(
            "reliability",
            reliability_figure(qualities, comparison.groups),
            f"Reliability diagrams for each group of classes. Expected calibration error: {ece}.",
            "Precision of the boxes in each bin of scores against their mean score. On the "
            "diagonal a score is a probability; below it the detector is overconfident.",
        ),
        Drawn(
            "scores",
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
