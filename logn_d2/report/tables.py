"""The tables of figures: every run, every metric, with intervals."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from logn_d2.evaluation.errors import ERROR_TYPES
from logn_d2.evaluation.score_threshold import ThresholdSuggestion

from .comparison import FIXED, Comparison, Value
from .html import Html, element, join, table
from .results import TASKS, group_title
from .run_folder import Run
from .summary import format_change, format_interval, format_value, join_words

__all__ = [
    "change_table",
    "error_table",
    "fact_table",
    "figure_table",
    "quality_table",
    "threshold_table",
]


def figure_table(comparison: Comparison, task: str) -> Html:
    """All metrics of all runs; the best of each column has a star."""
    columns, groups = comparison.columns, comparison.groups
    values = {
        run.name: {m: comparison.figures[run.name, task].value(m) for m in columns}
        for run in comparison.runs
    }
    best = {m: _best([row[m].value for row in values.values()]) for m in columns}
    body = [
        [_run_head(run), *(_figure_cell(values[run.name][m], best[m]) for m in columns)]
        for run in comparison.runs
    ]
    caption = (
        f"Average precision of {TASKS[task]} in percent, with {comparison.level} intervals: over "
        "all classes (AP), at an IoU of 0.5 and 0.75, over "
        f"{join_words([group_title(group) for group in groups])} classes "
        f"({', '.join(comparison.metrics[1:])}); average recall (AR); and {FIXED}, which keeps the "
        f"best 10,000 detections of each class instead of {_kept(comparison)} of each image. "
        "★ marks the best of a column."
    )
    return table(caption, [_heads(columns)], body, class_="stuck", id=f"figures-{task}")


def _kept(comparison: Comparison) -> str:
    limit = comparison.settings.max_dets
    return "all" if limit < 0 else f"the best {limit}"


def _figure_cell(value: Value, best: float) -> Html:
    content = [format_value(value.value)]
    is_best = round(value.value, 1) == best
    if is_best:
        # In front, so that the decimal points stay below each other.
        content.insert(0, element("span", "★ ", aria_label="best", role="img"))
    content.append(_small_interval(value))
    return element("td", *content, class_="best" if is_best else None)


def _best(values: Sequence[float]) -> float:
    known = [round(value, 1) for value in values if not math.isnan(value)]
    # Where all are equal nothing is best.
    return max(known) if len(set(known)) > 1 else math.nan


def change_table(comparison: Comparison, task: str) -> Html:
    """What each run has more than the baseline."""
    body = [
        [
            _run_head(run),
            *(
                _change_cell(comparison.figures[run.name, task].difference(metric))
                for metric in comparison.columns
            ),
        ]
        for run in comparison.runs[1:]
    ]
    caption = (
        f"Difference to {comparison.baseline.name} for {TASKS[task]}, in points, from unrounded "
        "figures. ▲ and ▼: the whole interval is above or below 0."
    )
    heads = _heads(comparison.columns)
    return table(caption, [heads], body, class_="stuck", id=f"changes-{task}")


def _change_cell(change: Value) -> Html:
    sure = "▲ " if change.low > 0 else "▼ " if change.high < 0 else ""
    words = {"▲ ": "interval above 0", "▼ ": "interval below 0"}
    mark = [element("span", sure, aria_label=words[sure], role="img")] if sure else []
    return element("td", *mark, format_change(change.value), _small_interval(change))


def _small_interval(value: Value) -> Html:
    text = format_interval(value)
    return element("small", text) if text else Html("")


def error_table(comparison: Comparison, task: str) -> Html:
    """AP50 that each kind of error costs, before and after, group by group."""
    analyses = {run.name: comparison.errors[run.name, task] for run in comparison.pair}
    body = []
    for group in ("all", *comparison.groups):
        for name, analysis in analyses.items():
            row = analysis.as_dict()[group]
            if not row["classes"]:
                continue
            gains = (element("td", format_value(row["gain"][error])) for error in ERROR_TYPES)
            body.append([
                element("th", f"{group_title(group)}, {name}", scope="row"),
                element("td", format_value(row["AP"])),
                *gains,
                element("td", f"{row['not_found']} of {row['classes']}"),
            ])  # fmt: skip
    caption = (
        f"AP at an IoU of 0.5 for {TASKS[task]}, and what it would gain without each kind of error "
        "(TIDE): wrong class, badly placed, both, duplicate, background, missed object; then all "
        "false positives and all false negatives. Last: classes of which no object was found."
    )
    heads = _heads(("AP50", *ERROR_TYPES, "Not found"), first="Classes, run")
    return table(caption, [heads], body, class_="stuck", id=f"errors-{task}")


def quality_table(comparison: Comparison) -> Html:
    """How far scores of boxes can be taken for probabilities, for all runs."""
    groups = ("all", *comparison.groups)
    body = []
    for run in comparison.runs:
        quality = comparison.quality[run.name]
        row = quality.as_dict()["all"]
        shares = [row["precision"], row["score"], *(quality.ece(group) for group in groups)]
        cells = (element("td", format_value(100 * share)) for share in shares)
        body.append([_run_head(run), element("td", f"{row['labelled']:,}"), *cells])
    caption = (
        "Boxes whose class is verified for their image: how many are right (precision), their mean "
        "score, and the expected calibration error (ECE) over all classes and in each group, in "
        "percent. Calibrations of logits are made for ranking; a lower ECE is not their aim."
    )
    errors = (f"ECE, {group_title(group)}" for group in groups)
    heads = _heads(("Boxes", "Precision", "Mean score", *errors))
    return table(caption, [heads], body, class_="stuck", id="quality")


def threshold_table(comparison: Comparison) -> Html:
    """The score threshold that keeps the number of boxes, for each run and the focus's groups."""
    old = comparison.settings.score_threshold
    body = []
    for run in comparison.runs[1:]:
        found = {each.group: each for each in comparison.thresholds[run.name]}
        body.append(_threshold_row(run.name, found["all"]))
        for group in comparison.groups if run is comparison.focus else ():
            body.append(_threshold_row(f"{run.name}, {group_title(group)}", found[group]))
    caption = (
        f"Boxes in an image with a score above {old:g} before ({comparison.baseline.name}) and "
        "after, and the threshold that keeps as many as before. A threshold for each group keeps "
        "each group's share, which takes back part of what the calibration is for."
    )
    names = ("Before", f"After, above {old:g}", "New threshold", "After, above it")
    return table(caption, [_heads(names)], body, class_="stuck", id="thresholds")


def _threshold_row(name: str, each: ThresholdSuggestion) -> list[Html]:
    cells = (
        *(f"{each.per_image:.2f}", f"{each.same_score_per_image:.2f}"),
        *(f"{each.new_score:.3f}", f"{each.new_per_image:.2f}"),
    )
    return [element("th", name, scope="row"), *(element("td", cell) for cell in cells)]


def _heads(names: Sequence[str], first: str = "Run") -> list[Html]:
    return [element("th", name, scope="col") for name in (first, *names)]


def _run_head(run: Run) -> Html:
    return element("th", run.name, scope="row", title=f"{run.folder.path}: {run.calibration}")


def fact_table(caption: str, facts: Mapping[str, Any]) -> Html:
    """Names and values of any depth, as they are."""
    body = [
        [element("th", name.replace("_", " "), scope="row"), element("td", _fact(value))]
        for name, value in facts.items()
    ]
    return table(caption, [], body, class_="facts")


def _fact(value: Any) -> Html:
    if isinstance(value, Mapping):
        parts = (join([key.replace("_", " "), _fact(v)], " ") for key, v in value.items())
        return join(parts, "; ")
    if isinstance(value, (list, tuple)):
        return join((_fact(entry) for entry in value), ", ")
    if isinstance(value, float):
        return Html(f"{value:.4g}")
    return join(["not known" if value is None else str(value)])
