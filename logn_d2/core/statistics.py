"""Logit statistics of a detector, and the file that holds them.

The file is a safetensors file: no pickle, readable without this package. For each cascade stage i
(one stage for other heads) it holds ``stage{i}.mean``, ``stage{i}.var``, ``stage{i}.count``; for exact
statistics the state of `LogitMoments` besides, so that files merge; and ``stage{i}.fingerprint``
of the classifier. Its metadata are JSON strings: the other fields of `LogitStatistics`.

Shapes: S stages, C logit columns (K foreground classes and the background), D feature channels.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from .affine import Background
from .files import atomic_write
from .moments import LogitMoments

__all__ = ["LogitStatistics", "StageStatistics", "StatisticsError", "classifier_fingerprint"]

FORMAT = "logn_d2 statistics"
VERSION = 1
# Relative to the mean size over classes. A bf16 copy of the same weights differs by up to 0.006 at
# K = 1203, another training by about 1.
FINGERPRINT_TOLERANCE = 0.02


class StatisticsError(ValueError):
    """A statistics file can't be read, or does not belong to this model."""


def classifier_fingerprint(weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """One number a class that tells whether two classifiers are the same.

    A fixed projection of each weight row, plus the bias. Unlike a hash it survives a cast to half
    precision, and it shows *which* classes differ.

    Args:
        weight (Tensor): (C, D) classifier weights.
        bias (Tensor): (C,) or None.

    Returns:
        Tensor: (C,) float64, on the CPU.
    """
    weight = weight.detach().cpu().double().flatten(1)
    direction = torch.arange(1, weight.shape[1] + 1, dtype=torch.float64).cos()
    projection = weight @ direction
    return projection if bias is None else projection + bias.detach().cpu().double()


@dataclass(frozen=True)
class StageStatistics:
    """Statistics of one classifier.

    Attributes:
        mean (Tensor): (C,) float64.
        var (Tensor): (C,) float64, variance of all logits pooled, or the moving average.
        count (Tensor): (C,) int64, logits behind each column.
        moments (LogitMoments): the exact state, mergeable; None for moving averages.
        fingerprint (Tensor): (C,) float64 of `classifier_fingerprint`; None if unknown.
    """

    mean: Tensor
    var: Tensor
    count: Tensor
    moments: LogitMoments | None = None
    fingerprint: Tensor | None = None

    def __post_init__(self) -> None:
        for name in ("mean", "var"):
            bad = int((~getattr(self, name).isfinite()).sum())
            if bad:
                raise StatisticsError(
                    f"{name} holds {bad} values that are not finite; collect the statistics again."
                )
        if (self.var < 0).any() or (self.count < 0).any():
            raise StatisticsError("A variance or count is negative; collect the statistics again.")

    @classmethod
    def from_moments(
        cls, moments: LogitMoments, fingerprint: Tensor | None = None
    ) -> StageStatistics:
        """Statistics of an exact pass."""
        return cls(
            moments.mean.cpu(), moments.var.cpu(), moments.count.cpu(), moments, fingerprint
        )

    @property
    def std(self) -> Tensor:
        """(C,) float64."""
        return self.var.sqrt()

    @property
    def usable(self) -> Tensor:
        """(C,) bool: seen at least twice, with a variance. Other columns stay as they are."""
        return (self.count >= 2) & (self.var > 0)

    def tensors(self, prefix: str) -> dict[str, Tensor]:
        """Everything, as named tensors for a file."""
        named = {"mean": self.mean, "var": self.var, "count": self.count}
        if self.moments is not None:
            named.update(self.moments.state_dict())
        if self.fingerprint is not None:
            named["fingerprint"] = self.fingerprint
        return {f"{prefix}.{name}": tensor.cpu().contiguous() for name, tensor in named.items()}

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor], prefix: str) -> StageStatistics:
        """The inverse of :meth:`tensors`.

        Raises:
            KeyError: a tensor is missing.
        """
        named = {k.removeprefix(f"{prefix}."): v for k, v in tensors.items()
                 if k.startswith(f"{prefix}.")}
        moments = LogitMoments.from_state_dict(named) if "sum_square" in named else None
        return cls(
            named["mean"], named["var"], named["count"], moments, named.get("fingerprint")
        )


@dataclass(frozen=True)
class LogitStatistics:
    """Per-class logit statistics of one model, with where they come from.

    Attributes:
        stages (tuple[StageStatistics, ...]): one for each cascade stage, one for other heads.
        class_names (tuple[str, ...]): K foreground classes.
        background (str): where the background column is: "last", "first" or "none".
        datasets (tuple[str, ...]): names of the data sets that were passed over.
        population (str): which RoIs: "sampled" (as in training, ground truth added), "proposals"
            (as at test), "foreground" (matched RoIs only) or "positives" (each RoI counts only for
            the class that it is matched to).
        estimator (str): "exact", "ema" (as published) or "ema_debiased".
        momentum (float): of the moving average; None for exact statistics.
        sampler (str): how images were repeated.
        augmented (bool): whether training augmentation was on.
        logits (str): "raw", or what was done to them.
        num_images (int): images seen; repetitions count.
        num_rois (int): RoIs seen.
        provenance (dict): versions, weights, command: for people, never checked.
    """

    stages: tuple[StageStatistics, ...]
    class_names: tuple[str, ...]
    background: Background = "last"
    datasets: tuple[str, ...] = ()
    population: str = "sampled"
    estimator: str = "exact"
    momentum: float | None = None
    sampler: str = "TrainingSampler"
    augmented: bool = False
    logits: str = "raw"
    num_images: int = 0
    num_rois: int = 0
    provenance: dict[str, Any] = field(default_factory=dict)

    @property
    def num_classes(self) -> int:
        """K."""
        return len(self.class_names)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the file; one that was there before stays whole if this fails.

        Raises:
            OSError: the folder can't be written or the disk is full.
        """
        tensors = {}
        for index, stage in enumerate(self.stages):
            tensors.update(stage.tensors(f"stage{index}"))
        fields = {name: getattr(self, name) for name in _METADATA}
        fields.update(format=FORMAT, version=VERSION, num_stages=len(self.stages))
        metadata = {name: json.dumps(value) for name, value in fields.items()}
        with atomic_write(path) as temporary:
            temporary.write_bytes(safetensors.torch.save(tensors, metadata))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> LogitStatistics:
        """Reads a statistics file.

        Raises:
            FileNotFoundError: there is none.
            StatisticsError: it is truncated, another kind of file, or from a newer version.
        """
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(
                f"There is no statistics file at '{path}'. Make one with: train_net.py "
                "--config-file CONFIG --collect-stats PATH MODEL.WEIGHTS WEIGHTS"
            )
        tensors, metadata = _read_safetensors(path)
        if metadata.get("format") != FORMAT:
            raise StatisticsError(
                f"'{path}' is a safetensors file but not a statistics file of logn_d2 (its metadata "
                f"name the format {metadata.get('format')!r}, expected {FORMAT!r}). Give the path "
                "that --collect-stats wrote."
            )
        if metadata["version"] > VERSION:
            raise StatisticsError(
                f"'{path}' has format version {metadata['version']}, this logn_d2 reads up to "
                f"{VERSION}. Update logn_d2."
            )
        try:
            stages = tuple(
                StageStatistics.from_tensors(tensors, f"stage{i}")
                for i in range(metadata["num_stages"])
            )
            fields = {name: metadata[name] for name in _METADATA}
        except KeyError as error:
            raise StatisticsError(f"'{path}' lacks {error}; collect the statistics again.") from None
        for name in ("class_names", "datasets"):
            fields[name] = tuple(fields[name])
        return cls(stages=stages, **fields)

    def check(
        self,
        *,
        num_classes: int,
        num_stages: int,
        class_names: Sequence[str] | None = None,
        fingerprints: Sequence[Tensor | None] = (),
    ) -> None:
        """Checks that these statistics belong to a model.

        Args:
            num_classes (int): K of the model.
            num_stages (int): its number of box predictors.
            class_names (Sequence[str]): its classes, if known.
            fingerprints (Sequence[Tensor]): (C,) of each stage's classifier, if known.

        Raises:
            StatisticsError: what was found, what was expected, what to do.
        """
        source = f"these statistics (of {', '.join(self.datasets) or 'unknown data'})"
        if self.num_classes != num_classes:
            raise StatisticsError(
                f"This head has {num_classes} classes, but {source} have {self.num_classes}. "
                "Collect them again with this model's config."
            )
        if len(self.stages) != num_stages:
            raise StatisticsError(
                f"This model has {num_stages} box predictors (cascade stages), but {source} have "
                f"{len(self.stages)}. Collect them again with this model's config."
            )
        if class_names is not None and tuple(class_names) != self.class_names:
            index = next(
                i for i, names in enumerate(zip(class_names, self.class_names)) if len({*names}) > 1
            )
            raise StatisticsError(
                f"The classes differ: class {index} is {class_names[index]!r} in the model's data "
                f"set and {self.class_names[index]!r} in {source}. Collect them again with this "
                "data set."
            )
        for index, (stage, found) in enumerate(zip(self.stages, fingerprints)):
            _check_fingerprint(index, stage.fingerprint, found)

    def merge(self, other: LogitStatistics) -> LogitStatistics:
        """Statistics of both passes, for example of two shards of one data set.

        Raises:
            StatisticsError: moving averages, or passes that differ in more than their images.
        """
        for name in _SAME_WHEN_MERGED:
            mine, theirs = getattr(self, name), getattr(other, name)
            if mine != theirs:
                raise StatisticsError(
                    f"Passes with different {name} can't be merged: {_short(mine)} and "
                    f"{_short(theirs)}."
                )
        other.check(
            num_classes=self.num_classes,
            num_stages=len(self.stages),
            fingerprints=[stage.fingerprint for stage in self.stages],
        )
        if any(stage.moments is None for stage in (*self.stages, *other.stages)):
            raise StatisticsError(
                "Moving averages depend on the order of images and can't be merged. Collect with "
                "the exact estimator."
            )
        stages = tuple(
            StageStatistics.from_moments(
                LogitMoments.merged([a.moments, b.moments]), a.fingerprint
            )
            for a, b in zip(self.stages, other.stages)
        )
        return replace(
            self,
            stages=stages,
            datasets=tuple(dict.fromkeys((*self.datasets, *other.datasets))),
            num_images=self.num_images + other.num_images,
            num_rois=self.num_rois + other.num_rois,
        )


_METADATA = (
    "class_names", "background", "datasets", "population", "estimator", "momentum", "sampler",
    "augmented", "logits", "num_images", "num_rois", "provenance",
)  # fmt: skip
_SAME_WHEN_MERGED = (
    "class_names", "background", "population", "estimator", "sampler", "augmented", "logits",
)  # fmt: skip


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = {k: json.loads(v) for k, v in (file.metadata() or {}).items()
                        if k != "format" or v.startswith('"')}
            return {name: file.get_tensor(name) for name in file.keys()}, metadata
    except (safetensors.SafetensorError, json.JSONDecodeError) as error:
        raise StatisticsError(
            f"'{path}' is not a whole statistics file ({error}). It was truncated, or is something "
            "else; collect the statistics again or give the path that --collect-stats wrote."
        ) from None


def _check_fingerprint(index: int, expected: Tensor | None, found: Tensor | None) -> None:
    if expected is None or found is None:
        return
    differs = (expected - found).abs() > FINGERPRINT_TOLERANCE * expected.abs().mean()
    if differs.any():
        raise StatisticsError(
            f"The statistics were collected with other weights: the classifier of stage {index} "
            f"differs for {int(differs.sum())} of {len(expected)} classes. Load the weights that "
            "they were collected with, or collect them again with these (--collect-stats)."
        )


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
