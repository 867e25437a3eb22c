"""What scores are worth: reliability, histograms, and AP above a threshold, before and after.

Shapes: B bins of scores.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from logn_d2.evaluation.calibration_quality import CalibrationQuality
from logn_d2.evaluation.score_threshold import ThresholdCurve

from .figure_style import (
    BAR_STYLES,
    INK,
    LINE_STYLES,
    legend,
    new_figure,
    percent,
    title,
)
from .results import group_title
from .summary import display_name

__all__ = ["reliability_figure", "score_figure", "threshold_figure"]

# True positives, false positives on an object, false positives on background.
_PART_STYLES = (BAR_STYLES[1], BAR_STYLES[2], BAR_STYLES[0])
_PARTS = ("true positives", "false, on an object", "false, on background")


def reliability_figure(
    qualities: Mapping[str, CalibrationQuality], groups: Sequence[str] | None = None
) -> Figure:
    """Precision of the detections against their score, for each group: on the diagonal is right.

    Args:
        qualities (Mapping): name of a calibration -> its quality, the uncalibrated one first; up
            to four of one data set. Empty bins have no point.
        groups (Sequence[str] | None): in the order of the axes; None for all that there are.

    Returns:
        Figure: all classes, then each group that has labelled detections.
    """
    groups = _with_detections(qualities, groups)
    figure, axes = new_figure(2.6 * len(groups) + 0.6, 3.3, columns=len(groups), share_y=True)
    for axis, group in zip(axes, groups, strict=True):
        axis.plot([0, 1], [0, 1], color=INK, linewidth=0.8, alpha=0.5)
        errors = []
        for (name, quality), style in zip(qualities.items(), LINE_STYLES):
            confidence, precision = quality.reliability(group)
            known = np.isfinite(confidence)
            axis.plot(
                confidence[known], precision[known], markersize=4.5, linewidth=1.3,
                markeredgewidth=0.9, label=display_name(name), **style,
            )  # fmt: skip
            error = quality.ece(group)
            errors.append("–" if math.isnan(error) else f"{100 * error:.1f} %")
        axis.set_aspect("equal")
        # Points at the ends stay whole.
        axis.set_xlim(-0.03, 1.03)
        axis.set_ylim(-0.03, 1.03)
        axis.set_xlabel("score")
        title(axis, group_title(group), f"ECE {' → '.join(errors)}")
    axes[0].set_ylabel("precision")
    legend(axes[0])
    return figure


def score_figure(qualities: Mapping[str, CalibrationQuality], group: str = "all") -> Figure:
    """Scores of true and false positives, and what the detections of each score lie on.

    Args:
        qualities (Mapping): name of a calibration -> its quality, the uncalibrated one first.
        group (str): whose classes.

    Returns:
        Figure: a column for each run: on top the share of the true and of the false positives in
        each bin, below the parts of each bin. All are shares of labelled detections.
    """
    width = max(4.5 * len(qualities), 4.5)
    figure, axes = new_figure(width, 5.2, columns=len(qualities), rows=2, share_y="row")
    for index, (name, quality) in enumerate(qualities.items()):
        top, bottom = axes[index], axes[index + len(qualities)]
        _histograms(top, quality, group)
        _parts(bottom, quality, group)
        number = int(quality.histogram("count", group).sum())
        title(top, display_name(name), f"{number:,} labelled detections")
        bottom.set_xlabel("score")
    axes[0].set_ylabel("share of the kind")
    axes[len(qualities)].set_ylabel("share of the bin")
    legend(axes[0])
    _legend_below(figure, axes[-1])
    return figure


def threshold_figure(curves: Mapping[str, ThresholdCurve], metrics: Sequence[str]) -> Figure:
    """AP of what is left above a score threshold.

    Args:
        curves (Mapping): name of a calibration -> its curve, the uncalibrated one first; up to
            four.
        metrics (Sequence[str]): of `evaluate_lvis`; those that no run has are left out.

    Returns:
        Figure: one for each metric, and the number of detections.
    """
    first = next(iter(curves.values()))
    shown = [name for name in metrics if not np.isnan(first.metrics.get(name, np.nan)).all()]
    columns = len(shown) + 1
    figure, axes = new_figure(2.3 * columns + 0.6, 3.2, columns=columns)
    for axis, metric in zip(axes, [*shown, ""], strict=True):
        for (name, curve), style in zip(curves.items(), LINE_STYLES):
            values = 100 * curve.metrics[metric] if metric else curve.per_image
            order = np.argsort(curve.threshold)
            axis.plot(
                curve.threshold[order], values[order], markersize=3.5, linewidth=1.3,
                label=display_name(name), **style,
            )  # fmt: skip
        _score_axis(axis, np.concatenate([curve.threshold for curve in curves.values()]))
        axis.set_ylim(bottom=0)
        note = group_title(metric.removeprefix("AP")) if metric else "in an image, on average"
        title(axis, metric or "detections", note)
    axes[-1].set_yscale("symlog", linthresh=0.1)
    axes[-1].yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    legend(axes[0])
    return figure


def _with_detections(
    qualities: Mapping[str, CalibrationQuality], groups: Sequence[str] | None
) -> list[str]:
    """Groups that have labelled detections in any run, at least "all"."""
    first = next(iter(qualities.values()))
    found = [
        group
        for group in (first.members if groups is None else ("all", *groups))
        if any(quality.histogram("count", group).any() for quality in qualities.values())
    ]
    return found or ["all"]


def _histograms(axis: Axes, quality: CalibrationQuality, group: str) -> None:
    """Outlines of the scores of true positives and of false positives, on a log scale."""
    for name, label, style in (
        ("hits", "true positives", LINE_STYLES[1]),
        ("false", "false positives", LINE_STYLES[0]),
    ):
        histogram = quality.histogram(name, group)
        share = histogram / max(histogram.sum(), 1)
        line = {"color": style["color"], "linestyle": style["linestyle"], "linewidth": 1.6}
        axis.stairs(share, quality.edges, label=label, **line)
    axis.set_yscale("symlog", linthresh=1e-3)
    axis.set_ylim(0, 1)
    axis.yaxis.set_major_formatter(FuncFormatter(percent))


def _parts(axis: Axes, quality: CalibrationQuality, group: str) -> None:
    """For each bin the shares of true positives and of the false ones by what they lie on."""
    hits, objects, count = (quality.histogram(name, group) for name in ("hits", "objects", "count"))
    parts = np.stack([hits, objects - hits, count - objects]) / np.maximum(count, 1)
    centre, width = (quality.edges[1:] + quality.edges[:-1]) / 2, np.diff(quality.edges)
    bottom = np.zeros(len(count))
    for share, label, style in zip(parts, _PARTS, _PART_STYLES, strict=True):
        axis.bar(centre, share, width, bottom=bottom, label=label, **style)
        bottom = bottom + share
    axis.set_ylim(0, 1)
    axis.yaxis.set_major_formatter(FuncFormatter(percent))


def _legend_below(figure: Figure, axis: Axes) -> None:
    handles, labels = axis.get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside lower center", ncols=len(labels),
        fontsize=9, frameon=False, labelcolor=INK,
    )  # fmt: skip


def _score_axis(axis: Axes, threshold: np.ndarray) -> None:
    """A log scale with a place for 0 where thresholds differ by orders of magnitude."""
    axis.set_xlabel("score threshold")
    positive = threshold[threshold > 0]
    if len(positive) and positive.max() > 30 * positive.min():
        axis.set_xscale("symlog", linthresh=positive.min(), linscale=1.0)
        decades = 10.0 ** np.arange(math.ceil(math.log10(positive.min())), 1)
        # Every other one from 1 down, or they would run into each other.
        ticks = [*([0.0] if (threshold == 0).any() else []), *decades[::-1][::2]]
        axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
