"""Collects per-class logit statistics from recorded forward passes.

Shapes: R RoIs of one image, K foreground classes, C = K + 1 logit columns (background last),
S cascade stages. Logits are in nats.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm
from torch import Tensor

from ..core import (
    EmaLogitMoments,
    LogitMoments,
    LogitStatistics,
    NonFiniteLogitsError,
    PosteriorMoments,
    StageStatistics,
)
from ..core.affine import Background, foreground_columns
from ..core.moments import blocks
from ..errors import UserError, check_choice
from ..passes.shards import ShardFolder

if TYPE_CHECKING:
    from ..modeling.recording import Recording
    from ..modeling.stages import StageOutput

logger = logging.getLogger(__name__)

POPULATIONS = ("sampled", "proposals", "foreground", "positives", "images")
ESTIMATORS = ("exact", "ema", "ema_debiased")


class LogitStatisticsCollector(DatasetEvaluator):
    """An evaluator whose result is a `LogitStatistics`.

    It processes `Recording` objects: use it in `inference_on_dataset` with a `LogitRecorder`
    instead of the model, as `collect_statistics` does.

    Args:
        description (LogitStatistics): description of the pass, without stages (class names, data
            sets, population, estimator, momentum, ...). Without class names, classes are numbered.
        partial (ShardFolder): folder of the partial statistics; None saves none.
        period (int): images between two partial files.
        saved (LogitStatistics): content of a partial file from which to resume.

    Raises:
        ValueError: an unknown population or estimator, or an unsupported combination.
    """

    def __init__(
        self,
        description: LogitStatistics | None = None,
        *,
        partial: ShardFolder | None = None,
        period: int = 1000,
        saved: LogitStatistics | None = None,
    ) -> None:
        self._description = description or LogitStatistics(stages=(), class_names=())
        _check_description(self._description)
        self._partial = partial
        self._period = max(period, 1)
        self._saved = saved
        self.reset()

    def reset(self) -> None:
        """Discard everything except the content of the partial file."""
        self._moments: list[LogitMoments | EmaLogitMoments] = []
        self._posteriors: list[PosteriorMoments | None] = []
        self._fingerprints: list[Tensor | None] = []
        self.num_images = self.num_rois = self.num_batches = self._images_on_disk = 0
        # `inference_on_dataset` resets an evaluator before a pass, so a resumed one is restored
        # here.
        if self._saved is not None:
            self._restore(self._saved)

    def process(self, inputs: Sequence[Mapping[str, Any]], outputs: Recording) -> None:
        """Add the RoIs of some images.

        All RoIs of one "image_id" depend on each other: repetitions are not new images.

        Args:
            inputs (Sequence[Mapping]): N mapped images; "statistics_weight" is the weight of one.
            outputs (Recording): the model's outputs for them.

        Raises:
            NonFiniteLogitsError: an image has NaN or infinite logits; it is named.
        """
        # From stages of a batch to images with all their stages: an image is the unit of weights
        # and groups.
        images = zip(*map(self._per_image, outputs.stages), strict=True)
        if not self._moments:
            self._start(outputs)
        for image, stages in zip(inputs, images, strict=True):
            for index, (logits, labels) in enumerate(stages):
                self._update(index, logits, labels, image)
            self.num_images += 1
            self.num_rois += len(stages[0][0])
        self.num_batches += 1
        if self._partial is not None and self.num_images - self._images_on_disk >= self._period:
            batches = self.num_batches - self._partial.num_batches
            # One file with everything so far: the state is small and does not grow with the number
            # of images.
            self._partial.write(batches, self._statistics(partial=True).save, replace=True)
            self._images_on_disk = self.num_images

    def evaluate(self) -> dict[str, LogitStatistics]:
        """Merge the statistics of all processes.

        Returns:
            dict: "statistics", on every process. Moving averages can't be merged: these are those
            of process 0, as in the released code.

        Raises:
            ValueError: no process had an image.
        """
        # A process without images has no statistics: with a few images, some processes stay idle.
        parts = [part for part in comm.all_gather(self.own_statistics()) if part is not None]
        if not parts:
            raise UserError(
                "There was no image, so there are no statistics. Is the data loader empty?"
            )
        if self._description.estimator == "exact":
            # In the order of ranks on every process, so that all round alike.
            return {"statistics": functools.reduce(LogitStatistics.merge, parts).with_reached()}
        if len(parts) > 1 and comm.is_main_process():
            logger.warning(
                "Moving averages can't be merged: these are from process 0 alone, 1/%d of the "
                "images, as in the released code. Use the exact estimator, or one process.",
                comm.get_world_size(),
            )
        return {"statistics": parts[0]}

    def own_statistics(self) -> LogitStatistics | None:
        """Statistics of this process so far; None before its first image."""
        return self._statistics() if self._moments else None

    def remove_partial_files(self) -> None:
        """Remove the partial files of all processes; call it after the result is saved."""
        # Process 0 removes the files of all processes, so all must be done with theirs.
        comm.synchronize()
        if self._partial is not None and comm.is_main_process():
            self._partial.clear()

    def _start(self, outputs: Recording) -> None:
        """Create empty moments; the first output shows the number of classes."""
        description = self._description
        first = outputs.stages[0]
        logits, background = first.logits, first.background
        num_columns, names = logits.shape[1], description.class_names
        num_classes = num_columns - (background != "none")
        if names and len(names) != num_classes:
            raise UserError(
                f"The model has {num_classes} classes, but {len(names)} class names were given "
                f"(of {', '.join(description.datasets) or 'no data set'}). Use the data set that "
                "the model was trained on."
            )
        names = names or tuple(map(str, range(num_classes)))
        # Read while a pass runs: the caller may have entered autocast around it.
        autocast = _autocast(logits.device.type)
        self._description = replace(
            description,
            class_names=names,
            autocast=autocast,
            activation="sigmoid" if first.has_sigmoid_scores else "softmax",
            background=background,
            site=first.site,
        )
        # Apple's devices have no float64.
        device = torch.device("cpu") if logits.device.type == "mps" else logits.device
        for stage in outputs.stages:
            if description.estimator == "exact":
                self._moments.append(LogitMoments(num_columns, device))
            else:
                self._moments.append(EmaLogitMoments(num_columns, description.momentum, device))
            gathers = gathers_posteriors(description.estimator, description.population)
            self._posteriors.append(PosteriorMoments(num_columns, device) if gathers else None)
            self._fingerprints.append(stage.fingerprint())

    def _per_image(self, stage: StageOutput) -> list[_OfImage]:
        """RoIs of the population for each image."""
        population = self._description.population
        logits = stage.logits.split(stage.lengths)
        if population == "proposals":  # not matched
            return [(of_image, None) for of_image in logits]
        pairs = zip(logits, stage.labels, strict=True)
        return [_select(population, *pair, stage.background) for pair in pairs]

    def _update(
        self,
        stage: int,
        logits: Tensor,
        labels: Tensor | None,
        image: Mapping[str, Any],
    ) -> None:
        moments = self._moments[stage]
        try:
            if not isinstance(moments, LogitMoments):
                # Moving averages take an image as a batch, as the released code does with one image
                # per process.
                moments.update(logits)
                return
            of_image = {
                "weight": image.get("statistics_weight", 1.0),
                "image": _name(image, logits),
            }
            # In blocks, because a dense detector's float64 copy of an image's logits may take
            # gigabytes.
            for part in blocks(logits, labels):
                self._add(moments, self._posteriors[stage], *part, of_image)
        except NonFiniteLogitsError as error:
            name = image.get("file_name", f"image {image.get('image_id')}")
            raise NonFiniteLogitsError(
                f"'{name}', box predictor {stage}: {error} If only this image does it, look at the "
                "file; if the first image does, the weights are broken or the pixel mean and "
                "standard deviation are not those of training."
            ) from error

    def _add(
        self,
        moments: LogitMoments,
        posteriors: PosteriorMoments | None,
        logits: Tensor,
        labels: Tensor | None,
        of_image: Mapping[str, Any],
    ) -> None:
        """Add a block of an image's RoIs."""
        logits = logits.to(moments.mean.device, torch.float64)  # once for both
        mask = None
        if self._description.population == "positives":
            columns = torch.arange(logits.shape[1], device=logits.device)
            # Compared column by column: labels outside the columns count nowhere.
            mask = labels.to(logits.device)[:, None] == columns
        moments.update(logits, mask, **of_image)
        if posteriors is not None:
            sigmoid = self._description.activation == "sigmoid"
            # From float64 logits: posteriors of rare classes are tiny, and float32 would round
            # their sums.
            scores = logits.sigmoid() if sigmoid else logits.softmax(dim=1)
            posteriors.update(logits, scores, labels, **of_image)

    def _statistics(self, partial: bool = False) -> LogitStatistics:
        """Statistics of this process; ``partial`` for a file from which to resume."""
        stages = [
            self._stage_statistics(*each, raw=partial)
            for each in zip(self._moments, self._posteriors, self._fingerprints, strict=True)
        ]
        provenance = dict(self._description.provenance)
        if partial:
            steps = [int(m.steps) for m in self._moments if isinstance(m, EmaLogitMoments)]
            # What a resumed pass needs and a finished file does not have.
            provenance = {"batches": self.num_batches, "steps": steps}
        return replace(
            self._description,
            stages=tuple(stages),
            num_images=self.num_images,
            num_rois=self.num_rois,
            provenance=provenance,
        )

    def _stage_statistics(
        self,
        moments: LogitMoments | EmaLogitMoments,
        posteriors: PosteriorMoments | None,
        fingerprint: Tensor | None,
        raw: bool,
    ) -> StageStatistics:
        if isinstance(moments, LogitMoments):
            # On the CPU, so that statistics of all processes and devices can be merged.
            return StageStatistics.from_moments(moments.to("cpu"), fingerprint, posteriors)
        mean, var = moments.mean, moments.var
        # A partial file has the raw averages, because the next steps start from these.
        if self._description.estimator == "ema_debiased" and not raw and moments.steps > 0:
            mean, var = moments.debiased()
        return StageStatistics(mean.cpu(), var.cpu(), moments.count.cpu(), fingerprint=fingerprint)

    def _restore(self, saved: LogitStatistics) -> None:
        """Invert ``_statistics(partial=True)``."""
        known = ("class_names", "autocast", "activation", "background", "site")
        # What the first output of the interrupted pass has shown; `_start` is not called again.
        self._description = replace(
            self._description, **{name: getattr(saved, name) for name in known}
        )
        for index, stage in enumerate(saved.stages):
            self._fingerprints.append(stage.fingerprint)
            self._posteriors.append(stage.posteriors and stage.posteriors.to("cpu"))  # a copy
            if stage.moments is not None:
                self._moments.append(LogitMoments.merged([stage.moments]))  # a copy
                continue
            state = {"mean": stage.mean, "var": stage.var, "count": stage.count}
            state["steps"] = torch.tensor(saved.provenance["steps"][index])
            self._moments.append(EmaLogitMoments.from_state_dict(state, self._description.momentum))
        self.num_images = self._images_on_disk = saved.num_images
        self.num_rois = saved.num_rois
        self.num_batches = saved.provenance["batches"]


_OfImage = tuple[Tensor, "Tensor | None"]
"""Logits (R, C); labels (R,), None if unknown."""


def _name(image: Mapping[str, Any], logits: Tensor) -> Hashable | None:
    """The key of an image's group; without an id, its first RoI, the same for all blocks."""
    name = image.get("image_id", image.get("file_name"))
    if name is None and len(logits):
        return logits[0].double().cpu().numpy().tobytes()
    return name


def _select(
    population: str, logits: Tensor, labels: Tensor | None, background: Background = "last"
) -> _OfImage:
    """The part of an image's matched RoIs that belongs to a population.

    Args:
        population (str): "sampled", "images", "foreground" or "positives".
        logits (Tensor): (R, C).
        labels (Tensor): (R,) columns; K for background without a column, negative for RoIs to
            ignore.
        background (str): position of the background column.
    """
    if population == "foreground":
        # By columns and not by `labels < K`: with the background first, label 0 is background.
        columns = torch.arange(logits.shape[1], device=labels.device)
        chosen = torch.isin(labels, columns[foreground_columns(background)])
        return logits[chosen], labels[chosen]
    return logits, labels


def gathers_posteriors(estimator: str, population: str) -> bool:
    """Whether such a pass collects posteriors: only if every RoI counts for every column."""
    return estimator == "exact" and population != "positives"


def _autocast(device_type: str) -> str | None:
    """The active type of mixed precision, "" without it, None if PyTorch is too old to say."""
    if not hasattr(torch, "get_autocast_dtype"):
        return None
    if not torch.is_autocast_enabled(device_type):
        return ""
    return str(torch.get_autocast_dtype(device_type)).removeprefix("torch.")


def _check_description(description: LogitStatistics) -> None:
    population, estimator = description.population, description.estimator
    check_choice("The population (MODEL.LOGN.COLLECT.POPULATION)", population, POPULATIONS)
    check_choice("The estimator (MODEL.LOGN.COLLECT.ESTIMATOR)", estimator, ESTIMATORS)
    if description.stop_at < 0 or (description.stop_at > 0 and estimator != "exact"):
        raise UserError(
            f"stop_at is {description.stop_at} with the estimator {estimator}: expected a "
            f"positive error for exact statistics, or 0 to visit all images. Moving averages have "
            f"no standard error (MODEL.LOGN.COLLECT.STOP_AT and ESTIMATOR)."
        )
    if description.stop_at > 0 and population == "positives":
        raise UserError(
            f"stop_at is {description.stop_at} with the population positives: expected 0. A class "
            "without positives in two images has no standard error, and rare classes would let the "
            "pass run to its end. Set MODEL.LOGN.COLLECT.STOP_AT to 0, or POPULATION to sampled, "
            "where every image counts for every class."
        )
    if estimator != "exact" and population == "positives":
        raise UserError(
            "Moving averages of positives do not exist: an image has none for most classes. Set "
            "MODEL.LOGN.COLLECT.ESTIMATOR to exact."
        )
