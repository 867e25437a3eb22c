"""AP cost of each kind of error, before and after (the paper's Fig. 4 and appendix B.1)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ...analysis.errors import ERROR_TYPES, ErrorAnalysis
from ...errors import UserError
from ...frequency import group_title
from .style import BAR_STYLES, INK, label, legend, new_figure, title

# The six kinds, then all false positives and all false negatives: these cost far more, so they get
# a scale of their own.
_KINDS, _TOGETHER = ERROR_TYPES[:6], ERROR_TYPES[6:]


def error_figure(
    analyses: Mapping[str, ErrorAnalysis], groups: Sequence[str] | None = None
) -> Figure:
    """Draw the AP that each group would gain without each kind of error.

    Args:
        analyses (Mapping): name of a calibration -> its analysis, the uncalibrated one first; one
            to four on the same data set.
        groups (Sequence[str] | None): groups in the order of the rows; None for all.

    Returns:
        Figure: a row for all classes and for each group that has objects.

    Raises:
        ValueError: no run, or more runs than there are styles.
    """
    if not 1 <= len(analyses) <= len(BAR_STYLES):
        raise UserError(f"There are {len(analyses)} runs, expected 1 to {len(BAR_STYLES)}.")
    rows = {name: analysis.as_dict() for name, analysis in analyses.items()}
    first = next(iter(rows.values()))
    shown = first if groups is None else ("all", *groups)
    # A group without objects in the validation set has no AP to lose.
    groups = [group for group in shown if first[group]["classes"]] or ["all"]
    widths = (len(_KINDS), len(_TOGETHER) + 0.5)
    figure, axes = new_figure(
        9.0, 0.7 + 1.9 * len(groups), columns=2, rows=len(groups), widths=widths, share_y="col"
    )
    for index, group in enumerate(groups):
        of_group = {name: row[group] for name, row in rows.items()}
        for axis, errors in zip(axes[2 * index : 2 * index + 2], (_KINDS, _TOGETHER), strict=True):
            _bars(axis, errors, {name: row["gain"] for name, row in of_group.items()})
        aps = " → ".join(f"{row['AP']:.1f}" for row in of_group.values())
        title(axes[2 * index], group_title(group), f"AP {aps}")
    title(axes[1], "all together", "FP: wrong detections; FN: missed objects")
    axes[0].set_ylabel("AP gained without the error")
    legend(axes[0], above=True)
    return figure


def _bars(axis: Axes, errors: tuple[str, ...], gains: Mapping[str, Mapping[str, float]]) -> None:
    """Draw the bars of all runs side by side for each kind of error, with their numbers."""
    position, width = np.arange(len(errors)), 0.8 / len(gains)
    for side, (name, style) in enumerate(zip(gains, BAR_STYLES)):
        heights = np.array([gains[name][error] for error in errors])
        offset = (side - (len(gains) - 1) / 2) * width
        bars = axis.bar(position + offset, np.nan_to_num(heights), 0.9 * width, **style)
        bars.set_label(label(name))
        axis.bar_label(
            bars, [f"{height:.1f}" for height in heights], padding=2, fontsize=8, color=INK
        )
    axis.set_xticks(position, errors)
    axis.grid(False, axis="x")
    axis.margins(y=0.16)  # room for the numbers above the bars
