"""Accuracy of a classifier: overall, by groups of training images, by class, with intervals.

A group's accuracy is the mean of the accuracies of its classes, as in ImageNet-LT. The overall
accuracy is the share of correctly classified images; with a balanced test set this is the mean over
all classes.

Shapes: N images, K classes, B resamples.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from ..analysis.bootstrap import percentiles
from ..analysis.score_table import as_runs, spread_table
from ..errors import UserError
from ..frequency import ClassCounts, frequency_groups
from ..lvis.result import known_mean, write_csv
from ..ood import expected_calibration_error

GROUPS = {"many": "f", "medium": "c", "few": "r"}
"""ImageNet-LT's names of groups -> the letters of `frequency_groups`."""

# Inclusive limits, as `frequency_groups` takes them: few has fewer than 20 images.
_IMAGENET_LT = (19, 100)


@dataclass(frozen=True, eq=False)
class ImageResult:
    """Result of `evaluate_images`; shares in [0, 1].

    Attributes:
        predicted (ndarray): (N,) int, the most probable class.
        labels (ndarray): (N,) int.
        confidence (ndarray): (N,) probability of the predicted class.
        groups (ndarray): (K,) letters "r", "c", "f" of few, medium, many; None if unknown.
        num_classes (int): K.
    """

    predicted: np.ndarray
    labels: np.ndarray
    confidence: np.ndarray
    groups: np.ndarray | None
    num_classes: int

    @functools.cached_property
    def right(self) -> np.ndarray:
        """Whether each prediction is correct, (N,) bool."""
        return self.predicted == self.labels

    def per_class(self, weights: np.ndarray | None = None) -> np.ndarray:
        """Accuracy of each class, (K,), NaN for a class without images.

        Args:
            weights (ndarray): (N,) weight of each image; None for weight 1.
        """
        total = np.bincount(self.labels, weights, self.num_classes).astype(np.float64)
        hits = self.right if weights is None else self.right * weights
        right = np.bincount(self.labels, hits, self.num_classes)
        return np.divide(right, total, out=np.full(self.num_classes, np.nan), where=total > 0)

    def metrics(self, weights: np.ndarray | None = None) -> dict[str, float]:
        """Accuracies "acc" (overall), "many", "medium", "few": NaN for a group without images."""
        found = {"acc": float(np.average(self.right, weights=weights))}
        if self.groups is not None:
            classes = self.per_class(weights)
            for name, letter in GROUPS.items():
                # Classes without test images are left out, not counted as errors.
                found[name] = known_mean(classes[self.groups == letter])
        return found

    def as_dict(self) -> dict[str, float]:
        """The accuracies, and "ECE", the expected calibration error in 15 bins; in percent."""
        ece = expected_calibration_error(self.confidence, self.right).ece
        return {name: 100 * value for name, value in {**self.metrics(), "ECE": ece}.items()}

    def confusion(self) -> dict[str, dict[str, float]]:
        """Confusion between groups: group -> group of the predicted class -> share.

        Returns:
            dict: "many", "medium", "few" -> the same names -> share of the row's images, NaN for a
            group without images; empty if the groups are unknown.
        """
        if self.groups is None:
            return {}
        true, found = self.groups[self.labels], self.groups[self.predicted]
        return {
            row: {
                column: float((found[true == mine] == theirs).mean()) if mine in true else np.nan
                for column, theirs in GROUPS.items()
            }
            for row, mine in GROUPS.items()
        }

    def group_accuracy(self, group: str) -> float:
        """Share of a group's images that are classified correctly, in [0, 1]; NaN without any."""
        return known_mean(self.right[self.groups[self.labels] == GROUPS[group]])

    def resampled(self, samples: int = 1000, seed: int = 0) -> dict[str, np.ndarray]:
        """Bootstrap over images; with the same seed, results of the same images have the same
        draws.

        Args:
            samples (int): B.
            seed (int): seed of the draws.

        Returns:
            dict: name of `metrics` -> (B,) share, NaN where a resample has no image of the group.
        """
        rng, number = np.random.default_rng(seed), len(self.labels)
        rows = []
        for _ in range(samples):
            # Images drawn several times become weights, so no array of predictions is copied.
            drawn = rng.integers(number, size=number)
            rows.append(self.metrics(np.bincount(drawn, minlength=number)))
        return {name: np.array([row[name] for row in rows]) for name in self.metrics()}

    def intervals(
        self,
        other: ImageResult | None = None,
        *,
        samples: int = 1000,
        level: float = 0.95,
        seed: int = 0,
    ) -> dict[str, tuple[float, float]]:
        """Bootstrap intervals over images: of the accuracies, or of differences from other ones.

        Args:
            other (ImageResult): a result on the same images, with the same draws; None for the
                intervals of this result.
            samples (int): B.
            level (float): share of the resamples in an interval.
            seed (int): seed of the draws.

        Returns:
            dict: name -> lower and upper end; NaN if no resample defines the figure.

        Raises:
            ValueError: the other result is for other images.
        """
        if other is not None and not np.array_equal(self.labels, other.labels):
            raise UserError(
                f"Results of {len(self.labels)} and {len(other.labels)} images, or with other "
                "labels, can't be paired. Evaluate both on the same set."
            )
        mine = self.resampled(samples, seed)
        theirs = dict.fromkeys(mine, 0.0) if other is None else other.resampled(samples, seed)
        return {
            name: tuple(percentiles(values - theirs[name], level).tolist())
            for name, values in mine.items()
        }

    def to_csv(
        self, path: str | os.PathLike[str], names: Sequence[str], counts: ClassCounts | None
    ) -> None:
        """Write a line for each class: name, training and test images, accuracy."""
        columns = {
            "class": names,
            "training images": [""] * len(names) if counts is None else counts.image_count,
            "test images": np.bincount(self.labels, minlength=self.num_classes),
            "accuracy": [f"{accuracy:.6g}" for accuracy in self.per_class()],
        }
        rows = [dict(zip(columns, row)) for row in zip(*columns.values(), strict=True)]
        write_csv(path, rows, list(columns))


def evaluate_images(
    probabilities: ArrayLike, labels: ArrayLike, groups: ArrayLike | None = None
) -> ImageResult:
    """Compare predictions with labels.

    Args:
        probabilities (ArrayLike): (N, K) in [0, 1]; the largest is the prediction, the first of
            equal ones.
        labels (ArrayLike): (N,) int in [0, K).
        groups (ArrayLike): (K,) letters, see `class_groups`; None for no groups.

    Raises:
        ValueError: invalid shapes, labels or probabilities.

    Example:
        >>> result = evaluate_images([[0.9, 0.1], [0.4, 0.6], [0.3, 0.7]], [0, 0, 1], ["f", "r"])
        >>> {name: round(value, 1) for name, value in result.as_dict().items()}
        {'acc': 66.7, 'many': 50.0, 'medium': nan, 'few': 100.0, 'ECE': 33.3}
    """
    probabilities = np.asarray(probabilities, dtype=np.float64)
    labels = np.asarray(labels)
    if probabilities.ndim != 2 or labels.shape != probabilities.shape[:1] or not labels.size:
        raise UserError(
            f"Probabilities have shape {probabilities.shape} and labels {labels.shape}, expected "
            "(images, classes) and (images,), with at least one image."
        )
    num_classes = probabilities.shape[1]
    outside = np.flatnonzero((labels < 0) | (labels >= num_classes))
    if outside.size:
        raise UserError(
            f"{outside.size} of {len(labels)} images have no label in [0, {num_classes - 1}]; the "
            f"first is number {outside[0]} with label {labels[outside[0]]}. Unknown inputs have no "
            "accuracy; evaluate them with --ood."
        )
    bad = np.flatnonzero(~((probabilities >= 0) & (probabilities <= 1)).all(axis=1))
    if bad.size:
        raise UserError(
            f"{bad.size} of {len(labels)} images have scores outside [0, 1]; the first is number "
            f"{bad[0]}. Check the weights."
        )
    best = probabilities.argmax(axis=1)
    confidence = probabilities[np.arange(len(labels)), best]
    letters = None if groups is None else np.asarray(groups)
    return ImageResult(best, labels, confidence, letters, num_classes)


def class_groups(counts: ClassCounts) -> np.ndarray:
    """Group letters of the classes, (K,): the set's own groups, or ImageNet-LT's (20, 100)."""
    if counts.groups is not None:
        return counts.groups
    return frequency_groups(counts.image_count, *_IMAGENET_LT)


def accuracy_table(
    rows: Mapping[str, Mapping[str, float] | Sequence[Mapping[str, float]]],
    title: str = "calibration",
    marked: Collection[str] = (),
) -> str:
    """A Markdown table in percent; "ECE, T" is the error with a temperature, if one was fitted.

    Args:
        rows (Mapping): name -> result of `ImageResult.as_dict`, or one for each run, for mean and
            standard deviation.
        title (str): title of the first column.
        marked (Collection[str]): names to mark with a star.

    Example:
        >>> print(accuracy_table({"logn": {"acc": 51.0, "few": float("nan"), "ECE": 3.0}}))
        | calibration   |   All |   Many |   Medium |   Few |   ECE |
        |:--------------|------:|-------:|---------:|------:|------:|
        | logn          |  51.0 |      - |        - |     - |   3.0 |
    """
    columns = {"acc": "All", "many": "Many", "medium": "Medium", "few": "Few", "ECE": "ECE"}
    runs_of = as_runs(rows)
    if any("ECE_T" in run for runs in runs_of.values() for run in runs):
        columns["ECE_T"] = "ECE, T"
    return spread_table(runs_of, columns, marked, title)
