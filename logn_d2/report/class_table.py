"""The table of every class: counts, logits, and AP of every run.

Shapes: K foreground classes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from .comparison import Comparison
from .html import Html, element, table
from .results import ClassInfo, group_title
from .summary import format_change, format_value

__all__ = ["class_table"]

_TASK_TITLES = {"bbox": "Box AP", "segm": "Mask AP"}


@dataclass(frozen=True, eq=False)
class _Column:
    title: str
    values: np.ndarray
    decimals: int = 1
    signed: bool = False


def class_table(
    comparison: Comparison, mean: np.ndarray | None = None, std: np.ndarray | None = None
) -> Html:
    """One row for each class, most training images first; the page's script sorts and searches.

    Args:
        comparison (Comparison): of K classes.
        mean (ndarray): (K,) of the raw logit, or None.
        std (ndarray): (K,), or None.
    """
    classes = comparison.classes
    columns = [
        _Column("Images", classes.image_count, 0),
        _Column("Objects", classes.instance_count, 0),
    ]
    if mean is not None and std is not None:
        columns += [_Column("Logit mean", mean, 2), _Column("Logit std", std, 2)]
    columns += _ap_columns(comparison)
    titles = ("Class", "Group", *(column.title for column in columns))
    head = [element("th", title, scope="col") for title in titles]
    body = [
        [
            element("th", _class_text(classes, index), scope="row"),
            element("td", group_title(classes.groups[index])),
            *(_cell(column, float(column.values[index])) for column in columns),
        ]
        for index in np.argsort(-classes.image_count, kind="stable").tolist()
    ]
    caption = (
        "Every class: training images and objects, mean and standard deviation of its raw logit, "
        f"AP of each run, and the difference of {comparison.focus.name} to "
        f"{comparison.baseline.name}. A dash: no object in the validation set."
    )
    found = table(caption, [head], body, class_="sortable", id="class-table")
    return element("div", found, class_="tall")


def _ap_columns(comparison: Comparison) -> list[_Column]:
    """Baseline, focus and their difference, then the boxes of all other runs."""
    columns = []
    for task in comparison.tasks:
        title, pair = _TASK_TITLES[task], comparison.pair
        before, after = (comparison.figures[run.name, task].class_ap for run in pair)
        columns += [
            _Column(f"{title}, {pair[0].name}", before),
            _Column(f"{title}, {pair[1].name}", after),
            _Column(f"{title}, difference", after - before, signed=True),
        ]
    first = comparison.tasks[0]
    return columns + [
        _Column(f"{_TASK_TITLES[first]}, {run.name}", comparison.figures[run.name, first].class_ap)
        for run in comparison.runs
        if run not in comparison.pair
    ]


def _class_text(classes: ClassInfo, index: int) -> str:
    name, label = classes.names[index], classes.labels[index]
    return name.replace("_", " ") if label == name else f"{label} {name.replace('_', ' ')}"


def _cell(column: _Column, value: float) -> Html:
    if math.isnan(value):
        return element("td", "–", data_sort="")
    text = format_change(value) if column.signed else format_value(value, column.decimals)
    # Rounded to more digits than are shown, so that sorting does not depend on a last bit.
    return element("td", text, data_sort=f"{value:.6g}")
