"""Scores of known and unknown images, and their separation."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ...ood import auroc, roc_curve
from .style import INK, LINE_STYLES, label, legend, legend_below, new_figure, plain_line, title

_BINS = 40
_ENDS = (0.005, 0.995)  # quantiles beyond which scores are counted in the outermost bins


def unknown_figure(scores: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> Figure:
    """Draw histograms of scores, and their ROC curves.

    Args:
        scores (Mapping): name -> scores of known and of unknown images, higher for known ones; the
            baseline first, up to four.

    Returns:
        Figure: an axis for each score, and one for the curves.
    """
    columns = len(scores) + 1
    figure, axes = new_figure(3.0 * columns, 3.4, columns=columns)
    for axis, (name, sides) in zip(axes, scores.items()):
        _histograms(axis, *sides)
        title(axis, name, f"AUROC {100 * auroc(*sides):.1f} %")
    axes[0].set_ylabel("share of the images")
    last = axes[-1]
    last.plot([0, 1], [0, 1], color=INK, linewidth=0.8, alpha=0.5)
    for (name, sides), style in zip(scores.items(), LINE_STYLES):
        last.plot(*roc_curve(*sides), label=label(name), **plain_line(style))
    last.set_aspect("equal")
    last.set_xlabel("unknown images accepted")
    last.set_ylabel("known images accepted")
    title(last, "ROC", "share of each, over all thresholds")
    legend(last)
    legend_below(figure, axes[0])
    return figure


def _histograms(axis: Axes, known: np.ndarray, unknown: np.ndarray) -> None:
    # Energies have no bounds: a single outlier would squeeze all others into one bin.
    together = np.concatenate([known, unknown])
    low, high = np.quantile(together[np.isfinite(together)], _ENDS)
    edges = np.linspace(low, high if high > low else low + 1, _BINS + 1)
    for name, values, style in (
        ("known images", known, LINE_STYLES[1]),
        ("unknown images", unknown, LINE_STYLES[2]),
    ):
        counts, _ = np.histogram(values.clip(edges[0], edges[-1]), edges)
        axis.stairs(counts / len(values), edges, label=name, **plain_line(style))
    axis.set_xlabel("score")
