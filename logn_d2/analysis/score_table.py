"""AP of calibrations or models as a text table, for one or more runs."""

from __future__ import annotations

import math
import statistics
from collections.abc import Collection, Mapping, Sequence

from tabulate import tabulate

__all__ = ["Scores", "format_spread", "format_table"]

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
    runs_of = {
        name: [scores] if isinstance(scores, Mapping) else scores for name, scores in rows.items()
    }
    tasks = [
        task
        for task in _TITLES
        if any(task in scores for runs in runs_of.values() for scores in runs)
    ]
    headers = [title]
    for task in tasks:
        headers += [f"{_TITLES[task]} AP", *_METRICS[1:]]
    lines = [
        [
            f"{name} *" if name in marked else name,
            *(
                format_spread([scores.get(task, {}).get(metric) for scores in runs])
                for task in tasks
                for metric in _METRICS
            ),
        ]
        for name, runs in runs_of.items()
    ]
    align = ["left", *["right"] * (len(headers) - 1)]
    return tabulate(lines, headers, tablefmt="pipe", disable_numparse=True, colalign=align)


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
