"""Logits of each class against its training images (the paper's Figs. 2 and 0.B.2).

Shapes: K foreground classes.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure

from ...analysis.correlation import spearman
from ...results import ClassInfo
from ..words import format_correlation
from .style import LINE_STYLES, label, legend, log_counts, new_figure, scatter, title


def logit_figure(mean: np.ndarray, std: np.ndarray, classes: ClassInfo) -> Figure:
    """Draw mean and standard deviation of each class's logit against its training images (Fig. 2).

    Args:
        mean (ndarray): (K,), in nats.
        std (ndarray): (K,), in nats.
        classes (ClassInfo): K classes; those without images are left out.
    """
    figure, axes = new_figure(9.0, 3.8, columns=2)
    seen = classes.image_count > 0  # 0 has no place on a logarithmic axis
    count = classes.image_count[seen]
    for axis, name, values in zip(axes, ("Mean", "Standard deviation"), (mean, std), strict=True):
        values = np.asarray(values)[seen]
        scatter(axis, count, values, classes, seen)
        log_counts(axis, count)
        correlation = spearman(count, values)
        said = format_correlation(correlation)
        title(axis, f"{name} of the logit", f"Spearman's ρ = {said}")
        axis.set_xlabel("training images of the class")
    legend(axes[0])
    return figure


def population_figure(
    statistics: Mapping[str, tuple[np.ndarray, np.ndarray]], image_count: np.ndarray
) -> Figure:
    """Draw mean and deviation of each class's logit for several populations of RoIs (Fig. 0.B.2).

    Args:
        statistics (Mapping): name of a population, such as "sampled" and "positives" (each RoI
            counts for its own class alone), -> mean and standard deviation, (K,) each, in nats;
            NaN for classes without RoIs.
        image_count (ndarray): (K,) training images of the classes, by which they are ordered.
    """
    figure, axes = new_figure(9.0, 3.6, columns=2)
    order = np.argsort(-np.asarray(image_count), kind="stable")
    rank, count = np.arange(1, len(order) + 1), np.asarray(image_count)[order]
    for axis, side, name in zip(axes, (0, 1), ("Mean", "Standard deviation"), strict=True):
        notes = []
        for (population, values), style in zip(statistics.items(), LINE_STYLES):
            ordered = np.asarray(values[side], dtype=float)[order]
            known = np.isfinite(ordered)
            # Neighbours in rank have nothing to do with each other: markers without a line.
            markers = {**style, "linestyle": "none", "markersize": 3.5}
            axis.plot(rank[known], ordered[known], label=label(population), **markers)
            correlation = spearman(count[known], ordered[known])
            notes.append(f"{population} {format_correlation(correlation)}")
        axis.set_xlabel("class, most training images first")
        title(axis, f"{name} of the logit", f"Spearman's ρ with images: {', '.join(notes)}")
    legend(axes[0])
    return figure
