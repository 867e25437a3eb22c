"""Intervals of AP from a bootstrap over images, for one run or the difference of two.

A validation set is a sample of images; another sample gives another AP, above all for rare classes,
which occur in few images. The bootstrap draws as many images as there are, with replacement, and
evaluates again, many times. Matching is done once: an image drawn three times counts three times.

AP reads the best precision at or beyond each recall, so it rises with every accident of the
ranking. A resample has fewer distinct images and more such accidents: the mean over resamples lies
above the estimate, sometimes so far that the middle 95 % of the resamples exclude it. Our intervals
are therefore *centred*: the middle 95 %, shifted by the difference of the means. They estimate the
average AP over sets of as many images, not the limit for ever more images. A single other set
varies as much again, so its AP lies outside more often. `benchmarks/interval_coverage.py` measures
how often a 95 % interval covers that average: in 90.5 % of 200 simulated sets for AP with 30 images
per class (percentile interval: 81 %), in 88.5 % with three images per class (85 %), and in 93.5 to
97.5 % for the difference of two runs (94 to 94.5 %).

A class whose objects are all in images that were not drawn has no objects in that resample and is
left out of its means, as everywhere in LVIS. A figure without any class left is undefined there;
the interval uses the other resamples, and `undefined` counts those left out.

Two runs on the same images are compared on the same resamples. Hard images are hard for both, so
the interval of the difference is narrower than the intervals of the runs suggest.

Shapes: B resamples, N images, K foreground classes. Figures are in [0, 1].
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import UserError, check_choice
from ..lvis.matches import LvisMatches
from ..lvis.result import LvisResult, markdown_rows

# Resamples per block: enough to amortise the calls, few enough for the arrays to fit into the
# cache.
_BLOCK = 32


@dataclass(frozen=True, eq=False)
class BootstrapResult:
    """Figures with intervals: those of a run, or the second of two runs minus the first.

    Args:
        estimate (Mapping): name -> figure on the original images. The names are those of
            `LvisResult.metrics`, and "r/APs" and so on for `LvisResult.group_metrics`.
        samples (Mapping): name -> (B,) figure of each resample, NaN where it is undefined.
        per_class_estimate (ndarray): (K,) AP, NaN for a class without objects.
        per_class_samples (ndarray): (B, K) AP, float32.
        class_names (tuple[str, ...]): K names.
        level (float): share of the resamples in an interval.
        method (str): "centred", or "percentile" for the unshifted resamples.
        bounds (tuple[float, float]): smallest and largest possible figure.
    """

    estimate: Mapping[str, float]
    samples: Mapping[str, np.ndarray]
    per_class_estimate: np.ndarray
    per_class_samples: np.ndarray
    class_names: tuple[str, ...]
    level: float = 0.95
    method: str = "centred"
    bounds: tuple[float, float] = (0.0, 1.0)

    @property
    def intervals(self) -> OrderedDict[str, tuple[float, float]]:
        """Name -> lower and upper end; NaN if no resample defines the figure."""
        return OrderedDict(
            (name, tuple(self.interval(values, self.estimate[name]).tolist()))
            for name, values in self.samples.items()
        )

    @property
    def per_class_intervals(self) -> np.ndarray:
        """Lower and upper end of each class's AP, (2, K)."""
        return self.interval(self.per_class_samples, self.per_class_estimate)

    def interval(self, values: np.ndarray, estimate: float | np.ndarray) -> np.ndarray:
        """Lower and upper end of a figure of these resamples, such as a mean over several runs.

        Args:
            values (ndarray): (B, ...) the figure in each resample.
            estimate (float or ndarray): (...) the figure on the original images.

        Returns:
            ndarray: (2, ...).
        """
        ends = percentiles(values, self.level)
        if self.method == "centred":
            # The shift keeps the width of the interval. Reflecting the ends at the estimate would
            # remove the bias too, but swap the longer and the shorter side of a skewed
            # distribution.
            ends = ends + (estimate - _mean(values))
        # Shifting may push an end outside the possible range.
        return np.clip(ends, *self.bounds)

    @property
    def undefined(self) -> OrderedDict[str, int]:
        """Name -> number of resamples in which no class of the figure has objects."""
        return OrderedDict(
            (name, int(np.count_nonzero(np.isnan(values)))) for name, values in self.samples.items()
        )

    def rows(self) -> list[dict[str, Any]]:
        """Return one row per figure: name, estimate, low, high in percent, and undefined."""
        undefined = self.undefined
        return [
            {
                "figure": name,
                "estimate": 100 * self.estimate[name],
                "low": 100 * low,
                "high": 100 * high,
                "undefined": undefined[name],
            }
            for name, (low, high) in self.intervals.items()
        ]

    def table(self) -> str:
        """Return `rows` as a Markdown table, without the groups' figures by area."""
        return markdown_rows(row for row in self.rows() if "/" not in row["figure"])


def bootstrap_lvis(
    matches: LvisMatches,
    *,
    resamples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
    method: str = "centred",
) -> BootstrapResult:
    """Compute intervals of all figures of a run.

    Args:
        matches (LvisMatches): see `match_lvis`.
        resamples (int): B. Below a few hundred the ends of an interval are noise.
        seed (int): seed of the draws.
        level (float): share of the resamples in an interval.
        method (str): "centred" or "percentile", see the module's docstring.

    Returns:
        BootstrapResult: AP, AP50, AP of each group and area, recall, and AP of each class.

    Raises:
        ValueError: no resamples, a level outside (0, 1), another method, or no images.

    Example:
        >>> from logn_d2.lvis import Detections, LvisGroundTruth, match_lvis
        >>> box = [0, 0, 4, 4]
        >>> truth = LvisGroundTruth.from_dict({
        ...     "images": [{"id": i} for i in range(20)],
        ...     "categories": [{"id": 1, "name": "cat"}],
        ...     "annotations": [
        ...         {"id": i, "image_id": i, "category_id": 1, "bbox": box} for i in range(20)
        ...     ],
        ... })
        >>> found = Detections(range(0, 20, 2), [0] * 10, [0.9] * 10, [box] * 10)
        >>> run = bootstrap_lvis(match_lvis(truth, found), resamples=200)
        >>> low, high = run.intervals["AP50"]
        >>> low < run.estimate["AP50"] < high
        True
    """
    return _bootstrap([matches], resamples, seed, level, method)


def bootstrap_difference(
    first: LvisMatches,
    second: LvisMatches,
    *,
    resamples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
    method: str = "centred",
) -> BootstrapResult:
    """Compute `second` minus `first`, with intervals, on the same resampled images.

    An interval that excludes 0 shows a change larger than the sampling error of the images. It does
    not cover the variation between training seeds.

    Args:
        first (LvisMatches): for example the uncalibrated run.
        second (LvisMatches): for example the calibrated run, on the same images and classes.
        resamples (int): B.
        seed (int): seed of the draws; equal seeds draw the same images as `bootstrap_lvis`.
        level (float): share of the resamples in an interval.
        method (str): "centred" or "percentile", see the module's docstring.

    Returns:
        BootstrapResult: figures of second - first.

    Raises:
        ValueError: the runs have different images, classes, objects or groups.
    """
    _check_same(first, second)
    return _bootstrap([first, second], resamples, seed, level, method)


def _bootstrap(
    runs: list[LvisMatches], resamples: int, seed: int, level: float, method: str
) -> BootstrapResult:
    """Figures of a single run, or of the second run minus the first."""
    num_images = len(runs[0].image_ids)
    if resamples < 1 or not 0 < level < 1 or not num_images:
        raise UserError(
            f"Got {resamples} resamples, level {level} and {num_images} images; expected at least "
            "one resample, a level between 0 and 1 such as 0.95, and at least one image."
        )
    check_choice("method", method, ("centred", "percentile"))
    # One generator for both runs: each draw weighs the images of both, which pairs them.
    rng = np.random.default_rng(seed)
    # The estimate uses the original images, not the mean over resamples, which is biased upwards.
    estimate, per_class = _difference([_figures(run.result()) for run in runs])
    samples = np.empty((resamples, len(estimate)))
    # float32: with 1,203 classes this is the largest array, and intervals need three digits.
    per_class_samples = np.empty((resamples, len(per_class)), dtype=np.float32)
    for start in range(0, resamples, _BLOCK):
        block = range(start, min(start + _BLOCK, resamples))
        # Drawn one resample at a time, so that a seed gives the same draws for every block size.
        drawn = [rng.integers(num_images, size=num_images) for _ in block]
        # Multiplicities instead of lists of images: matches are reused, only their weights change.
        weights = np.stack([np.bincount(each, minlength=num_images) for each in drawn])
        for b, *results in zip(block, *(run.results(weights) for run in runs), strict=True):
            figures, per_class_samples[b] = _difference([_figures(r) for r in results])
            samples[b] = list(figures.values())
    return BootstrapResult(
        estimate=estimate,
        samples=OrderedDict(zip(estimate, samples.T, strict=True)),
        per_class_estimate=per_class,
        per_class_samples=per_class_samples,
        class_names=runs[0].class_names,
        level=level,
        method=method,
        # Shifting may push an end outside the possible range, so ends are clipped to it.
        bounds=(0.0 if len(runs) == 1 else -1.0, 1.0),
    )


def _figures(result: LvisResult) -> tuple[OrderedDict[str, float], np.ndarray]:
    """All figures by name, and AP of each class."""
    figures = OrderedDict(result.metrics)
    for group, row in result.group_metrics.items():
        figures.update((f"{group}/{name}", value) for name, value in row.items())
    return figures, result.per_class_ap


def _difference(
    runs: list[tuple[OrderedDict[str, float], np.ndarray]],
) -> tuple[OrderedDict[str, float], np.ndarray]:
    """The only run, or the second of two minus the first."""
    if len(runs) == 1:
        return runs[0]
    (first, first_ap), (second, second_ap) = runs
    return OrderedDict((n, second[n] - first[n]) for n in first), second_ap - first_ap


def _mean(values: np.ndarray) -> np.ndarray:
    """Mean of (B, ...) values over the first axis without NaN; NaN if all are NaN."""
    number = np.count_nonzero(~np.isnan(values), axis=0)
    # np.nanmean would warn about columns without values, which are ordinary here.
    # float64, because AP per class is stored as float32, whose running sum over a thousand
    # resamples would lose the digits that the shift needs.
    total = np.nansum(values, axis=0, dtype=np.float64)
    return np.where(number, total / np.maximum(number, 1), np.nan)


def percentiles(values: np.ndarray, level: float) -> np.ndarray:
    """Ends of the middle `level` of (B, ...) values without NaN, (2, ...); NaN if all are NaN."""
    share = np.array([(1 - level) / 2, (1 + level) / 2])
    # np.nanquantile warns about columns without values.
    known = ~np.isnan(values).all(axis=0)
    ends = np.full((2, *values.shape[1:]), np.nan)
    if known.any():
        ends[:, known] = np.nanquantile(values[:, known], share, axis=0)
    return ends


def _check_same(first: LvisMatches, second: LvisMatches) -> None:
    """Refuse runs whose difference means nothing."""
    if first.class_names != second.class_names:
        raise UserError(
            f"The runs have different classes ({len(first.class_names)} against "
            f"{len(second.class_names)}, or other names). Match both with the same ground truth."
        )
    same_truth = np.array_equal(first.image_ids, second.image_ids) and all(
        np.array_equal(getattr(first, name), getattr(second, name))
        # Equal ids and names do not suffice: the runs may have been matched with two versions of a
        # file, or as boxes and as masks, where objects without a mask are missing.
        for name in ("gt_image", "gt_category", "gt_counted")
    )
    if not same_truth:
        raise UserError(
            f"The runs have different annotations ({len(first.image_ids)} images and "
            f"{len(first.gt_image)} objects against {len(second.image_ids)} and "
            f"{len(second.gt_image)}, or others). Match both with the same ground truth."
        )
    # The figures of the two runs are subtracted by name, so the names must agree.
    names = [list(run.members) for run in (first, second)]
    if names[0] != names[1]:
        raise UserError(
            f"The runs have different groups: {names[0]} against {names[1]}. Give both the same "
            "frequency_groups and class_groups."
        )
