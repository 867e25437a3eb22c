"""AP of calibrations or models as a text table, for one or more runs."""

from __future__ import annotations

import math
import statistics
from collections.abc import Collection, Hashable, Mapping, Sequence
from typing import Any

from .run_table import markdown

_TITLES = {"bbox": "box", "segm": "mask"}
_METRICS = ("AP", "APr", "APc", "APf")

Scores = Mapping[str, Mapping[str, float]]
"""Scores of one run: task -> metric -> percent."""


def format_table(
    rows: Mapping[str, Scores | Sequence[Scores]],
    marked: Collection[str] = (),
    title: str = "calibration",
) -> str:
    """Format AP, APr, APc and APf for boxes and masks as a table.

    Args:
        rows (Mapping): name -> task -> metric -> percent, as `evaluate_sweep` returns them; or name
            -> a list of such scores, one per run, whose mean and spread are shown.
        marked (Collection[str]): names that get a star.
        title (str): header of the first column.

    Returns:
        str: one line per name, in the given order; "-" for undefined figures.

    Example:
        >>> metrics = {"AP": 20.0, "APr": 10.04, "APc": 20.0, "APf": float("nan")}
        >>> print(format_table({"logn": {"bbox": metrics}}))
        | calibration   |   box AP |   APr |   APc |   APf |
        |:--------------|---------:|------:|------:|------:|
        | logn          |     20.0 |  10.0 |  20.0 |     - |
    """
    runs_of = as_runs(rows)
    seen = {task for runs in runs_of.values() for scores in runs for task in scores}
    columns = {
        (task, metric): f"{what} AP" if metric == "AP" else metric
        for task, what in _TITLES.items()
        for metric in _METRICS
        if task in seen
    }
    flat = {
        name: [{(task, key): v for task in each for key, v in each[task].items()} for each in runs]
        for name, runs in runs_of.items()
    }
    return spread_table(flat, columns, marked, title)


def as_runs(rows: Mapping[str, Any]) -> dict[str, list[Mapping]]:
    """Name -> the scores of each run; scores that are no list are those of one run."""
    return {n: [each] if isinstance(each, Mapping) else list(each) for n, each in rows.items()}


def spread_table(
    rows: Mapping[str, Sequence[Mapping[Hashable, float | None]]],
    columns: Mapping[Hashable, str],
    marked: Collection[str] = (),
    title: str = "calibration",
) -> str:
    """Format mean and spread over runs as a table.

    Args:
        rows (Mapping): name -> the scores of each run: column -> number.
        columns (Mapping): column -> header.
        marked, title: see `format_table`.
    """
    lines = [
        [
            f"{name} *" if name in marked else name,
            *(format_spread([scores.get(column) for scores in runs]) for column in columns),
        ]
        for name, runs in rows.items()
    ]
    return markdown(lines, [title, *columns.values()])


def format_spread(values: Sequence[float | None], digits: int = 1) -> str:
    """Format mean and sample standard deviation of the known values.

    Args:
        values (Sequence[float or None]): None and NaN for unknown.
        digits (int): digits after the decimal point.

    Returns:
        str: only the mean for a single value; "-" without values.

    Example:
        >>> format_spread([1.0, 2.0, None]), format_spread([1.0]), format_spread([])
        ('1.5 ± 0.7', '1.0', '-')
    """
    known = [value for value in values if value is not None and not math.isnan(value)]
    if not known:
        return "-"
    mean = f"{statistics.fmean(known):.{digits}f}"
    return mean if len(known) == 1 else f"{mean} ± {statistics.stdev(known):.{digits}f}"
