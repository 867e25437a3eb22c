"""Choosing a calibration with validation labels, and estimating the value of the choice.

The largest AP in a table is too optimistic, since it was chosen on the same images. *Cross-fitting*
splits the images at random into halves, chooses on one and scores on the other, and vice versa; the
mean over many splits estimates the value of the choice on unseen images. Each candidate is matched
once, so this takes seconds.

The interval comes from bootstrap draws of the images, each with a new split; copies of an image are
always in the same half. Half of the images choose less well than all of them, and AP on fewer
images varies more.

Shapes: N images, M candidates, B divisions or draws.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from ..errors import UserError, check_known
from ..lvis.matches import LvisMatches
from .bootstrap import percentiles
from .run_table import markdown

# Draws per block, as in the bootstrap: memory grows with them.
_BLOCK = 32


@dataclass(frozen=True)
class Choice:
    """A choice among candidates.

    Attributes:
        name (str): the best candidate on all images.
        baseline (str): the candidate that changes are relative to.
        metric (str): the criterion, for example "AP" or "APr".
        best (float): the chosen candidate's metric on the images of the choice, in [0, 1]: too
            high.
        honest (float): the baseline's metric plus the cross-fitted change, in [0, 1].
        change (float): mean change on the halves not used for the choice.
        interval (tuple[float, float]): interval of the change.
        share (Mapping[str, float]): candidate -> share of the halves that chose it.
    """

    name: str
    baseline: str
    metric: str
    best: float
    honest: float
    change: float
    interval: tuple[float, float]
    share: Mapping[str, float]

    def table(self) -> str:
        """Return the candidates chosen by at least one half, in Markdown, most frequent first."""
        rows = [[name, f"{100 * share:.0f} %"] for name, share in self.share.items()]
        return markdown(rows, ["chosen", "of the halves"])

    def __str__(self) -> str:
        low, high = (100 * end for end in self.interval)
        return (
            f"{self.name}: {self.metric} {100 * self.best:.1f} on the images that chose it, "
            f"{100 * self.honest:.1f} on images that did not; change from {self.baseline} "
            f"{100 * self.change:+.1f} [{low:+.1f}, {high:+.1f}]"
        )


def choose(
    candidates: Mapping[str, LvisMatches],
    baseline: str,
    *,
    metric: str = "AP",
    divisions: int = 50,
    resamples: int = 200,
    seed: int = 0,
    level: float = 0.95,
    progress: Callable[[Iterable], Iterable] = iter,
) -> Choice:
    """Choose the candidate with the largest metric, and estimate the value of the choice.

    Args:
        candidates (Mapping[str, LvisMatches]): M matches of the same images, see `match_lvis`.
        baseline (str): one of them, such as "uncalibrated".
        metric (str): a name in `LvisResult.metrics`.
        divisions (int): random halves for the estimate.
        resamples (int): bootstrap draws for the interval; 0 for none (NaN).
        seed (int): seed of splits and draws.
        level (float): share of the draws in the interval.
        progress (Callable): wraps the loop over candidates, such as `tqdm.tqdm`.

    Returns:
        Choice: the first of equally good candidates.

    Raises:
        KeyError: the baseline is no candidate, or an unknown metric.
        ValueError: fewer than two candidates or four images, or candidates on different images.

    Example:
        >>> from logn_d2.lvis import Detections, LvisGroundTruth, match_lvis
        >>> box = [0, 0, 4, 4]
        >>> truth = LvisGroundTruth.from_dict({
        ...     "images": [{"id": i} for i in range(8)],
        ...     "categories": [{"id": 1, "name": "cat"}],
        ...     "annotations": [
        ...         {"id": i, "image_id": i, "category_id": 1, "bbox": box} for i in range(8)
        ...     ],
        ... })
        >>> found = {
        ...     n: match_lvis(truth, Detections(range(n), [0] * n, [0.9] * n, [box] * n))
        ...     for n in (4, 8)
        ... }
        >>> choice = choose({"half": found[4], "all": found[8]}, "half", resamples=20)
        >>> choice.name, round(choice.honest, 1)
        ('all', 1.0)
    """
    names = list(candidates)
    check_known("baseline", baseline, names)
    _check(candidates, metric)
    rng = np.random.default_rng(seed)
    number = len(candidates[baseline].image_ids)
    once = np.array([run.result().metrics[metric] for run in candidates.values()])
    # Multinomial counts are the multiplicities of a draw with replacement.
    draws = rng.multinomial(number, np.full(number, 1 / number), resamples)
    # Divisions of the original images estimate the change; bootstrap draws, each with a division of
    # its own, estimate its spread. One array: a single pass over the candidates serves both.
    weights = np.concatenate([np.ones((divisions, number), dtype=np.int64), draws])
    changes, chosen = _cross_fit(candidates, baseline, metric, rng, weights, progress)
    change, chosen = changes[:divisions], chosen[:, :divisions]
    # Draws in which a half has no object of the metric's classes are NaN and are left out.
    low, high = percentiles(changes[divisions:], level)
    counts = Counter(names[index] for index in chosen.flat)
    # A division that leaves one half without objects of a rare class has no AP there; the others
    # estimate the change.
    mean = float(np.nanmean(change))
    # argmax takes the first of equal candidates, so the order of the table decides ties.
    best = int(np.nanargmax(once))
    return Choice(
        name=names[best],
        baseline=baseline,
        metric=metric,
        best=float(once[best]),
        honest=float(once[names.index(baseline)] + mean),
        change=mean,
        interval=(float(low), float(high)),
        share={name: count / chosen.size for name, count in counts.most_common()},
    )


def _cross_fit(
    candidates: Mapping[str, LvisMatches],
    baseline: str,
    metric: str,
    rng: np.random.Generator,
    weights: np.ndarray,
    progress: Callable[[Iterable], Iterable],
) -> tuple[np.ndarray, np.ndarray]:
    """Change of the metric, (B,), and the index of the candidate that each half chooses, (2, B).

    Args:
        weights (ndarray): (B, N) multiplicity of each image.
    """
    number = weights.shape[1]
    # Halves of equal size vary less than those from a coin flip per image.
    first = rng.permuted(np.tile(np.arange(number) < number // 2, (len(weights), 1)), axis=1)
    halves = [weights * first, weights * ~first]
    # (2, M, B): the metric of every candidate on each half.
    # Only one metric is stored: the full results of all candidates and draws, at K classes each,
    # would not fit into memory at LVIS's size.
    figures = np.empty((2, len(candidates), len(weights)))
    for m, run in enumerate(progress(candidates.values())):
        for half, images in enumerate(halves):
            for start in range(0, len(weights), _BLOCK):
                block = slice(start, start + _BLOCK)
                found = run.results(images[block])
                figures[half, m, block] = [each.metrics[metric] for each in found]
    # A half without objects of the metric's classes chooses the baseline.
    base = list(candidates).index(baseline)
    chosen = np.where(
        np.isnan(figures).all(axis=1), base, np.nan_to_num(figures, nan=-1.0).argmax(axis=1)
    )
    draw = np.arange(len(weights))
    # Each half is scored against the baseline on the same images, so that their difficulty cancels.
    gains = [
        figures[other][chosen[half], draw] - figures[other][base]
        for half, other in ((0, 1), (1, 0))
    ]
    # The mean over both halves uses every image once for scoring.
    return np.mean(gains, axis=0), chosen


def _check(candidates: Mapping[str, LvisMatches], metric: str) -> None:
    (first, run), *others = candidates.items()
    if not others or len(run.image_ids) < 4:
        raise UserError(
            f"Got {len(candidates)} candidates on {len(run.image_ids)} images; expected at least "
            "two candidates and four images."
        )
    check_known("metric", metric, run.result().metrics)
    for name, other in others:
        same = np.array_equal(run.image_ids, other.image_ids)
        if not same or run.class_names != other.class_names:
            raise UserError(
                f"'{first}' and '{name}' are of different images or classes. Match all candidates "
                "with the same ground truth."
            )
