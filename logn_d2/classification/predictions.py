"""Predictions of each calibration for each image of a set, in a small file for reports.

Shapes: N images (in a set of unknown images, their number), C calibrations, K classes.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ..core.tensor_file import write_tensors
from ..errors import check_known
from ..frequency import ClassCounts
from .accuracy import GROUPS, ImageResult, class_groups
from .logits import load_tensors

_FORMAT = "logn_d2 image predictions 1"


def predictions_name(dataset: str) -> str:
    """Name of the file for a data set."""
    return f"predictions_{dataset}.safetensors"


@dataclass(frozen=True, eq=False)
class StoredPredictions:
    """Predictions for one set of images, and scores of sets of unknown images.

    Attributes:
        calibrations (tuple[str, ...]): C names.
        labels (ndarray): (N,) int64.
        predicted (ndarray): (C, N) int64, the most probable class.
        confidence (ndarray): (C, N) float64, its probability.
        scores (Mapping): data set, this one or of unknown images -> name of an OOD score -> (C, N)
            float64, NaN for a calibration without it; empty without sets of unknown images.
        class_names (tuple[str, ...]): K names of the classifier's classes.
        image_count (ndarray): (K,) training images; None if the training set was not available.
        groups (ndarray): (K,) letters of `class_groups`; None in the same case.
    """

    calibrations: tuple[str, ...]
    labels: np.ndarray
    predicted: np.ndarray
    confidence: np.ndarray
    scores: Mapping[str, Mapping[str, np.ndarray]]
    class_names: tuple[str, ...]
    image_count: np.ndarray | None = None
    groups: np.ndarray | None = None

    @classmethod
    def gather(
        cls,
        results: Mapping[str, ImageResult],
        scores: Mapping[str, Mapping[str, Mapping[str, np.ndarray]]],
        class_names: Sequence[str],
        counts: ClassCounts | None,
    ) -> StoredPredictions:
        """Combine results and scores.

        Args:
            results (Mapping): name of a calibration -> its predictions.
            scores (Mapping): data set -> name of a calibration -> name of a score -> (N,) scores.
            class_names (Sequence[str]): K names.
            counts (ClassCounts): counts of the training set; None if it is not available.
        """
        # All results are of the same images, so that the labels of any of them serve.
        first, every = next(iter(results.values())), list(results.values())
        return cls(
            tuple(results),
            np.asarray(first.labels, dtype=np.int64),
            np.stack([each.predicted for each in every]).astype(np.int64),
            np.stack([each.confidence for each in every]),
            {dataset: _stacked(found, tuple(results)) for dataset, found in scores.items()},
            tuple(class_names),
            None if counts is None else np.asarray(counts.image_count, dtype=np.int64),
            None if counts is None else class_groups(counts),
        )

    def result(self, calibration: str) -> ImageResult:
        """Predictions under a calibration.

        Raises:
            KeyError: no such calibration; the message lists the existing ones.
        """
        row = self._row(calibration)
        num_classes = len(self.class_names)
        return ImageResult(
            self.predicted[row], self.labels, self.confidence[row], self.groups, num_classes
        )

    def scores_of(self, dataset: str, calibration: str) -> dict[str, np.ndarray]:
        """Scores of a set's images under a calibration: name -> (N,), defined ones only."""
        row = self._row(calibration)
        found = {name: values[row] for name, values in self.scores[dataset].items()}
        return {name: values for name, values in found.items() if not np.isnan(values).all()}

    def _row(self, calibration: str) -> int:
        check_known("calibration", calibration, self.calibrations, " in these predictions")
        return self.calibrations.index(calibration)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a safetensors file.

        Raises:
            OSError: the folder is not writable or the disk is full.
        """
        arrays = {
            "labels": self.labels,
            "predictions": self.predicted,
            "confidence": self.confidence,
            # JSON, because names of sets and scores may contain any character.
            **{
                json.dumps([dataset, name]): values
                for dataset, found in self.scores.items()
                for name, values in found.items()
            },
        }
        about = {
            "calibrations": self.calibrations,
            "classes": self.class_names,
            "scores": [name for name in arrays if name.startswith("[")],
        }
        if self.image_count is not None:
            arrays["image_count"] = self.image_count
            about["groups"] = tuple(map(str, self.groups))
        tensors = {name: torch.from_numpy(np.ascontiguousarray(a)) for name, a in arrays.items()}
        texts = {name: json.dumps(values) for name, values in about.items()}
        write_tensors(path, tensors, {"format": _FORMAT, **texts})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> StoredPredictions:
        """Read a file written by `save`.

        Raises:
            FileNotFoundError: the file does not exist.
            ValueError: the file is damaged, or of another kind.
        """
        tensors, about = load_tensors(path, _FORMAT, "predictions")
        arrays = {name: tensor.numpy() for name, tensor in tensors.items()}
        groups = json.loads(about["groups"]) if "groups" in about else None
        scores: dict[str, dict[str, np.ndarray]] = {}
        # safetensors sorts its tensors; the order of the scores is that of the metadata.
        for name in json.loads(about["scores"]):
            dataset, score = json.loads(name)
            scores.setdefault(dataset, {})[score] = arrays[name]
        return cls(
            tuple(json.loads(about["calibrations"])),
            arrays["labels"],
            arrays["predictions"],
            arrays["confidence"],
            scores,
            tuple(json.loads(about["classes"])),
            arrays.get("image_count"),
            None if groups is None else np.array(groups),
        )

    @property
    def group_names(self) -> tuple[str, ...]:
        """Group of each class, K times "many", "medium" or "few"; empty if unknown."""
        words = {letter: name for name, letter in GROUPS.items()}
        return () if self.groups is None else tuple(words.get(g, str(g)) for g in self.groups)


def _stacked(
    found: Mapping[str, Mapping[str, np.ndarray]], calibrations: Sequence[str]
) -> dict[str, np.ndarray]:
    """Scores of all calibrations: name -> (C, N)."""
    known = {name: values for scores in found.values() for name, values in scores.items()}
    return {
        name: np.stack([found[c].get(name, np.full_like(values, np.nan)) for c in calibrations])
        for name, values in known.items()
    }
