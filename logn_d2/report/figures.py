"""The figures: each is a function of plain data that returns a matplotlib Figure.

They are drawn for a web page: no background, and all lines and letters in one colour that
`svg_data_uri` leaves to the page, so that they suit light and dark mode. Groups differ by colour
(Okabe and Ito's palette, safe for colour-blind readers) and by marker, so that they can be told
apart in grey.

Shapes: K foreground classes.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from .analysis import Change, spearman
from .results import GROUPS, METRICS, TASKS
from .summary import display_name, format_value

__all__ = [
    "change_figure",
    "group_figure",
    "logit_figure",
    "prior_figure",
    "svg_data_uri",
]

# Stands for the page's text colour; occurs nowhere else.
_INK = "#010203"
_SVG_STYLE = (
    "<style>svg{color:#1b1f24}"
    "@media screen and (prefers-color-scheme:dark){svg{color:#e4e7eb}}</style>"
)
_COLORS = {"r": "#D55E00", "c": "#E69F00", "f": "#0072B2"}
_MARKERS = {"r": "^", "c": "s", "f": "o"}
_ACCENT = "#0072B2"
_POINT_SIZE = 30


def logit_figure(
    mean: np.ndarray, std: np.ndarray, image_count: np.ndarray, groups: Sequence[str]
) -> Figure:
    """Mean and standard deviation of each class's logit against its training images (Fig. 2).

    Args:
        mean (ndarray): (K,), in nats.
        std (ndarray): (K,), in nats.
        image_count (ndarray): (K,); classes without images are left out.
        groups (Sequence[str]): (K,) of "r", "c", "f".
    """
    figure, axes = _figure(9.0, 3.8, columns=2)
    seen = np.asarray(image_count) > 0
    count, groups = np.asarray(image_count)[seen], np.asarray(groups)[seen]
    for axis, name, values in zip(axes, ("Mean", "Standard deviation"), (mean, std), strict=True):
        values = np.asarray(values)[seen]
        _scatter(axis, count, values, groups)
        _log_counts(axis, count)
        correlation = spearman(count, values)
        said = "–" if math.isnan(correlation) else f"{correlation:+.2f}".replace("-", "−")
        _title(axis, f"{name} of the logit", f"Spearman's ρ = {said}")
        axis.set_xlabel("training images of the class")
    _legend(axes[0])
    return figure


def prior_figure(
    prior: np.ndarray,
    instance_count: np.ndarray,
    groups: Sequence[str],
    foreground_share: float | None = None,
) -> Figure:
    """The model's label prior against the labels of the training set (Fig. 1).

    Args:
        prior (ndarray): (K,), sums to 1.
        instance_count (ndarray): (K,) training objects.
        groups (Sequence[str]): (K,) of "r", "c", "f".
        foreground_share (float): of the RoIs in training, in [0, 1]; None if not known.
    """
    known = foreground_share is not None
    figure, axes = _figure(9.0, 3.8, columns=2 if known else 1, widths=(5, 1) if known else (1,))
    order = np.argsort(-np.asarray(instance_count), kind="stable")
    labels = np.asarray(instance_count, dtype=float)[order]
    share = np.where(labels > 0, labels, np.nan) / max(labels.sum(), 1)
    rank = np.arange(1, len(order) + 1)
    axes[0].plot(rank, share, color=_INK, linewidth=1.6, label="labels", zorder=4)
    _scatter(axes[0], rank, np.asarray(prior)[order], np.asarray(groups)[order])
    axes[0].set_yscale("log")
    axes[0].yaxis.set_major_formatter(FuncFormatter(_percent))
    axes[0].set_xlabel("class, most training objects first")
    _title(axes[0], "Share of foreground", "line: training labels; markers: the model's prior")
    _legend(axes[0])
    if known:
        _stacked_share(axes[1], float(foreground_share))
    return figure


def group_figure(
    before: Mapping[str, Mapping[str, float]],
    after: Mapping[str, Mapping[str, float]],
    names: tuple[str, str] = ("Uncalibrated", "LogN"),
) -> Figure:
    """Bars of AP for each group, before and after.

    Args:
        before (Mapping): task -> metric -> percent; NaN draws no bar.
        after (Mapping): likewise.
        names (tuple[str, str]): of both, for the legend.
    """
    figure, axes = _figure(9.0, 3.4, columns=len(before), share_y=True)
    position = np.arange(len(METRICS))
    styles = (
        {"facecolor": "none", "edgecolor": _INK, "hatch": "////", "linewidth": 1.0},
        {"facecolor": _ACCENT, "edgecolor": _INK, "linewidth": 1.0},
    )
    for axis, task in zip(axes, before, strict=True):
        for side, (values, style) in enumerate(zip((before, after), styles, strict=True)):
            heights = np.array([values[task][metric] for metric in METRICS])
            bars = axis.bar(position + (side - 0.5) * 0.38, np.nan_to_num(heights), 0.34, **style)
            bars.set_label(names[side])
            axis.bar_label(
                bars, [format_value(height) for height in heights],
                padding=2, fontsize=8.5, color=_INK,
            )  # fmt: skip
        axis.set_xticks(position, ["all", *GROUPS.values()])
        axis.grid(False, axis="x")
        axis.margins(y=0.14)
        _title(axis, f"AP of {TASKS[task]}", "")
    _legend(axes[0])
    return figure


def change_figure(changes: Mapping[str, Mapping[str, Change]], what: str = "boxes") -> Figure:
    """How each calibration changes the AP of each group, with 95 % intervals over classes.

    Args:
        changes (Mapping): calibration -> metric -> change; the first is drawn on top.
        what (str): of what the AP is.
    """
    figure, axes = _figure(9.0, 1.5 + 0.42 * len(changes), columns=len(METRICS), share_y=True)
    rows = np.arange(len(changes))
    for axis, metric in zip(axes, METRICS, strict=True):
        group = metric.removeprefix("AP")
        color, marker = _COLORS.get(group, _INK), _MARKERS.get(group, "D")
        axis.axvline(0, color=_INK, linewidth=1)
        for row, change in zip(rows, (entry[metric] for entry in changes.values()), strict=True):
            if not math.isnan(change.low):
                axis.plot(
                    [change.low, change.high], [row, row], color=color, linewidth=2, alpha=0.5
                )
            axis.plot(
                change.delta, row, marker, color=color, markersize=7,
                markeredgecolor=_INK, markeredgewidth=0.6,
            )  # fmt: skip
        axis.set_yticks(rows, [display_name(name) for name in changes])
        axis.set_ylim(len(changes) - 0.5, -0.5)
        axis.xaxis.set_major_locator(MaxNLocator(4))
        _title(axis, metric, GROUPS.get(group, "all"))
    figure.supxlabel(f"change of AP of {what}, in points", fontsize=9.5, color=_INK)
    return figure


def svg_data_uri(figure: Figure) -> str:
    """The figure as a ``data:`` address of an SVG image, the same bytes for the same data."""
    buffer = io.BytesIO()
    # Letters become shapes: a page can't count on the reader's fonts.
    with matplotlib.rc_context({"svg.fonttype": "path", "svg.hashsalt": "logn_d2"}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue().decode("utf-8").replace(_INK, "currentColor")
    head, tag, rest = text.partition("<defs>")
    svg = f"{head}{_SVG_STYLE}{tag}{rest}"
    return "data:image/svg+xml;base64," + base64.b64encode(svg.encode("utf-8")).decode("ascii")


def _figure(
    width: float,
    height: float,
    *,
    columns: int,
    widths: Sequence[float] | None = None,
    share_y: bool = False,
) -> tuple[Figure, list[Axes]]:
    """A row of axes in the common style; no pyplot, so no global state."""
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots(1, columns, squeeze=False, sharey=share_y, width_ratios=widths)[0]
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        for spine in axis.spines.values():
            spine.set_color(_INK)
        axis.tick_params(which="both", color=_INK, labelcolor=_INK, labelsize=9)
        axis.xaxis.label.set(color=_INK, fontsize=9.5)
        axis.grid(True, color=_INK, alpha=0.12, linewidth=0.8)
        axis.set_axisbelow(True)
    return figure, list(axes)


def _scatter(axis: Axes, x: np.ndarray, y: np.ndarray, groups: np.ndarray) -> None:
    """Points of each group, the rare ones last and so on top."""
    for group in reversed(GROUPS):
        members = groups == group
        if members.any():
            axis.scatter(
                x[members], y[members], s=_POINT_SIZE, marker=_MARKERS[group],
                color=_COLORS[group], edgecolors=_INK, linewidths=0.4, alpha=0.85,
                label=f"{GROUPS[group]} ({members.sum()})", zorder=3,
            )  # fmt: skip


def _log_counts(axis: Axes, count: np.ndarray) -> None:
    """A log axis labelled 1, 10, 100 rather than with powers."""
    if len(count):
        axis.set_xscale("log")
        axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        axis.xaxis.set_minor_formatter(FuncFormatter(lambda value, _: ""))


def _percent(value: float, _: int | None = None) -> str:
    return f"{100 * value:.3g} %"


def _stacked_share(axis: Axes, foreground: float) -> None:
    """One bar: background below, foreground on top."""
    style = {"edgecolor": _INK, "width": 0.5}
    axis.bar([0], [1 - foreground], facecolor="none", hatch="////", **style)
    axis.bar([0], [foreground], bottom=[1 - foreground], facecolor=_ACCENT, **style)
    for name, share, height in (
        ("background", 1 - foreground, (1 - foreground) / 2),
        ("foreground", foreground, 1 - foreground / 2),
    ):
        axis.text(0.32, height, f"{name}\n{_percent(share)}", va="center", fontsize=9, color=_INK)
    axis.set_xlim(-0.3, 1.1)
    axis.set_ylim(0, 1)
    axis.axis("off")
    _title(axis, "RoIs", "")


def _title(axis: Axes, title: str, note: str) -> None:
    """A bold title with a plain note below it."""
    axis.set_title(title, loc="left", fontsize=10.5, fontweight="bold", color=_INK,
                   pad=18 if note else 8)  # fmt: skip
    if note:
        axis.annotate(note, (0, 1), (0, 6), "axes fraction", textcoords="offset points",
                      fontsize=9, color=_INK)  # fmt: skip


def _legend(axis: Axes) -> None:
    """A legend where there is anything to name."""
    handles, labels = axis.get_legend_handles_labels()
    if handles:
        legend = axis.legend(handles, labels, fontsize=9, frameon=False, labelcolor=_INK)
        legend.set_zorder(5)
