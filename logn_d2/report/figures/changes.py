"""Change of AP or accuracy by each run, for each group of classes, with intervals."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ...frequency import group_title
from ..compared import Value
from .style import INK, group_styles, name_ticks, new_figure, title


def change_figure(changes: Mapping[str, Mapping[str, Value]], what: str = "AP of boxes") -> Figure:
    """Draw the change of a metric by each run, for each group, with intervals.

    Args:
        changes (Mapping): run -> metric -> difference in points, that of all classes first, then
            those of groups; the first run is drawn on top.
        what (str): name of the metric, for the axis.
    """
    metrics = list(next(iter(changes.values())))
    styles = {metrics[0]: (INK, "D"), **group_styles(metrics[1:])}
    height, width = 1.5 + 0.42 * len(changes), max(9.0, 2.2 * len(metrics))
    figure, axes = new_figure(width, height, columns=len(metrics), share_y=True)
    rows = np.arange(len(changes))
    for axis, (metric, (color, marker)) in zip(axes, styles.items(), strict=True):
        axis.axvline(0, color=INK, linewidth=1)
        for row, change in zip(rows, (entry[metric] for entry in changes.values()), strict=True):
            if not math.isnan(change.low):
                ends = [change.low, change.high]
                axis.plot(ends, [row, row], color=INK, linewidth=1.6, solid_capstyle="butt")
            axis.plot(
                change.value, row, marker, color=color, markersize=7,
                markeredgecolor=INK, markeredgewidth=0.6,
            )  # fmt: skip
        name_ticks(axis.yaxis, rows, list(changes))
        axis.set_ylim(len(changes) - 0.5, -0.5)  # downwards: the first run on top
        axis.xaxis.set_major_locator(MaxNLocator(4))
        name = group_title(metric.removeprefix("AP"))
        title(axis, metric, name if name != metric else "")
    # One label for all axes, which share the unit.
    figure.supxlabel(f"change of {what}, in points", fontsize=9.5, color=INK)
    return figure
