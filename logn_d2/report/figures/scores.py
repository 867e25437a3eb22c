"""Scores of true and false positives, and the composition of each score bin.

Shapes: B bins of scores.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from ...analysis.calibration_quality import CalibrationQuality
from .style import (
    BAR_STYLES,
    LINE_STYLES,
    legend,
    legend_below,
    new_figure,
    percent,
    plain_line,
    title,
)

# True positives, false positives on an object, false positives on background.
_PART_STYLES = (BAR_STYLES[1], BAR_STYLES[2], BAR_STYLES[0])
_PARTS = ("true positives", "false, on an object", "false, on background")


def score_figure(qualities: Mapping[str, CalibrationQuality], group: str = "all") -> Figure:
    """Draw the scores of true and false positives, and the composition of each score bin.

    Args:
        qualities (Mapping): name of a calibration -> its quality, the uncalibrated one first.
        group (str): group of classes.

    Returns:
        Figure: a column for each run: the histograms of true and of false positives above, the
        composition of each bin below. Both cover labelled detections only.
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
    """Draw the outlines of both histograms on a log scale."""
    for name, label, style in (
        ("hits", "true positives", LINE_STYLES[1]),
        ("false", "false positives", LINE_STYLES[0]),
    ):
        histogram = quality.histogram(name, group)
        # Of its own kind: false positives outnumber true ones by orders of magnitude.
        share = histogram / max(histogram.sum(), 1)
        axis.stairs(share, quality.edges, label=label, **plain_line(style))
    # Nearly all false positives have low scores; "symlog" keeps the empty bins, which are 0.
    axis.set_yscale("symlog", linthresh=1e-3)
    axis.set_ylim(0, 1)
    axis.yaxis.set_major_formatter(FuncFormatter(percent))


def _parts(axis: Axes, quality: CalibrationQuality, group: str) -> None:
    """Draw the shares of each bin: true positives, false ones on an object, on background."""
    hits, objects, count = (quality.histogram(name, group) for name in ("hits", "objects", "count"))
    parts = np.stack([hits, objects - hits, count - objects]) / np.maximum(count, 1)
    centre, width = (quality.edges[1:] + quality.edges[:-1]) / 2, np.diff(quality.edges)
    bottom = np.zeros(len(count))
    for share, label, style in zip(parts, _PARTS, _PART_STYLES, strict=True):
        axis.bar(centre, share, width, bottom=bottom, label=label, **style)
        bottom = bottom + share
    axis.set_ylim(0, 1)
    axis.yaxis.set_major_formatter(FuncFormatter(percent))
