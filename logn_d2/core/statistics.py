"""Logit statistics of a detector, and their file.

The file is a safetensors file: no pickle, readable without this package. For each cascade stage i
(one stage for other heads) it contains ``stage{i}.mean``, ``stage{i}.var``, ``stage{i}.count``; for
exact statistics also the states of `LogitMoments` and `PosteriorMoments`, so that files can be
merged; and ``stage{i}.fingerprint`` of the classifier. Its metadata are JSON strings: the other
fields of `LogitStatistics`.

Shapes: S stages, C logit columns (K foreground classes and the background, if there is one).
"""

from __future__ import annotations

import logging
import os
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import MissingFileError
from .affine import Background, foreground_columns
from .fingerprint import fingerprint_differences
from .sampling_error import sampling_error
from .stage import StageStatistics, StatisticsError
from .tensor_file import FileKind

logger = logging.getLogger(__name__)

FILE = FileKind(
    "logn_d2 statistics",
    "statistics file",
    version=3,
    advice="Give the path that `logn collect` wrote, or collect the statistics again.",
    error=StatisticsError,
)


@dataclass(frozen=True, eq=False)
class LogitStatistics:
    """Per-class logit statistics of one model, with their origin.

    Attributes:
        stages (tuple[StageStatistics, ...]): one per cascade stage, a single one for other heads.
        class_names (tuple[str, ...]): K foreground classes.
        background (str): position of the background column: "last", "first" or "none".
        datasets (tuple[str, ...]): names of the data sets of the pass.
        population (str): RoIs that count: "sampled" (as in training, ground truth added),
            "proposals" (as at test), "foreground" (matched RoIs only) or "positives" (each RoI
            counts only for its matched class); "images" for image classifiers.
        estimator (str): "exact", "ema" (as published) or "ema_debiased".
        momentum (float): momentum of the moving average; None for exact statistics.
        sampler (str): training sampler with its settings, which sets the images' weights.
        augmented (bool): whether training augmentation was on.
        autocast (str): the type of mixed precision, for example "bfloat16"; "" without it, None if
            an older file does not record it.
        activation (str): function from logits to posteriors: "softmax" or "sigmoid"; None in older
            files without posteriors.
        site (str): the class of a detector without box predictors; None for box predictors.
        complete (bool): whether the pass visited every training image; None if unknown.
        num_images (int): images seen; repetitions count.
        num_rois (int): RoIs seen.
        stop_at (float): target sampling error at which the pass may end; 0 for never.
        reached (bool): whether the target was met; None if none was set.
        provenance (dict): versions, weights, command, for human readers; never checked.

    Raises:
        StatisticsError: the number of columns of a stage does not fit the classes.

    Example:
        >>> import tempfile
        >>> stage = StageStatistics(
        ...     torch.tensor([-3.0, 4.0]), torch.tensor([2.0, 1.0]), torch.tensor([9, 9])
        ... )
        >>> statistics = LogitStatistics(stages=(stage,), class_names=("axolotl",))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     statistics.save(Path(folder, "stats.safetensors"))
        ...     LogitStatistics.load(Path(folder, "stats.safetensors")).class_names
        ('axolotl',)
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
    autocast: str | None = None
    activation: str | None = None
    site: str | None = None
    complete: bool | None = None
    num_images: int = 0
    num_rois: int = 0
    stop_at: float = 0.0
    reached: bool | None = None
    provenance: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        foreground = foreground_columns(self.background)
        for index, stage in enumerate(self.stages):
            found = len(stage.mean[foreground])
            if found != self.num_classes:
                raise StatisticsError(
                    f"Stage {index} has {len(stage.mean)} columns, {found} of them foreground "
                    f"(background: {self.background}), for {self.num_classes} class names."
                )

    @property
    def num_classes(self) -> int:
        """K."""
        return len(self.class_names)

    def sampling_error(self) -> float:
        """The largest standard error of a LogN logit, over stages and classes.

        See `logn_d2.core.sampling_error`: the maximum over foreground classes, for raw logits z
        from the class's mean to 3 standard deviations above.

        Raises:
            StatisticsError: moving averages, or statistics of a release without groups.
        """
        errors = [sampling_error(stage, background=self.background) for stage in self.stages]
        return float(torch.stack(errors).amax())

    def with_reached(self) -> LogitStatistics:
        """These statistics, with `reached` set from the sampling error."""
        reached = self.sampling_error() <= self.stop_at if self.stop_at > 0 else None
        # A pass that met its target may have stopped early, so it does not count as complete.
        return replace(self, reached=reached, complete=self.complete and not reached)

    def unlabelled(self, stage: int = 0) -> Tensor | None:
        """(K,) bool, the classes without a matched training RoI in this stage.

        None if unknown: the pass collected no labels, or did not visit all images.
        """
        posteriors = self.stages[stage].posteriors
        # After part of the images, a class without a label may just not have come yet.
        if not self.complete or posteriors is None or not posteriors.labelled:
            return None
        return posteriors.label_count[foreground_columns(self.background)] == 0

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the file; on failure an existing file stays intact.

        Raises:
            OSError: the folder can't be written or the disk is full.
        """
        tensors = {}
        for index, stage in enumerate(self.stages):
            tensors.update(stage.tensors(f"stage{index}"))
        fields = {name: getattr(self, name) for name in _METADATA}
        FILE.write(path, tensors, {**fields, "num_stages": len(self.stages)})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> LogitStatistics:
        """Read a statistics file.

        Raises:
            FileNotFoundError: the file does not exist.
            StatisticsError: the file is truncated, has another format, or is from a newer version.
        """
        path = Path(path)
        if not path.is_file():
            raise MissingFileError(
                f"There is no statistics file at '{path}'. Make one with: logn collect "
                "--config-file CONFIG --weights WEIGHTS --output PATH"
            )
        tensors, metadata = FILE.read(path)
        # A field of early releases: statistics of transformed logits do not fit raw ones.
        if metadata.get("logits", "raw") != "raw":
            raise StatisticsError(
                f"'{path}' contains statistics of logits that are not raw "
                f"({_shortened(metadata['logits'])}). Collect them again from this model's own "
                "logits."
            )
        try:
            stages = tuple(
                StageStatistics.from_tensors(tensors, f"stage{index}")
                for index in range(metadata["num_stages"])
            )
            # Older files lack fields that were added later.
            known = [name for name in _METADATA if name in metadata or name not in _ADDED_LATER]
            fields = {name: metadata[name] for name in known}
            for name in ("class_names", "datasets"):
                fields[name] = tuple(fields[name])
            return cls(stages=stages, **fields)
        except KeyError as error:
            raise StatisticsError(
                f"'{path}' lacks {error}; collect the statistics again."
            ) from None
        except ValueError as error:
            raise StatisticsError(f"'{path}' can't be used. {error}") from error
        except (AttributeError, IndexError, OverflowError, RuntimeError, TypeError) as error:
            # Files without a checksum may contain anything; any such error here is due to the file.
            raise StatisticsError(
                f"'{path}' is damaged: a field or tensor has another type or shape ({error}). "
                "Collect the statistics again."
            ) from error

    def __repr__(self) -> str:
        names = ", ".join(self.datasets) or "unknown data"
        return (
            f"LogitStatistics({self.num_classes} classes, {len(self.stages)} stages, "
            f"{self.num_images:,} images, {self.num_rois:,} RoIs of {names})"
        )

    def unusable_classes(self) -> tuple[str, ...]:
        """Classes with fewer than two logits, or a constant logit, in some stage."""
        usable = torch.stack([stage.usable for stage in self.stages]).all(dim=0)
        usable = usable[foreground_columns(self.background)].tolist()
        return tuple(name for name, good in zip(self.class_names, usable, strict=True) if not good)

    def check(
        self,
        *,
        num_classes: int,
        num_stages: int,
        class_names: Sequence[str] | None = None,
        fingerprints: Sequence[Tensor | None] = (),
    ) -> None:
        """Check that these statistics belong to a model.

        A single warning in the log names the classes without usable statistics.

        Args:
            num_classes (int): K of the model.
            num_stages (int): its number of box predictors.
            class_names (Sequence[str]): its classes, if known.
            fingerprints (Sequence[Tensor]): (C,) of each stage's classifier, if known.

        Raises:
            StatisticsError: the message says what was found, what was expected, and what to do.
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
        if class_names is not None:
            _check_class_names(class_names, self.class_names, source)
        # Not strict: without known fingerprints there is nothing to compare.
        for index, (stage, found) in enumerate(zip(self.stages, fingerprints)):
            _check_fingerprint(index, stage.fingerprint, found)
        unusable = self.unusable_classes()
        if len(unusable) == self.num_classes:
            raise StatisticsError(
                f"No class has two different logits in {source}: {self.num_images} "
                f"images and {self.num_rois} RoIs were seen. Check the data set, and collect again."
            )
        # Once per object: an evaluation checks the same statistics for each calibration and stage.
        if self in _CHECKED:
            return
        _CHECKED.add(self)
        if unusable:
            logger.warning(
                f"{len(unusable)} of {self.num_classes} classes have too few or constant logits in "
                f"{source}; LogN leaves them unchanged: {_listed(unusable)}."
            )
        found = [self.unlabelled(index) for index in range(len(self.stages))]
        known = [each for each in found if each is not None]
        classes = torch.stack(known).any(dim=0).nonzero().flatten().tolist() if known else []
        if classes:
            logger.warning(
                f"{len(classes)} of {self.num_classes} classes have no RoI in {source}, the first "
                f"is {self.class_names[classes[0]]!r}: LogN's beta ignores them."
            )

    def merge(self, other: LogitStatistics) -> LogitStatistics:
        """Statistics of both passes, for example of two shards of one data set.

        Raises:
            StatisticsError: moving averages, or passes that differ in more than their images.
        """
        for name in _SAME_WHEN_MERGED:
            mine, theirs = getattr(self, name), getattr(other, name)
            # None in a file from before the field existed may stand for either value, so it does
            # not differ.
            if mine != theirs and not (name in _ADDED_LATER and None in (mine, theirs)):
                raise StatisticsError(
                    f"Passes with different {name} can't be merged: {_shortened(mine)} and "
                    f"{_shortened(theirs)}."
                )
        if len(self.stages) != len(other.stages):
            raise StatisticsError(
                f"Passes over {len(self.stages)} and {len(other.stages)} stages can't be merged."
            )
        pairs = list(zip(self.stages, other.stages, strict=True))
        for index, (mine, theirs) in enumerate(pairs):
            _check_fingerprint(index, mine.fingerprint, theirs.fingerprint)
        # After the checks above, whose messages are closer to the cause.
        if any(stage.moments is None for stage in (*self.stages, *other.stages)):
            raise StatisticsError(
                "Moving averages depend on the order of images and can't be merged. Collect with "
                "the exact estimator (MODEL.LOGN.COLLECT.ESTIMATOR exact)."
            )
        return replace(
            self,
            stages=tuple(mine.merge(theirs) for mine, theirs in pairs),
            autocast=other.autocast if self.autocast is None else self.autocast,
            activation=other.activation if self.activation is None else self.activation,
            complete=self.complete and other.complete,
            datasets=tuple(dict.fromkeys((*self.datasets, *other.datasets))),
            num_images=self.num_images + other.num_images,
            num_rois=self.num_rois + other.num_rois,
        ).with_reached()


_METADATA = (
    "class_names", "background", "datasets", "population", "estimator", "momentum", "sampler",
    "augmented", "autocast", "activation", "site", "complete", "num_images", "num_rois", "stop_at",
    "reached", "provenance",
)  # fmt: skip
_ADDED_LATER = ("stop_at", "reached", "autocast", "activation", "site", "complete")
_SAME_WHEN_MERGED = (
    "class_names", "background", "population", "estimator", "sampler", "augmented", "autocast",
    "activation", "stop_at",
)  # fmt: skip


def _check_class_names(model: Sequence[str], statistics: Sequence[str], source: str) -> None:
    if len(model) != len(statistics):
        raise StatisticsError(
            f"The model's data set has {len(model)} class names, but {source} have "
            f"{len(statistics)}. Collect them again with this data set."
        )
    for index, (expected, found) in enumerate(zip(model, statistics, strict=True)):
        if expected != found:
            raise StatisticsError(
                f"The classes differ: class {index} is {expected!r} in the model's data set and "
                f"{found!r} in {source}. Collect them again with this data set."
            )


def _check_fingerprint(index: int, expected: Tensor | None, found: Tensor | None) -> None:
    if expected is None or found is None:
        return
    differs = fingerprint_differences(expected, found)
    if differs.any():
        raise StatisticsError(
            f"The statistics were collected with other weights: the classifier of stage {index} "
            f"differs in {int(differs.sum())} of {len(expected)} columns. Load the weights that "
            "they were collected with, or collect them again with these (`logn collect`)."
        )


# Statistics whose first check has warned of the classes that it can't serve.
_CHECKED: weakref.WeakSet[LogitStatistics] = weakref.WeakSet()


def _shortened(value: Any) -> str:
    """A value for an error message, at most 80 characters."""
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _listed(names: Sequence[str], limit: int = 10) -> str:
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
