"""Evaluation of one model with and without calibration."""

from __future__ import annotations

import functools
import json
import logging
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pycocotools.mask as mask_util
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog, build_detection_test_loader
from detectron2.evaluation import DatasetEvaluator, inference_on_dataset
from detectron2.structures import Boxes, Instances
from detectron2.utils import comm
from torch import nn

from .. import UNCALIBRATED
from ..analysis import format_table
from ..core import AffineCalibration, ClassCounts, LogitStatistics
from ..data import check_same_classes
from ..data.loader import build_evaluation_loader
from ..errors import UserError
from ..evaluators import LVISFormEvaluator, resumable_inference, training_groups
from ..files import as_file_name, atomic_write
from ..lvis import Detections, LvisGroundTruth
from ..modeling import (
    attach,
    check_calibratable,
    find_box_predictors,
)
from ..modeling.attach import calibrations_at, find_sites
from ..modeling.box_predictors import num_classes_of, unwrapped
from ..modeling.build import known_class_names
from ..passes.resume import deciding_settings
from ..sites import known_site, site_detector
from ..sweeps import SweepDetections, evaluate_sweep, sweep
from .images import image_table, one_pass_for_images

__all__ = [
    "Calibrations",
    "Results",
    "calibration_name",
    "check_head",
    "evaluate_calibrations",
    "groups_of_training",
    "make_calibrations",
    "read_ground_truth",
]

logger = logging.getLogger(__name__)

Metrics = Mapping[str, Mapping[str, float]]
Calibrations = Mapping[str, Sequence[AffineCalibration]]
BuildEvaluator = Callable[[CfgNode, str], DatasetEvaluator]

Results = dict
"""``{"uncalibrated/bbox": {"AP": percent, ...}, "logn/bbox": ...}``, or one such dict for each data
set if there are several."""

# At most this many images with their masks are in memory before a chunk is written.
MAX_CHUNK = 200


def calibration_name(cfg: CfgNode, has_statistics: bool) -> str:
    """The calibration named by the config; "" for none."""
    text = cfg.MODEL.LOGN.CALIBRATION or ("logn" if has_statistics else "")
    return "" if text == UNCALIBRATED else text


def check_head(model: nn.Module) -> None:
    """Check that calibrations can be applied to a model's logits.

    Args:
        model (nn.Module): the detector.

    Raises:
        ValueError: the model has no box predictors, or a loss whose logits can't be calibrated.
    """
    site = known_site(model)
    if site is not None:
        site.check_detections(site_detector(model))
        return
    try:
        find_box_predictors(model)
    except ValueError as error:
        raise UserError(
            f"{error} To train it without statistics and calibration, set "
            "MODEL.LOGN.COLLECT.ENABLED False."
        ) from error
    check_calibratable(model)


def evaluate_calibrations(
    cfg: CfgNode,
    model: nn.Module,
    calibrations: Calibrations,
    *,
    build_evaluator: BuildEvaluator,
    resume: bool = False,
) -> Results:
    """Evaluate ``cfg.DATASETS.TEST`` without calibration, and with the config's calibration.

    The network runs once for image classifiers, and for data sets in LVIS or COCO format without
    keypoints. The results of each data set are written to
    OUTPUT_DIR/inference/DATASET/results.json, and the AP of each class to CSV files beside it.

    Args:
        cfg (CfgNode): the model's config.
        model (nn.Module): a model that returns raw logits, with its weights loaded.
        calibrations (Mapping): see `make_calibrations`.
        build_evaluator (Callable): (cfg, data set name) -> evaluator, for other formats.
        resume (bool): resume an interrupted pass.

    Returns:
        dict: "NAME/TASK" -> metrics in percent; for several data sets, data set -> such a dict.
            Empty on all processes but the first.
    """
    model = unwrapped(model)
    results: Results = {}
    for dataset in cfg.DATASETS.TEST:
        kind = MetadataCatalog.get(dataset).get("evaluator_type", None)
        table = format_table
        if kind == "classification":
            folder, table = _folder(cfg, dataset), image_table
            found = one_pass_for_images(cfg, model, dataset, calibrations, folder)
        elif calibrations[UNCALIBRATED] and kind == "lvis":
            found = _one_pass(cfg, model, dataset, calibrations, resume)
        elif calibrations[UNCALIBRATED] and kind == "coco" and not cfg.MODEL.KEYPOINT_ON:
            found = _one_pass_for_evaluators(
                cfg, model, dataset, calibrations, build_evaluator, resume
            )
        else:
            found = _one_pass_each(cfg, model, dataset, calibrations, build_evaluator, resume)
        if comm.is_main_process():
            results[dataset] = _report(cfg, dataset, found, table)
    return next(iter(results.values())) if len(results) == 1 else results


def make_calibrations(
    cfg: CfgNode,
    model: nn.Module,
    statistics: LogitStatistics | None,
    counts: Callable[[], ClassCounts],
) -> Calibrations:
    """The calibrations that an evaluation compares.

    Args:
        cfg (CfgNode): MODEL.LOGN.CALIBRATION names one calibration.
        model (nn.Module): a model that returns raw logits, with its weights loaded.
        statistics (LogitStatistics): statistics of its weights; None if there are none.
        counts (Callable): returns the class counts of the training set, for calibrations that need
            them.

    Returns:
        dict: name -> one calibration for each stage, "uncalibrated" first. That entry is empty for
            a model that can't be calibrated.

    Raises:
        ValueError: the head can't be calibrated, or the statistics belong to another model.
    """
    model, text = unwrapped(model), calibration_name(cfg, statistics is not None)
    if not text and not _takes_calibrations(model):
        return {UNCALIBRATED: ()}  # without calibration any model can be evaluated
    check_head(model)
    sites = find_sites(model)
    # Not the training set's, which need not be present for an evaluation.
    names = known_class_names(cfg.DATASETS.TEST, num_classes_of(sites[0].classifier))
    options = {"statistics": statistics, "counts": counts, "class_names": names}
    return {name: calibrations_at(sites, name, **options) for name in (UNCALIBRATED, text) if name}


def read_ground_truth(
    dataset: str, train_datasets: Sequence[str] = (), *, masks: bool = True
) -> LvisGroundTruth:
    """The annotations of a registered data set, with a frequency group for each class.

    Args:
        dataset (str): its name.
        train_datasets (Sequence[str]): training sets whose image counts define the frequency groups
            if the data set itself has none, as in COCO format.
        masks (bool): False leaves segmentations out.
    """
    truth = LvisGroundTruth.from_json(MetadataCatalog.get(dataset).json_file, masks=masks)
    if truth.groups is not None:
        return truth
    return replace(truth, groups=groups_of_training(dataset, train_datasets))


def groups_of_training(dataset: str, train_datasets: Sequence[str]) -> np.ndarray | None:
    """Group of each class, (K,); None if training sets are missing or have other classes."""
    names = MetadataCatalog.get(dataset).get("thing_classes")
    try:
        for train in train_datasets:
            check_same_classes(train, dataset)
        return training_groups(train_datasets) if train_datasets and names else None
    except (AttributeError, KeyError, OSError, ValueError) as error:
        logger.info("No AP by groups of training images for %s: %s", dataset, error)
        return None


def _one_pass(
    cfg: CfgNode, model: nn.Module, dataset: str, calibrations: Calibrations, resume: bool
) -> dict[str, Metrics]:
    """Name -> task -> metrics; empty on all processes but the first."""
    tasks = ("bbox", "segm") if cfg.MODEL.MASK_ON else ("bbox",)
    # Only the first process evaluates, so the others need no masks of the ground truth.
    masks = "segm" in tasks and comm.is_main_process()
    ground_truth = read_ground_truth(dataset, cfg.DATASETS.TRAIN, masks=masks)
    swept = _swept(cfg, model, dataset, calibrations, resume, ground_truth)
    if not comm.is_main_process():
        return {}
    return evaluate_sweep(swept, ground_truth, tasks, per_class_folder=_folder(cfg, dataset))


def _swept(
    cfg: CfgNode,
    model: nn.Module,
    dataset: str,
    calibrations: Calibrations,
    resume: bool,
    ground_truth: LvisGroundTruth | None = None,
) -> SweepDetections:
    return sweep(
        model,
        functools.partial(_loader, cfg, dataset),
        calibrations,
        average=cfg.MODEL.LOGN.CASCADE_AVERAGE,
        ground_truth=ground_truth,
        output_dir=os.path.join(_folder(cfg, dataset), "sweep"),
        chunk_size=min(cfg.MODEL.LOGN.COLLECT.CHECKPOINT_PERIOD, MAX_CHUNK),
        resume=resume,
        settings=deciding_settings(cfg),
    )


def _one_pass_for_evaluators(
    cfg: CfgNode,
    model: nn.Module,
    dataset: str,
    calibrations: Calibrations,
    build_evaluator: BuildEvaluator,
    resume: bool,
) -> dict[str, Metrics]:
    """Run the network once, then an evaluator for each calibration on the sweep's detections."""
    swept = _swept(cfg, model, dataset, calibrations, resume)
    records = DatasetCatalog.get(dataset) if comm.is_main_process() else []
    results = {}
    for name in calibrations:
        evaluator = build_evaluator(_with_own_folder(cfg, dataset, name, calibrations), dataset)
        evaluator.reset()
        if comm.is_main_process():
            detections = swept.detections(name)
            for record, instances in zip(records, _instances(records, detections), strict=True):
                evaluator.process([record], [{"instances": instances}])
        # On every process, because some evaluators have collective calls.
        results[name] = evaluator.evaluate()
    return results


def _instances(records: Sequence[Mapping], detections: Detections) -> Iterator[Instances]:
    """Detections of each image, as a model returns them."""
    # Sorted once: comparing ids for each image would take time quadratic in the images.
    order = np.argsort(detections.image_id, kind="stable")
    sorted_ids = detections.image_id[order]
    for record in records:
        first, end = (np.searchsorted(sorted_ids, record["image_id"], s) for s in ("left", "right"))
        mine = detections.take(order[first:end])
        size = record["height"], record["width"]
        corners = np.concatenate([mine.box[:, :2], mine.box[:, :2] + mine.box[:, 2:]], axis=1)
        instances = Instances(size)
        instances.pred_boxes = Boxes(torch.from_numpy(corners).float())
        instances.scores = torch.from_numpy(mine.score)
        instances.pred_classes = torch.from_numpy(mine.category.astype(np.int64))
        if mine.masks is not None:
            masks = [mask_util.decode(rle) for rle in mine.masks.to_dicts()]
            instances.pred_masks = torch.from_numpy(
                np.stack(masks) if masks else np.zeros((0, *size), dtype=np.uint8)
            ).bool()
        yield instances


def _with_own_folder(cfg: CfgNode, dataset: str, name: str, calibrations: Calibrations) -> CfgNode:
    """A config with a folder of its own for a calibration, if there are several."""
    own = cfg.clone()
    own.defrost()
    if len(calibrations) > 1 or len(cfg.DATASETS.TEST) > 1:
        own.OUTPUT_DIR = os.path.join(_folder(cfg, dataset), as_file_name(name))
    return own


def _loader(cfg: CfgNode, dataset: str, skip: int) -> object:
    return build_evaluation_loader(cfg, dataset, skip=skip)


def _one_pass_each(
    cfg: CfgNode,
    model: nn.Module,
    dataset: str,
    calibrations: Calibrations,
    build_evaluator: BuildEvaluator,
    resume: bool,
) -> dict[str, Metrics]:
    """Run the network once for each calibration, for evaluators that can't use a sweep."""
    results = {}
    for name, stages in calibrations.items():
        evaluator = build_evaluator(_with_own_folder(cfg, dataset, name, calibrations), dataset)
        with attach(model, list(stages)) if stages else nullcontext():
            if isinstance(evaluator, LVISFormEvaluator):
                results[name] = resumable_inference(
                    model,
                    functools.partial(_loader, cfg, dataset),
                    evaluator,
                    settings={"calibration": name, **deciding_settings(cfg)},
                    resume=resume,
                )
            else:
                loader = build_detection_test_loader(cfg, dataset)
                results[name] = inference_on_dataset(model, loader, evaluator)
    return results


def _takes_calibrations(model: nn.Module) -> bool:
    try:
        check_head(model)
    except ValueError:  # without box predictors, or with a loss that can't be calibrated
        return False
    return True


def _folder(cfg: CfgNode, dataset: str) -> str:
    return os.path.join(cfg.OUTPUT_DIR, "inference", dataset)


def _report(
    cfg: CfgNode,
    dataset: str,
    results: Mapping[str, Metrics],
    table: Callable[[Mapping[str, Metrics]], str],
) -> dict[str, dict[str, float]]:
    """Print and write the results of a data set; return them under Detectron2's names."""
    logger.info("Results on %s, in percent:\n%s", dataset, table(results))
    _write_results(os.path.join(_folder(cfg, dataset), "results.json"), results)
    return {
        f"{name}/{task}": dict(metrics)
        for name, by_task in results.items()
        for task, metrics in by_task.items()
    }


def _write_results(path: str, results: Mapping[str, Metrics]) -> None:
    """Write the file that `logn report` reads."""
    rows = [
        {"calibration": name, **{task: _with_null(metrics) for task, metrics in by_task.items()}}
        for name, by_task in results.items()
    ]
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps({"rows": rows}, indent=1))


def _with_null(metrics: Mapping[str, float]) -> dict[str, float | None]:
    """Replace NaN, which JSON does not have, by None."""
    return {name: None if math.isnan(value) else value for name, value in metrics.items()}
