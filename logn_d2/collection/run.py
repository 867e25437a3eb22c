"""The statistics pass: forward passes over the training set that end in a statistics file."""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Callable, Iterable, Mapping, Sequence, Sized
from dataclasses import replace
from pathlib import Path
from typing import Any

import detectron2
import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.evaluation import inference_on_dataset
from detectron2.utils import comm
from fvcore.common.timer import Timer
from torch import nn

import logn_d2

from ..core import LogitStatistics, StatisticsError
from ..core.affine import foreground_columns
from ..data.loader import build_statistics_loader, training_images
from ..data.rng import preserved_rng
from ..data.samplers import described_sampler
from ..errors import UserError
from ..modeling.attach import find_sites
from ..modeling.box_predictors import check_calibratable, num_classes_of
from ..modeling.recording import LogitRecorder, Recording, recorder_for
from ..passes.resume import BatchLoader, LoaderFactory, deciding_settings, loader_from, pass_digest
from ..passes.shards import ShardFolder, ShardKind, damaged
from ..sites import LogitSite, SiteRecorder, SiteRecording, layer_names
from .collector import LogitStatisticsCollector
from .stopping import StoppingLoader

logger = logging.getLogger(__name__)


def _read_partial(path: Path) -> Mapping[str, Any]:
    try:
        return LogitStatistics.load(path).provenance
    except StatisticsError as error:
        raise damaged(path, _PARTIAL.what, error) from error


# One file per process, beside the final statistics file.
_PARTIAL = ShardKind("statistics pass", ".safetensors", _read_partial)


def collect_statistics(
    model: nn.Module,
    loader: BatchLoader | LoaderFactory,
    *,
    class_names: Sequence[str] | None = None,
    datasets: Sequence[str] = (),
    population: str = "sampled",
    estimator: str = "exact",
    momentum: float = 5e-5,
    seed: int = 0,
    sampler: str = "TrainingSampler",
    augmented: bool = False,
    complete: bool | None = None,
    stop_at: float = 0.0,
    stop_period: int = 100,
    checkpoint: str | os.PathLike[str] | None = None,
    checkpoint_period: int = 1000,
    resume: bool = False,
    settings: Mapping[str, Any] | None = None,
    provenance: Mapping[str, Any] | None = None,
    site: LogitSite | None = None,
) -> LogitStatistics:
    """Collect the logit statistics of a detector, with forward passes only.

    Any Detectron2 model with box predictors is run up to their logits: no losses, no NMS, no masks,
    no gradients. docs/sites.md describes detectors without box predictors. Afterwards the model
    and all random generators are unchanged. With several processes, each visits its own share of
    the images.

    Args:
        model (nn.Module): the detector, with its weights loaded.
        loader (Iterable or Callable): batches of mapped images, with ground truth unless the
            population is "proposals", in the same order each time; see `build_statistics_loader`.
            With a function from the number of batches to skip to a loader, a resumed pass loads
            only the rest.
        class_names (Sequence[str]): K names; by default, numbers.
        datasets (Sequence[str]): names of the loader's data sets.
        population (str): "sampled", "proposals", "foreground" or "positives", or
            "images" for an image classifier; see `LogitStatistics`.
        estimator (str): "exact", "ema" or "ema_debiased".
        momentum (float): momentum of the moving averages.
        seed (int): seed of the sampling of RoIs.
        sampler (str): repetition of images by the loader, for the record.
        augmented (bool): whether the loader augments, for the record.
        complete (bool): whether the loader yields every training image. LogN's beta then ignores
            classes without matched RoIs. None if unknown.
        stop_at (float): stop as soon as the standard error that the statistics contribute to the
            calibrated logits is at most this in every class and stage (see `sampling_error`: for
            raw logits from a class's mean to 3 standard deviations above; 0.1 is a tenth of such a
            standard deviation). 0 visits all images. Needs images in random order and the exact
            estimator.
        stop_period (int): images of all processes between two checks of that error.
        checkpoint (PathLike): path of the future statistics file; partial files go beside it. None
            writes none.
        checkpoint_period (int): images of a process between two partial files.
        resume (bool): use partial files of the same settings and weights, if there are any.
        settings (Mapping): further settings that must be equal to resume, for example the loader's.
        provenance (Mapping): notes for human readers; JSON-serialisable.
        site (LogitSite): description of the logits in a model unknown to logn_d2.

    Returns:
        LogitStatistics: on every process, for the images of all processes (moving averages: of
        process 0).

    Raises:
        NonFiniteLogitsError: an image has NaN or infinite logits; it is named.
        ValueError: incompatible settings, an empty loader, or a model trained with a loss whose
            logits can't be calibrated.

    Example:
        >>> loader = functools.partial(build_statistics_loader, cfg)  # doctest: +SKIP
        >>> collect_statistics(model, loader).save("logn_stats.safetensors")  # doctest: +SKIP
    """
    check_calibratable(model)  # statistics of other logits are useless
    _check_class_names(model, class_names, site)
    _check_loader(loader)
    description = LogitStatistics(
        stages=(),
        class_names=tuple(class_names or ()),
        datasets=tuple(datasets),
        population=population,
        estimator=estimator,
        momentum=None if estimator == "exact" else momentum,
        sampler=sampler,
        augmented=augmented,
        complete=complete,
        stop_at=stop_at,
        provenance={**_versions(), "seed": seed, **(provenance or {})},
    )
    statistics, collector = _run_pass(
        model,
        loader,
        description,
        seed=seed,
        stop_period=stop_period,
        checkpoint=checkpoint,
        period=checkpoint_period,
        resume=resume,
        settings=settings or {},
        site=site,
    )
    collector.remove_partial_files()
    return statistics


def collect_from_config(
    cfg: CfgNode, model: nn.Module, output: str | os.PathLike[str], resume: bool = False
) -> LogitStatistics:
    """Collect statistics over ``cfg.DATASETS.TRAIN`` and write the statistics file.

    ``cfg.MODEL.LOGN.COLLECT`` has the settings. A killed pass loses at most CHECKPOINT_PERIOD
    images of each process; when resumed, it ends with the same numbers.

    Args:
        cfg (CfgNode): the model's config.
        model (nn.Module): the detector, with its weights loaded.
        output (PathLike): the statistics file; process 0 writes it.
        resume (bool): use partial files with the same settings and weights.

    Returns:
        LogitStatistics: on every process.

    Raises:
        NonFiniteLogitsError: an image has NaN or infinite logits; it is named.
        OSError: the folder can't be written or the disk is full.
        ValueError: there are no images, or incompatible settings.
    """
    collect = cfg.MODEL.LOGN.COLLECT
    dataset = training_images(cfg)
    description = LogitStatistics(
        stages=(),
        class_names=tuple(MetadataCatalog.get(cfg.DATASETS.TRAIN[0]).get("thing_classes", ())),
        datasets=tuple(cfg.DATASETS.TRAIN),
        population=collect.POPULATION,
        estimator=collect.ESTIMATOR,
        momentum=None if collect.ESTIMATOR == "exact" else collect.MOMENTUM,
        sampler=described_sampler(cfg) if collect.REPEAT else "TrainingSampler",
        augmented=collect.AUGMENT,
        # A limit of 0, or one beyond the data set, leaves no image out.
        complete=not 0 < collect.MAX_IMAGES < len(dataset),
        stop_at=collect.STOP_AT,
        provenance={
            **_versions(),
            "weights": cfg.MODEL.WEIGHTS,
            "max_images": collect.MAX_IMAGES,
            "seed": collect.SEED,
        },
    )
    statistics, collector = _run_pass(
        model,
        functools.partial(build_statistics_loader, cfg, dataset=dataset),
        description,
        seed=collect.SEED,
        stop_period=collect.STOP_PERIOD,
        checkpoint=output,
        period=collect.CHECKPOINT_PERIOD,
        resume=resume,
        # The whole model and input configs: a pass with another image size must not resume this
        # one.
        settings=deciding_settings(cfg, collects=True),
    )
    if comm.is_main_process():
        # Before the partial files go: a full disk must not cost the pass.
        statistics.save(output)
        logger.info("Wrote the statistics to %s", Path(output))
    collector.remove_partial_files()
    return statistics


def _run_pass(
    model: nn.Module,
    loader: BatchLoader | LoaderFactory,
    description: LogitStatistics,
    *,
    seed: int,
    stop_period: int,
    checkpoint: str | os.PathLike[str] | None,
    period: int,
    resume: bool,
    settings: Mapping[str, Any],
    site: LogitSite | None = None,
) -> tuple[LogitStatistics, LogitStatisticsCollector]:
    """The pass itself; the caller removes partial files after saving the result."""
    _check_population(model, description.population)
    # Samplers and augmentation draw numbers; a training with statistics passes in between must go
    # on as if it had not.
    with preserved_rng():
        first = loader_from(loader, 0)
        partial = None
        if checkpoint is not None:
            # Without the notes, which differ between machines and commands but not the result.
            described = {**vars(replace(description, provenance={})), "seed": seed, **settings}
            described["stop_period"] = stop_period
            if site is not None:
                described["layers"] = layer_names(model, site)
            digest, output = pass_digest(model, first, described), Path(checkpoint)
            # Named after the future file, so that two passes into one folder stay apart.
            prefix = f"{output.stem}.partial-"
            partial = ShardFolder(output.parent, _PARTIAL, digest, resume=resume, prefix=prefix)
        # The last file contains all earlier batches.
        saved = LogitStatistics.load(partial.paths[-1]) if partial and partial.paths else None
        collector = LogitStatisticsCollector(
            description, partial=partial, period=period, saved=saved
        )
        batches = collector.num_batches
        rest = loader_from(loader, batches) if batches else first
        if description.stop_at > 0:
            # The loader ends the pass, since `inference_on_dataset` has no other way to stop.
            rest = StoppingLoader(rest, collector, description.stop_at, stop_period)
        # "foreground" and "positives" are parts of the sampled RoIs, which the collector selects.
        as_at_test = description.population in ("proposals", "images")
        population = "proposals" if as_at_test else "sampled"
        images_before, timer = collector.num_images, Timer()
        recorder = recorder_for(model, population, seed, site)
        results = inference_on_dataset(_repeats_sampled_anew(recorder), rest, collector)
    seconds = timer.seconds()
    statistics = results["statistics"]
    _log_summary(statistics, collector.num_images - images_before, seconds)
    return statistics, collector


def _check_class_names(
    model: nn.Module, class_names: Sequence[str] | None, site: LogitSite | None
) -> None:
    """Check before a pass that these can be the names of the model's classes."""
    if isinstance(class_names, str):
        raise UserError(
            f"class_names is the text {class_names!r}; expected a sequence of names, such as "
            '["bolt", "nut"].'
        )
    # All stages have the same classes, so the first one tells.
    num_classes = num_classes_of(find_sites(model, site)[0].classifier)
    if class_names and num_classes is not None and len(class_names) != num_classes:
        raise UserError(
            f"The model has {num_classes} classes, but {len(class_names)} class names were given. "
            "Use those of the data set that the model was trained on."
        )


def _check_population(model: nn.Module, population: str) -> None:
    """Check that the population is of regions for a detector, or of images for a classifier."""
    of_images = any(getattr(module, "classifies_images", False) for module in model.modules())
    if of_images != (population == "images"):
        raise UserError(
            f"The population is {population!r}, but this {type(model).__name__} classifies "
            f"{'whole images' if of_images else 'regions'}. Expected "
            f"{'images' if of_images else 'sampled, proposals, foreground or positives'} "
            "(MODEL.LOGN.COLLECT.POPULATION)."
        )


def _check_loader(loader: BatchLoader | LoaderFactory) -> None:
    """Refuse loaders that never end, and images outside batches."""
    if isinstance(loader, Iterable) and not isinstance(loader, Sized):
        raise UserError(
            f"A pass needs a loader that ends, and a {type(loader).__name__} has no length. Use "
            "build_statistics_loader(cfg) or detectron2.data.build_detection_test_loader(..., "
            "mapper=DatasetMapper(cfg, is_train=True, augmentations=[...])), not a training loader."
        )
    if isinstance(loader, Sequence) and loader and isinstance(loader[0], Mapping):
        raise UserError(
            "The loader yields images, expected batches: lists of images. Write "
            "[[image] for image in images]."
        )


def _repeats_sampled_anew(
    recorder: LogitRecorder | SiteRecorder,
) -> Callable[[Sequence[Mapping]], Recording | SiteRecording]:
    """The recorder with new RoIs for each repetition of an image, as in training."""

    def record(inputs: Sequence[Mapping[str, Any]]) -> Recording | SiteRecording:
        # The image's id determines the sampled RoIs, so each repetition gets an id of its own.
        names = [f"{x.get('image_id')}/{x.get('statistics_index', '')}" for x in inputs]
        return recorder([{**x, "image_id": n} for x, n in zip(inputs, names, strict=True)])

    return record


def _log_summary(statistics: LogitStatistics, num_images: int, seconds: float) -> None:
    # Rates add up over processes; times do not.
    rate = sum(comm.all_gather(num_images / max(seconds, 1e-9)))
    logger.info(
        "Statistics (%s, %s) of %d images, %d RoIs, %d classes: %.2f images/s on %d processes",
        statistics.population,
        statistics.estimator,
        statistics.num_images,
        statistics.num_rois,
        statistics.num_classes,
        rate,
        comm.get_world_size(),
    )
    if statistics.stop_at > 0:
        logger.info(
            "Standard error of calibrated logits: %.4f; the target of %g was %s",
            statistics.sampling_error(),
            statistics.stop_at,
            "reached" if statistics.reached else "not reached with all images",
        )
    for index, stage in enumerate(statistics.stages):
        unusable = int((~stage.usable[foreground_columns(statistics.background)]).sum())
        if unusable:
            logger.warning(
                "Box predictor %d: %d of %d classes have no usable statistics; their logits will "
                "not be calibrated.",
                index,
                unusable,
                statistics.num_classes,
            )


def _versions() -> dict[str, str]:
    return {
        "torch": torch.__version__,
        "detectron2": detectron2.__version__,
        "logn_d2": logn_d2.__version__,
    }
