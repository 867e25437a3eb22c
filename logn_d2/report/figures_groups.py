"""AP of groups with intervals (the paper's Fig. 3), and statistics of two populations of RoIs.

Shapes: K foreground classes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .analysis import spearman
from .figure_style import BAR_STYLES, INK, LINE_STYLES, legend, new_figure, title
from .results import group_title
from .summary import display_name

__all__ = ["interval_figure", "population_figure"]


def interval_figure(
    estimate: Mapping[str, Mapping[str, float]],
    metrics: Sequence[str],
    interval: Mapping[str, Mapping[str, tuple[float, float]]] | None = None,
    *,
    level: float = 0.95,
    what: str = "AP",
) -> Figure:
    """Bars of AP for each group and run, with intervals.

    Args:
        estimate (Mapping): name of a calibration -> metric -> figure in [0, 1], NaN for no bar; up
            to four runs, the uncalibrated one first.
        metrics (Sequence[str]): AP or AP with the name of a group.
        interval (Mapping | None): like `estimate` -> lower and upper end, NaN for none. A bootstrap
            of each run gives both: `BootstrapResult.estimate` and `BootstrapResult.intervals`.
        level (float): of the intervals, such as `BootstrapResult.level`.
        what (str): title of the figure.
    """
    figure, (axis,) = new_figure(9.0, 3.4, columns=1)
    position, width = np.arange(len(metrics)), 0.8 / max(len(estimate), 1)
    for side, (name, style) in enumerate(zip(estimate, BAR_STYLES)):
        heights = 100 * np.array([estimate[name][metric] for metric in metrics])
        place = position + (side - (len(estimate) - 1) / 2) * width
        axis.bar(place, np.nan_to_num(heights), 0.9 * width, label=display_name(name), **style)
        ends = (interval or {}).get(name, {})
        tops = _whiskers(axis, place, heights, [ends.get(metric) for metric in metrics])
        for x, height, top in zip(place, heights, tops, strict=True):
            said = "–" if math.isnan(height) else f"{height:.1f}"
            axis.annotate(
                said, (x, top), (0, 2), textcoords="offset points",
                ha="center", fontsize=8.5, color=INK,
            )  # fmt: skip
    axis.set_xticks(position, [group_title(metric.removeprefix("AP")) for metric in metrics])
    axis.grid(False, axis="x")
    axis.margins(y=0.14)
    title(axis, what, f"with {100 * level:g} % intervals" if interval else "")
    legend(axis, above=True)
    return figure


def population_figure(
    statistics: Mapping[str, tuple[np.ndarray, np.ndarray]], image_count: np.ndarray
) -> Figure:
    """Mean and standard deviation of each class's logit for two populations of RoIs (Fig. 0.B.2).

    Args:
        statistics (Mapping): name of a population, such as "sampled" and "positives" (each RoI
            counts for its own class alone), -> mean and standard deviation, (K,) each, in nats;
            NaN for classes without RoIs.
        image_count (ndarray): (K,) training images of the classes, by which they are ordered.
    """
    figure, axes = new_figure(9.0, 3.6, columns=2)
    order = np.argsort(-np.asarray(image_count), kind="stable")
    rank, count = np.arange(1, len(order) + 1), np.asarray(image_count)[order]
    for axis, side, name in zip(axes, (0, 1), ("Mean", "Standard deviation"), strict=True):
        notes = []
        for (population, values), style in zip(statistics.items(), LINE_STYLES):
            ordered = np.asarray(values[side], dtype=float)[order]
            known = np.isfinite(ordered)
            axis.plot(
                rank[known], ordered[known], label=population, markersize=3.5, linewidth=0.8,
                color=style["color"], marker=style["marker"], linestyle="none",
                markerfacecolor=style.get("markerfacecolor", style["color"]),
            )  # fmt: skip
            correlation = spearman(count[known], ordered[known])
            said = "–" if math.isnan(correlation) else f"{correlation:+.2f}".replace("-", "−")
            notes.append(f"{population} {said}")
        axis.set_xlabel("class, most training images first")
        title(axis, f"{name} of the logit", f"Spearman's ρ with images: {', '.join(notes)}")
    legend(axes[0])
    return figure


def _whiskers(
    axis: Axes,
    place: np.ndarray,
    heights: np.ndarray,
    ends: Sequence[tuple[float, float] | None],
) -> list[float]:
    """Draw intervals, and return above what a number can be written."""
    tops = np.nan_to_num(heights).tolist()
    for index, (x, end) in enumerate(zip(place, ends, strict=True)):
        if end is not None and np.isfinite(end).all():
            low, high = 100 * end[0], 100 * end[1]
            axis.plot([x, x], [low, high], color=INK, linewidth=1.4, marker="_", markersize=7)
            tops[index] = max(tops[index], high)
    return tops
