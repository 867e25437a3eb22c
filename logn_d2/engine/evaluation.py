"""Evaluation of one model with and without calibration."""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

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
from ..files import as_file_name
from ..lvis import Detections, LvisGroundTruth
from ..modeling import attach, check_calibratable, find_box_predictors
from ..modeling.attach import calibrations_at, find_sites
from ..modeling.box_predictors import num_classes_of, unwrapped
from ..modeling.build import known_class_names
from ..passes.resume import deciding_settings
from ..provenance import provenance
from ..results import ResultRow
from ..results import Results as ResultsFile
from ..sites import known_site, site_detector
from ..sweeps import SweepDetections, evaluate_sweep, sweep
from .images import image_table, one_pass_for_images

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
    results: Results = {}
    for dataset in cfg.DATASETS.TEST:
        evaluation = _Evaluation(
            cfg, unwrapped(model), dataset, calibrations, build_evaluator, resume
        )
        found = evaluation.run()
        if comm.is_main_process():
            results[dataset] = evaluation.report(found)
    # As `DefaultTrainer.test` does.
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


def sweep_dataset(
    cfg: CfgNode,
    model: nn.Module,
    dataset: str,
    calibrations: Calibrations,
    output_dir: str | os.PathLike[str],
    **options: Any,
) -> SweepDetections:
    """Sweep over a registered data set with the config's settings.

    Args:
        cfg (CfgNode): the model's config.
        model (nn.Module): a model that returns raw logits, with its weights loaded.
        dataset (str): name of the data set.
        calibrations (Mapping): name -> one calibration for each stage.
        output_dir (PathLike): folder of the detections.
        **options: of `logn_d2.sweeps.sweep`.
    """
    return sweep(
        model,
        functools.partial(build_evaluation_loader, cfg, dataset),
        calibrations,
        output_dir=output_dir,
        settings=deciding_settings(cfg),
        **{"average": cfg.MODEL.LOGN.CASCADE_AVERAGE, **options},
    )


@dataclass(frozen=True)
class _Evaluation:
    """The calibrations of a model on one data set; see `evaluate_calibrations`."""

    cfg: CfgNode
    model: nn.Module
    dataset: str
    calibrations: Calibrations
    build_evaluator: BuildEvaluator
    resume: bool

    @property
    def folder(self) -> str:
        return os.path.join(self.cfg.OUTPUT_DIR, "inference", self.dataset)

    @property
    def kind(self) -> str | None:
        return MetadataCatalog.get(self.dataset).get("evaluator_type", None)

    def run(self) -> Mapping[str, Metrics]:
        """Name -> task -> metrics; empty on all processes but the first."""
        if self.kind == "classification":
            given = (self.cfg, self.model, self.dataset, self.calibrations, self.folder)
            return one_pass_for_images(*given)
        # An empty list marks a model whose logits a sweep can't record.
        if self.calibrations[UNCALIBRATED]:
            if self.kind == "lvis":
                return self.one_pass()
            if self.kind == "coco" and not self.cfg.MODEL.KEYPOINT_ON:
                return self.one_pass_for_evaluators()
        return self.one_pass_each()

    def one_pass(self) -> Mapping[str, Metrics]:
        tasks = ("bbox", "segm") if self.cfg.MODEL.MASK_ON else ("bbox",)
        # Only the first process evaluates, so the others need no masks of the ground truth.
        # Encoding the polygons of a large set takes a while.
        masks = "segm" in tasks and comm.is_main_process()
        ground_truth = read_ground_truth(self.dataset, self.cfg.DATASETS.TRAIN, masks=masks)
        swept = self._swept(ground_truth)
        if not comm.is_main_process():
            return {}
        return evaluate_sweep(swept, ground_truth, tasks, per_class_folder=self.folder)

    def one_pass_for_evaluators(self) -> Mapping[str, Metrics]:
        """Run the network once, then an evaluator for each calibration on its detections."""
        swept = self._swept()
        records = DatasetCatalog.get(self.dataset) if comm.is_main_process() else []
        results = {}
        for name in self.calibrations:
            evaluator = self._evaluator(name)
            evaluator.reset()
            # The first process has the detections of all.
            if comm.is_main_process():
                detections = swept.detections(name)
                for record, instances in zip(records, _instances(records, detections), strict=True):
                    evaluator.process([record], [{"instances": instances}])
            # On every process, because some evaluators have collective calls.
            results[name] = evaluator.evaluate()
        return results

    def one_pass_each(self) -> Mapping[str, Metrics]:
        """Run the network once for each calibration, for evaluators that can't use a sweep."""
        results = {}
        for name, stages in self.calibrations.items():
            evaluator = self._evaluator(name)
            with attach(self.model, list(stages)) if stages else nullcontext():
                # Others keep their detections in memory, so their pass can't resume.
                if isinstance(evaluator, LVISFormEvaluator):
                    results[name] = resumable_inference(
                        self.model,
                        functools.partial(build_evaluation_loader, self.cfg, self.dataset),
                        evaluator,
                        settings={
                            "calibration": name,
                            # In cfg.TEST, which `deciding_settings` leaves out.
                            "detections": self.cfg.TEST.DETECTIONS_PER_IMAGE,
                            **deciding_settings(self.cfg),
                        },
                        resume=self.resume,
                    )
                else:
                    loader = build_detection_test_loader(self.cfg, self.dataset)
                    results[name] = inference_on_dataset(self.model, loader, evaluator)
        return results

    def report(self, found: Mapping[str, Metrics]) -> dict[str, dict[str, float]]:
        """Print and write the results; return them under Detectron2's names."""
        table = image_table if self.kind == "classification" else format_table
        logger.info("Results on %s, in percent:\n%s", self.dataset, table(found))
        rows = tuple(ResultRow(name, by_task) for name, by_task in found.items())
        about = provenance(self.dataset, weights=self.cfg.MODEL.WEIGHTS)
        ResultsFile(rows, about).save(os.path.join(self.folder, "results.json"))
        return {
            f"{name}/{task}": dict(metrics)
            for name, by_task in found.items()
            for task, metrics in by_task.items()
        }

    def _swept(self, ground_truth: LvisGroundTruth | None = None) -> SweepDetections:
        return sweep_dataset(
            *(self.cfg, self.model, self.dataset, self.calibrations),
            os.path.join(self.folder, "sweep"),
            ground_truth=ground_truth,
            chunk_size=min(self.cfg.MODEL.LOGN.COLLECT.CHECKPOINT_PERIOD, MAX_CHUNK),
            resume=self.resume,
        )

    def _evaluator(self, name: str) -> DatasetEvaluator:
        """With a folder of its own for each calibration and data set, if there are several."""
        cfg = self.cfg.clone()
        cfg.defrost()
        if len(self.calibrations) > 1 or len(cfg.DATASETS.TEST) > 1:
            cfg.OUTPUT_DIR = os.path.join(self.folder, as_file_name(name))
        return self.build_evaluator(cfg, self.dataset)


def _instances(records: Sequence[Mapping], detections: Detections) -> Iterator[Instances]:
    """Detections of each image, as a model returns them."""
    # Sorted once: comparing ids for each image would take time quadratic in the images.
    order = np.argsort(detections.image_id, kind="stable")
    sorted_ids = detections.image_id[order]
    for record in records:
        first, end = (np.searchsorted(sorted_ids, record["image_id"], s) for s in ("left", "right"))
        mine = detections.take(order[first:end])
        size = record["height"], record["width"]
        # The store has COCO's x, y, width, height; Detectron2 has corners.
        corners = np.concatenate([mine.box[:, :2], mine.box[:, :2] + mine.box[:, 2:]], axis=1)
        instances = Instances(size)
        instances.pred_boxes = Boxes(torch.from_numpy(corners).float())
        instances.scores = torch.from_numpy(mine.score)
        instances.pred_classes = torch.from_numpy(mine.category.astype(np.int64))
        if mine.masks is not None:
            # Of one image at a time: bitmaps of a data set would not fit into memory.
            masks = [mask_util.decode(rle) for rle in mine.masks.to_dicts()]
            instances.pred_masks = torch.from_numpy(
                np.stack(masks) if masks else np.zeros((0, *size), dtype=np.uint8)
            ).bool()
        yield instances


def _takes_calibrations(model: nn.Module) -> bool:
    try:
        check_head(model)
    except ValueError:  # without box predictors, or with a loss that can't be calibrated
        return False
    return True
