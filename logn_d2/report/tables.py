"""The tables of the report."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from .html import Html, element, join, table
from .results import BASELINE, GROUPS, METRICS, TASKS, ClassInfo, ResultRow, Results
from .summary import display_name, format_change, format_value

__all__ = ["class_table", "fact_table", "metric_table", "result_table"]


_TASK_TITLES = {"bbox": "Box AP", "segm": "Mask AP"}
_DECIMALS = {"Images": 0, "Objects": 0, "Logit mean": 2, "Logit std": 2}


def result_table(results: Results) -> Html:
    """AP, APr, APc, APf of every calibration; the best of each column has a star."""
    columns = [(task, metric) for task in results.tasks for metric in METRICS]
    best = {column: _best(results, *column) for column in columns}
    head = [
        [
            element("th", "Calibration", scope="col", rowspan=2),
            *(
                element("th", TASKS[task].capitalize(), scope="colgroup", colspan=len(METRICS))
                for task in results.tasks
            ),
        ],
        [element("th", metric, scope="col") for _, metric in columns],
    ]
    body = [
        [
            element("th", display_name(row.calibration), scope="row", title=row.calibration),
            *(_result_cell(results, row, *column, best[column]) for column in columns),
        ]
        for row in results.rows
    ]
    caption = (
        "Average precision in percent over all, rare, common and frequent classes (AP, APr, APc, "
        "APf), with the change against the uncalibrated detector. ★ marks the best of a column."
    )
    return table(caption, head, body, class_="stuck")


def _result_cell(results: Results, row: ResultRow, task: str, metric: str, best: float) -> Html:
    value = row.value(task, metric)
    content = [format_value(value)]
    is_best = value == best
    if is_best:
        # In front, so that the decimal points stay below each other.
        content.insert(0, element("span", "★ ", aria_label="best", role="img"))
    if row.calibration != BASELINE:
        delta = value - results.row(BASELINE).value(task, metric)
        content.append(element("small", format_change(delta)))
    return element("td", *content, class_="best" if is_best else None)


def _best(results: Results, task: str, metric: str) -> float:
    values = [row.value(task, metric) for row in results.rows]
    known = [value for value in values if not math.isnan(value)]
    # Where all are equal nothing is best.
    return max(known) if len(set(known)) > 1 else math.nan


def metric_table(results: Results) -> Html:
    """All other metrics of the evaluation; empty where there are none."""
    columns = [
        (task, metric)
        for task in results.tasks
        for metric in results.rows[0].tasks[task]
        if metric not in METRICS and all(metric in row.tasks[task] for row in results.rows)
    ]
    if not columns:
        return Html("")
    head = [
        [
            element("th", "Calibration", scope="col"),
            *(element("th", f"{metric}, {TASKS[task]}", scope="col") for task, metric in columns),
        ]
    ]
    body = [
        [
            element("th", display_name(row.calibration), scope="row"),
            *(element("td", format_value(row.value(*column))) for column in columns),
        ]
        for row in results.rows
    ]
    caption = (
        "AP at an IoU of 0.5 and 0.75; AP of small, medium and large objects (s, m, l); average "
        "recall (AR). In percent."
    )
    return table(caption, head, body, class_="stuck")


def class_table(
    classes: ClassInfo,
    class_ap: Mapping[str, Mapping[str, np.ndarray]],
    calibration: str,
    mean: np.ndarray | None = None,
    std: np.ndarray | None = None,
) -> Html:
    """One row for each class, most training images first; sorted by a click on a heading.

    Args:
        classes (ClassInfo): K classes.
        class_ap (Mapping): calibration -> task -> (K,) percent; may be empty.
        calibration (str): compared with the uncalibrated detector.
        mean (ndarray): (K,) of the raw logit, or None.
        std (ndarray): (K,), or None.
    """
    numbers = {"Images": classes.image_count, "Objects": classes.instance_count}
    if mean is not None and std is not None:
        numbers |= {"Logit mean": mean, "Logit std": std}
    numbers |= _ap_columns(class_ap, calibration)
    head = [[element("th", name, scope="col") for name in ("Class", "Group", *numbers)]]
    body = [
        [
            element("th", _class_text(classes, index), scope="row"),
            element("td", GROUPS[classes.groups[index]]),
            *(
                _number_cell(float(values[index]), _DECIMALS.get(name, 1), "change" in name)
                for name, values in numbers.items()
            ),
        ]
        for index in np.argsort(-classes.image_count, kind="stable").tolist()
    ]
    caption = (
        "Training images and objects of each class, its raw logit, and its AP before and after "
        f"{display_name(calibration)}."
    )
    return element("div", table(caption, head, body, class_="sortable"), class_="tall")


def _ap_columns(
    class_ap: Mapping[str, Mapping[str, np.ndarray]], calibration: str
) -> dict[str, np.ndarray]:
    """Title -> (K,), for the tasks whose AP is known before and after."""
    columns = {}
    for task in TASKS:
        if all(task in class_ap.get(name, {}) for name in (BASELINE, calibration)):
            before, after = class_ap[BASELINE][task], class_ap[calibration][task]
            titles = [f"{_TASK_TITLES[task]} {name}" for name in ("before", "after", "change")]
            columns |= dict(zip(titles, (before, after, after - before), strict=True))
    return columns


def _class_text(classes: ClassInfo, index: int) -> str:
    name, label = classes.names[index], classes.labels[index]
    return name.replace("_", " ") if label == name else f"{label} {name.replace('_', ' ')}"


def _number_cell(value: float, decimals: int, is_change: bool) -> Html:
    if math.isnan(value):
        return element("td", "–", data_sort="")
    text = f"{value:+.{decimals}f}" if is_change else f"{value:,.{decimals}f}"
    return element("td", text.replace("-", "−"), data_sort=f"{value:.4g}")


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
