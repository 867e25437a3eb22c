"""AP of the detections above a score threshold, before and after."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from ...analysis.thresholds import ThresholdCurve
from ...frequency import group_title
from .style import LINE_STYLES, label, legend, new_figure, title


def threshold_figure(curves: Mapping[str, ThresholdCurve], metrics: Sequence[str]) -> Figure:
    """Draw the AP of the detections above a score threshold.

    Args:
        curves (Mapping): name of a calibration -> its curve, the uncalibrated one first; up to
            four.
        metrics (Sequence[str]): metrics of `evaluate_lvis`; undefined ones are left out.

    Returns:
        Figure: an axis for each metric, and one for the number of detections.
    """
    first = next(iter(curves.values()))
    shown = [name for name in metrics if not np.isnan(first.metrics.get(name, np.nan)).all()]
    columns = len(shown) + 1
    figure, axes = new_figure(2.3 * columns + 0.6, 3.2, columns=columns)
    for axis, metric in zip(axes, [*shown, ""], strict=True):
        for (name, curve), style in zip(curves.items(), LINE_STYLES):
            # The last axis has no metric but the number of detections.
            values = 100 * curve.metrics[metric] if metric else curve.per_image
            order = np.argsort(curve.threshold)
            axis.plot(
                curve.threshold[order], values[order], markersize=3.5, linewidth=1.3,
                label=label(name), **style,
            )  # fmt: skip
        _score_axis(axis, np.concatenate([curve.threshold for curve in curves.values()]))
        axis.set_ylim(bottom=0)
        note = group_title(metric.removeprefix("AP")) if metric else "in an image, on average"
        title(axis, metric or "detections", note)
    axes[-1].set_yscale("symlog", linthresh=0.1)
    axes[-1].yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    legend(axes[0])
    return figure


def _score_axis(axis: Axes, threshold: np.ndarray) -> None:
    """Set a log scale with a place for 0 if thresholds differ by orders of magnitude."""
    axis.set_xlabel("score threshold")
    positive = threshold[threshold > 0]
    if len(positive) and positive.max() > 30 * positive.min():
        axis.set_xscale("symlog", linthresh=positive.min(), linscale=1.0)
        decades = 10.0 ** np.arange(math.ceil(math.log10(positive.min())), 1)
        # Every other decade from 1 down, or the labels would overlap.
        ticks = [*([0.0] if (threshold == 0).any() else []), *decades[::-1][::2]]
        axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
