"""Scores of true and false positives, and what the detections of each score lie on.

Shapes: B bins of scores.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from ...analysis.calibration_quality import CalibrationQuality
from .style import BAR_STYLES, LINE_STYLES, legend, legend_below, new_figure, percent, title

__all__ = ["score_figure"]

# True positives, false positives on an object, false positives on background.
_PART_STYLES = (BAR_STYLES[1], BAR_STYLES[2], BAR_STYLES[0])
_PARTS = ("true positives", "false, on an object", "false, on background")


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
        title(top, name, f"{number:,} labelled detections")
        bottom.set_xlabel("score")
    axes[0].set_ylabel("share of the kind")
    axes[len(qualities)].set_ylabel("share of the bin")
    legend(axes[0])
    legend_below(figure, axes[-1])
    return figure


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
