"""AP of each group of classes with intervals (the paper's Fig. 3)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ...frequency import group_title
from .style import BAR_STYLES, INK, label, legend, name_ticks, new_figure, title


def interval_figure(
    estimate: Mapping[str, Mapping[str, float]],
    metrics: Sequence[str],
    interval: Mapping[str, Mapping[str, tuple[float, float]]] | None = None,
    *,
    level: float = 0.95,
    what: str = "AP",
) -> Figure:
    """Draw bars of AP for each group and run, with intervals.

    Args:
        estimate (Mapping): name of a calibration -> metric -> figure in [0, 1], NaN for no bar; up
            to four runs, the uncalibrated one first.
        metrics (Sequence[str]): AP or AP with the name of a group.
        interval (Mapping | None): like `estimate` -> lower and upper end, NaN for none. A bootstrap
            of each run gives both: `BootstrapResult.estimate` and `BootstrapResult.intervals`.
        level (float): level of the intervals, `BootstrapResult.level`.
        what (str): title of the figure.
    """
    figure, (axis,) = new_figure(9.0, 3.4, columns=1)
    position, width = np.arange(len(metrics)), 0.8 / max(len(estimate), 1)
    for side, (name, style) in enumerate(zip(estimate, BAR_STYLES)):
        heights = 100 * np.array([estimate[name][metric] for metric in metrics])
        place = position + (side - (len(estimate) - 1) / 2) * width
        axis.bar(place, np.nan_to_num(heights), 0.9 * width, label=label(name), **style)
        ends = (interval or {}).get(name, {})
        tops = _whiskers(axis, place, heights, [ends.get(metric) for metric in metrics])
        for x, height, top in zip(place, heights, tops, strict=True):
            # By hand instead of `bar_label`: above the whisker, and a dash where there is no bar.
            said = "–" if math.isnan(height) else f"{height:.1f}"
            axis.annotate(
                said, (x, top), (0, 2), textcoords="offset points",
                ha="center", fontsize=8.5, color=INK,
            )  # fmt: skip
    titles = [group_title(metric.removeprefix("AP")) for metric in metrics]
    name_ticks(axis.xaxis, position, titles)
    axis.grid(False, axis="x")
    axis.margins(y=0.14)  # room for the numbers above the whiskers
    title(axis, what, f"with {100 * level:g} % intervals" if interval else "")
    legend(axis, above=True)
    return figure


def _whiskers(
    axis: Axes,
    place: np.ndarray,
    heights: np.ndarray,
    ends: Sequence[tuple[float, float] | None],
) -> list[float]:
    """Draw intervals, and return the heights above which the numbers are written."""
    tops = np.nan_to_num(heights).tolist()
    for index, (x, end) in enumerate(zip(place, ends, strict=True)):
        if end is not None and np.isfinite(end).all():
            low, high = 100 * end[0], 100 * end[1]
            axis.plot([x, x], [low, high], color=INK, linewidth=1.4, marker="_", markersize=7)
            tops[index] = max(tops[index], high)
    return tops
