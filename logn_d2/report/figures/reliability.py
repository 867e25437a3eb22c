"""Precision of the detections against their score, before and after."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from ...analysis.calibration_quality import CalibrationQuality
from ...frequency import group_title
from .style import INK, LINE_STYLES, label, legend, new_figure, title


def reliability_figure(
    qualities: Mapping[str, CalibrationQuality],
    groups: Sequence[str] | None = None,
    what: str = "precision",
) -> Figure:
    """Draw the precision of the detections against their score, for each group.

    On the diagonal a score is a probability.

    Args:
        qualities (Mapping): name of a calibration -> its quality, the uncalibrated one first; up
            to four on the same data set. Empty bins have no point.
        groups (Sequence[str] | None): groups in the order of the axes; None for all.
        what (str): label of the vertical axis.

    Returns:
        Figure: all classes, then each group that has labelled detections.
    """
    groups = _with_detections(qualities, groups)
    figure, axes = new_figure(2.6 * len(groups) + 0.6, 3.3, columns=len(groups), share_y=True)
    for axis, group in zip(axes, groups, strict=True):
        axis.plot([0, 1], [0, 1], color=INK, linewidth=0.8, alpha=0.5)
        errors = []
        for (name, quality), style in zip(qualities.items(), LINE_STYLES):
            # Empty bins are NaN; without them the line goes on to the next point.
            confidence, precision = quality.reliability(group)
            known = np.isfinite(confidence)
            axis.plot(
                confidence[known], precision[known], markersize=4.5, linewidth=1.3,
                markeredgewidth=0.9, label=label(name), **style,
            )  # fmt: skip
            error = quality.ece(group)
            errors.append("–" if math.isnan(error) else f"{100 * error:.1f} %")
        axis.set_aspect("equal")
        # A margin, or the markers at 0 and 1 would be cut.
        axis.set_xlim(-0.03, 1.03)
        axis.set_ylim(-0.03, 1.03)
        axis.set_xlabel("score")
        title(axis, group_title(group), f"ECE {' → '.join(errors)}")
    axes[0].set_ylabel(what)
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
