"""The model's label prior against the labels of the training set (the paper's Fig. 1).

Shapes: K foreground classes.
"""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from ...results import ClassInfo
from .style import ACCENT, INK, legend, new_figure, percent, scatter, title


def prior_figure(
    prior: np.ndarray,
    classes: ClassInfo,
    foreground_share: float | None = None,
    sampled: np.ndarray | None = None,
) -> Figure:
    """Draw the model's label prior beside the labels of the training set (Fig. 1).

    Args:
        prior (ndarray): (K,), sums to 1.
        classes (ClassInfo): K classes.
        foreground_share (float): share of foreground RoIs in training, in [0, 1]; None if unknown.
        sampled (ndarray | None): (K,) positive RoIs sampled in training, if known.
    """
    known = foreground_share is not None
    figure, axes = new_figure(9.0, 3.8, columns=2 if known else 1, widths=(5, 1) if known else (1,))
    # By objects and not by images: the prior is one over objects.
    order = np.argsort(-classes.instance_count, kind="stable")
    rank = np.arange(1, len(order) + 1)
    for label, counts, style in (
        ("labels", classes.instance_count, "-"),
        ("labels as sampled", sampled, ":"),
    ):
        if counts is not None:
            # A class without labels leaves a gap: 0 has no place on a logarithmic axis.
            shares = np.where(counts > 0, counts, np.nan)[order] / max(counts.sum(), 1)
            line = {"color": INK, "linewidth": 1.6, "linestyle": style, "zorder": 4}
            axes[0].plot(rank, shares, label=label, **line)
    scatter(axes[0], rank, np.asarray(prior)[order], classes, order)
    axes[0].set_yscale("log")
    axes[0].yaxis.set_major_formatter(FuncFormatter(percent))
    axes[0].set_xlabel("class, most training objects first")
    title(axes[0], "Share of foreground", "line: training labels; markers: the model's prior")
    legend(axes[0])
    if known:
        _stacked_share(axes[1], float(foreground_share))
    return figure


def _stacked_share(axis: Axes, foreground: float) -> None:
    """Draw one bar: background below, foreground on top."""
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
