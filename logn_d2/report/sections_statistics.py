"""What stands in the sections of logits, prior, and the images that statistics need.

Shapes: K foreground classes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from logn_d2.core import LogitStatistics
from logn_d2.core.affine import foreground_columns

from .analysis import label_prior, spearman
from .comparison import Comparison
from .drawn import Drawn
from .figures import logit_figure, prior_figure
from .figures_groups import population_figure
from .figures_images import images_figure
from .html import Html, element
from .summary import display_name, format_value

__all__ = [
    "foreground",
    "logits_section",
    "of_all_rois",
    "prior_section",
    "study_section",
]

_POSITIVES = "positives"


def foreground(statistics: LogitStatistics) -> list[tuple[np.ndarray, np.ndarray]]:
    """Mean and standard deviation of the foreground logits of each stage, (K,) each."""
    columns = foreground_columns(statistics.background)
    return [
        (stage.mean[columns].numpy(), stage.std[columns].numpy()) for stage in statistics.stages
    ]


def positives(statistics: Mapping[str, LogitStatistics]) -> LogitStatistics | None:
    """The first that are of each class's own RoIs alone."""
    return next((each for each in statistics.values() if each.population == _POSITIVES), None)


def of_all_rois(statistics: Mapping[str, LogitStatistics]) -> dict[str, LogitStatistics]:
    """The others, in which every RoI counts for every class: those that calibrate."""
    return {name: each for name, each in statistics.items() if each.population != _POSITIVES}


def logits_section(
    comparison: Comparison, statistics: Mapping[str, LogitStatistics]
) -> list[Drawn]:
    """Mean and standard deviation of each class's logit, for each run's statistics and stage."""
    content, classes = [], comparison.classes
    for name, each in of_all_rois(statistics).items():
        stages = foreground(each)
        for index, (mean, std) in enumerate(stages):
            which = f"{name}. " if len(statistics) > 1 else ""
            which += f"Cascade stage {index + 1}. " if len(stages) > 1 else ""
            caption = (
                f"{which}Each marker is a class: mean and standard deviation of its raw logit over "
                f"{each.num_rois:,} RoIs of {each.num_images:,} training images, after Fig. 2 of "
                "the paper. Where both rise with the number of images, frequent classes have the "
                "larger logits whatever is in the image: that is what LogN takes away."
            )
            rho = [_signed(spearman(classes.image_count, values)) for values in (mean, std)]
            alt = (
                "Two scatter plots against training images of a class, on a logarithmic axis. Rank "
                f"correlation {rho[0]} for the mean logit, {rho[1]} for its standard deviation."
            )
            drawn = logit_figure(mean, std, classes)
            content.append(Drawn(f"logits_{len(content) + 1}", drawn, alt, caption))
    return [*content, *_populations(comparison, statistics)]


def _populations(
    comparison: Comparison, statistics: Mapping[str, LogitStatistics]
) -> Iterator[Drawn]:
    """The same for different RoIs, where there are statistics of several kinds."""
    found = {each.population: each for each in reversed(statistics.values())}
    if len(found) < 2:
        return
    images = comparison.classes.image_count
    values = {name: _known(each) for name, each in reversed(found.items())}
    said = (
        f"{name} {_signed(spearman(images[known], mean[known]))}"
        for name, (mean, _) in values.items()
        for known in [np.isfinite(mean)]
    )
    caption = (
        "Logits over different RoIs, classes in order of their training images; of positives each "
        "RoI counts for its own class alone, after Fig. 0.B.2 of the paper."
    )
    alt = (
        "Two plots over the classes, most training images first. Rank correlation of the mean "
        f"logit with training images: {', '.join(said)}."
    )
    yield Drawn("populations", population_figure(values, images), alt, caption)


def _known(statistics: LogitStatistics) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of the first stage, (K,) each; NaN without RoIs."""
    seen = _counts(statistics) > 0
    return tuple(np.where(seen, each, np.nan) for each in foreground(statistics)[0])


def _counts(statistics: LogitStatistics) -> np.ndarray:
    """RoIs of each class in the first stage, (K,)."""
    return statistics.stages[0].count[foreground_columns(statistics.background)].numpy()


def prior_section(
    comparison: Comparison,
    statistics: Mapping[str, LogitStatistics],
    foreground_share: float | None,
) -> list[Html | Drawn]:
    """The model's label prior against the labels, and against those that training draws."""
    classes, own = comparison.classes, positives(statistics)
    (first, *_) = of_all_rois(statistics).values()
    prior = label_prior(foreground(first)[0][0])
    sampled = None if own is None else _counts(own)
    drawn = prior_figure(prior, classes, foreground_share, sampled)
    drawn_too = f" Dotted: among the positive RoIs, drawn by {own.sampler}." if own else ""
    caption = (
        f"Line: share of each class among the objects of the training set.{drawn_too} Markers: "
        "the model's prior, here the softmax of the foreground classes' mean logits, since means "
        "of logits are what a statistics file holds; it is not the mean of the predicted "
        "probabilities. "
        "After Fig. 1 of the paper. Scales are logarithmic."
    )
    correlation = _signed(spearman(classes.instance_count, prior))
    rare, named = classes.is_rare, classes.rare_classes
    share = _share(classes.instance_count, rare)
    shift = f"{_share(sampled, rare)} of the RoIs that training draws; " if own else ""
    said = (
        f"{named[0].upper()}{named[1:]} hold {share} of the labels; {shift}the "
        f"model's prior gives them {_share(prior, rare)}. Rank correlation of both over "
        f"classes: {correlation}."
    )
    alt = f"Label distribution and the model's prior. {said}"
    return [element("p", said), Drawn("prior", drawn, alt, caption)]


def _share(values: np.ndarray, chosen: np.ndarray) -> str:
    return f"{100 * values[chosen].sum() / (values.sum() or 1):.2g} %"


def study_section(studies: Iterable[Mapping[str, Any]]) -> list[Drawn]:
    """How many images the statistics need, where that was measured."""
    content = []
    for study in studies:
        rows, passes = study["by_images"], study["passes"]
        said = "; ".join(
            f"{row['images']:,} images: "
            + ", ".join(
                f"{display_name(name)} {format_value(row[name]['AP']['mean'])}"
                for name in study["calibrations"]
            )
            for row in rows
        )
        caption = (
            f"AP of boxes with the statistics of so many images, {passes} passes that see the "
            "images in another order. Lines: means; bars: from the least to the largest."
        )
        alt = f"Curves of AP and APr against images. Mean AP at {said}."
        name = f"statistics_images_{len(content) + 1}"
        content.append(Drawn(name, images_figure(study), alt, caption))
    return content


def _signed(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:+.2f}".replace("-", "−")
