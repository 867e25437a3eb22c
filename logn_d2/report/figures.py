"""The figures: each is a function of plain data that returns a matplotlib Figure.

How they look and how they become files, `figure_style` says.

Shapes: K foreground classes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from .analysis import spearman
from .comparison import Value
from .figure_style import (
    ACCENT,
    INK,
    group_styles,
    legend,
    log_counts,
    new_figure,
    percent,
    title,
)
from .results import ClassInfo, group_title

__all__ = ["change_figure", "logit_figure", "prior_figure"]

_POINT_SIZE = 30


def logit_figure(mean: np.ndarray, std: np.ndarray, classes: ClassInfo) -> Figure:
    """Mean and standard deviation of each class's logit against its training images (Fig. 2).

    Args:
        mean (ndarray): (K,), in nats.
        std (ndarray): (K,), in nats.
        classes (ClassInfo): K classes; those without images are left out.
    """
    figure, axes = new_figure(9.0, 3.8, columns=2)
    seen = classes.image_count > 0
    count = classes.image_count[seen]
    for axis, name, values in zip(axes, ("Mean", "Standard deviation"), (mean, std), strict=True):
        values = np.asarray(values)[seen]
        _scatter(axis, count, values, classes, seen)
        log_counts(axis, count)
        correlation = spearman(count, values)
        said = "–" if math.isnan(correlation) else f"{correlation:+.2f}".replace("-", "−")
        title(axis, f"{name} of the logit", f"Spearman's ρ = {said}")
        axis.set_xlabel("training images of the class")
    legend(axes[0])
    return figure


def prior_figure(
    prior: np.ndarray,
    classes: ClassInfo,
    foreground_share: float | None = None,
    sampled: np.ndarray | None = None,
) -> Figure:
    """The model's label prior against the labels of the training set (Fig. 1).

    Args:
        prior (ndarray): (K,), sums to 1.
        classes (ClassInfo): K classes.
        foreground_share (float): of the RoIs in training, in [0, 1]; None if not known.
        sampled (ndarray | None): (K,) positive RoIs that training draws, if known.
    """
    known = foreground_share is not None
    figure, axes = new_figure(9.0, 3.8, columns=2 if known else 1, widths=(5, 1) if known else (1,))
    order = np.argsort(-classes.instance_count, kind="stable")
    rank = np.arange(1, len(order) + 1)
    for label, counts, style in (
        ("labels", classes.instance_count, "-"),
        ("labels as sampled", sampled, ":"),
    ):
        if counts is not None:
            shares = np.where(counts > 0, counts, np.nan)[order] / max(counts.sum(), 1)
            line = {"color": INK, "linewidth": 1.6, "linestyle": style, "zorder": 4}
            axes[0].plot(rank, shares, label=label, **line)
    _scatter(axes[0], rank, np.asarray(prior)[order], classes, order)
    axes[0].set_yscale("log")
    axes[0].yaxis.set_major_formatter(FuncFormatter(percent))
    axes[0].set_xlabel("class, most training objects first")
    title(axes[0], "Share of foreground", "line: training labels; markers: the model's prior")
    legend(axes[0])
    if known:
        _stacked_share(axes[1], float(foreground_share))
    return figure


def change_figure(changes: Mapping[str, Mapping[str, Value]], what: str = "boxes") -> Figure:
    """How each run changes the AP of each group, with intervals.

    Args:
        changes (Mapping): run -> metric -> difference in points, AP first, then AP of groups; the
            first run is drawn on top.
        what (str): of what the AP is.
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
        axis.set_yticks(rows, list(changes))
        axis.set_ylim(len(changes) - 0.5, -0.5)
        axis.xaxis.set_major_locator(MaxNLocator(4))
        title(axis, metric, group_title(metric.removeprefix("AP")))
    figure.supxlabel(f"change of AP of {what}, in points", fontsize=9.5, color=INK)
    return figure


def _scatter(
    axis: Axes, x: np.ndarray, y: np.ndarray, classes: ClassInfo, chosen: np.ndarray
) -> None:
    """Points of each group of the chosen classes, the rare ones last and so on top."""
    groups = np.array(classes.groups)[chosen]
    for group, (color, marker) in reversed(group_styles(classes.group_names).items()):
        members = groups == group
        if members.any():
            axis.scatter(
                x[members], y[members], s=_POINT_SIZE, marker=marker, color=color,
                edgecolors=INK, linewidths=0.4, alpha=0.85,
                label=f"{group_title(group)} ({members.sum()})", zorder=3,
            )  # fmt: skip


def _stacked_share(axis: Axes, foreground: float) -> None:
    """One bar: background below, foreground on top."""
    style = {"edgecolor": INK, "width": 0.5}
    axis.bar([0], [1 - foreground], facecolor="none", hatch="////", **style)
    axis.bar([0], [foreground], bottom=[1 - foreground], facecolor=ACCENT, **style)
    for name, share, height in (
        ("background", 1 - foreground, (1 - foreground) / 2),
        ("foreground", foreground, 1 - foreground / 2),
    ):
        axis.text(0.32, height, f"{name}\n{percent(share)}", va="center", fontsize=9, color=INK)
    axis.set_xlim(-0.3, 1.1)
    axis.set_ylim(0, 1)
    axis.axis("off")
    title(axis, "RoIs", "")
