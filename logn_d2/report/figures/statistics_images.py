"""AP against the number of images in the statistics pass."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from ... import UNCALIBRATED
from ...frequency import group_title
from ..words import display_name
from .style import INK, LINE_STYLES, label, legend, log_counts, new_figure, title

_SHOWN = ("AP", "APr")
# Factor between the bars of two calibrations, which would hide each other at the same place.
_APART = 1.04


def images_figure(study: Mapping[str, Any]) -> Figure:
    """Draw AP against the number of images in the statistics, over several passes.

    Args:
        study (Mapping): output of benchmarks/statistics_images.py: "passes", "calibrations",
            "uncalibrated" (metric -> percent) and "by_images", rows with "images" and, for each
            calibration, metric -> "mean", "min" and "max" over passes, in percent.

    Returns:
        Figure: AP and APr; lines are means, bars reach from the smallest to the largest value.
    """
    figure, axes = new_figure(9.0, 3.6, columns=len(_SHOWN))
    rows = study["by_images"]
    images = np.array([row["images"] for row in rows])
    # The first style is that of the uncalibrated detector, here a plain line.
    names = study["calibrations"][: len(LINE_STYLES) - 1]
    for axis, metric in zip(axes, _SHOWN, strict=True):
        axis.axhline(
            study[UNCALIBRATED][metric], label=display_name(UNCALIBRATED), color=INK, linewidth=1
        )
        for side, (name, style) in enumerate(zip(names, LINE_STYLES[1:])):
            mean, low, high = (
                np.array([row[name][metric][part] for row in rows], dtype=float)
                for part in ("mean", "min", "max")
            )
            axis.errorbar(
                images * _APART**side, mean, [mean - low, high - mean],
                label=label(display_name(name)),
                markersize=4.5, linewidth=1.3, capsize=3, **style,
            )  # fmt: skip
        log_counts(axis, images)
        axis.set_xlabel("images in the statistics pass")
        title(axis, metric, group_title(metric.removeprefix("AP")))
    legend(axes[0])
    return figure
