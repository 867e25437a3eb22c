"""The three parts of a run: training, statistics pass, evaluation."""

from __future__ import annotations

import os
from collections.abc import Sequence

from detectron2.config import CfgNode
from detectron2.utils import comm
from torch import nn

from ..core import LogitStatistics
from ..data import records_kept, release_records
from ..data.loader import training_images
from ..errors import UserError
from ..modeling.build import TrainingClassCounts
from ..source import source_of
from .checkpoint import load_weights
from .checks import (
    check_calibration,
    check_classes,
    check_collection_settings,
    check_datasets,
    check_ground_truth,
    check_images,
    check_loss_options,
    check_masks,
    check_output_folder,
    check_statistics,
    check_weights,
)
from .evaluation import Results, calibration_name, evaluate_calibrations, make_calibrations
from .images import check_image_config
from .second_stage import check_second_stage
from .statistics import collect
from .trainer import Trainer, evaluator_class


def check_training(cfg: CfgNode, num_processes: int) -> None:
    """Find mistakes before hours of training.

    Args:
        cfg (CfgNode): the config.
        num_processes (int): number of processes on all machines.

    Raises:
        ValueError, KeyError, OSError: the message names the mistake and its correction.
    """
    node = cfg.MODEL.LOGN
    if node.STATISTICS:
        raise UserError(
            f"MODEL.LOGN.STATISTICS is {node.STATISTICS}, but training changes the weights that "
            "they belong to. Leave it empty: statistics are collected when training ends."
        )
    if cfg.SOLVER.IMS_PER_BATCH % num_processes:
        raise UserError(
            f"SOLVER.IMS_PER_BATCH is {cfg.SOLVER.IMS_PER_BATCH}, which {num_processes} processes "
            f"can't share evenly. Set it to a multiple of {num_processes}."
        )
    source_of(cfg).check_training()
    collects = node.COLLECT.ENABLED
    check_calibration(cfg, calibration_name(cfg, collects), collects, collects=True)
    check_loss_options(cfg)
    check_collection_settings(cfg)
    check_second_stage(cfg)
    # Last, since reading LVIS's annotations takes a minute.
    names = [*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST]
    with records_kept(names):
        _check_files(cfg, names)
        _check_evaluators(cfg)
        check_image_config(cfg, trains=True)
        check_ground_truth(cfg)
        training_images(cfg)
        check_masks(cfg)
        check_images(names, node.CHECK_IMAGES)


def run_training(cfg: CfgNode, *, resume: bool) -> Results:
    """Train, then collect statistics, then evaluate; all processes call it.

    Args:
        cfg (CfgNode): the config.
        resume (bool): resume an interrupted run with this OUTPUT_DIR.

    Returns:
        dict: see `evaluate_calibrations`.
    """
    # Loader, class counts and repeat factors share one reading of the training set.
    with records_kept(cfg.DATASETS.TRAIN):
        trainer = Trainer(cfg)
    # The caller may keep them since its checks: gigabytes, of which the loader has its own copy.
    release_records(cfg.DATASETS.TRAIN)
    trainer.resume_or_load(resume=resume)
    return trainer.train()


def check_collection(cfg: CfgNode, path: str) -> None:
    """Find mistakes before a statistics pass.

    Args:
        cfg (CfgNode): the config.
        path (str): the statistics file to write.

    Raises:
        ValueError, KeyError, OSError: the message names the mistake and its correction.
    """
    if os.path.isdir(path):
        raise UserError(f"{path} is a folder. Name a file in it.")
    check_collection_settings(cfg)
    _check_files(cfg, cfg.DATASETS.TRAIN)
    check_output_folder(os.path.dirname(path) or ".")


def run_collection(
    cfg: CfgNode, path: str, *, last_checkpoint: bool, resume: bool
) -> LogitStatistics:
    """Collect statistics and write the file; all processes call it.

    Args:
        cfg (CfgNode): the config.
        path (str): the statistics file.
        last_checkpoint (bool): load the last checkpoint in OUTPUT_DIR, not MODEL.WEIGHTS.
        resume (bool): resume an interrupted pass.
    """
    return collect(cfg, _model(cfg, last_checkpoint), path, resume=resume)


def check_evaluation(cfg: CfgNode) -> None:
    """Find mistakes before an evaluation.

    Raises:
        ValueError, KeyError, OSError: the message names the mistake and its correction.
    """
    node = cfg.MODEL.LOGN
    has_statistics = bool(node.STATISTICS)
    check_calibration(cfg, calibration_name(cfg, has_statistics), has_statistics)
    _check_files(cfg, cfg.DATASETS.TEST)
    _check_evaluators(cfg)
    check_image_config(cfg, trains=False)
    if has_statistics:
        check_statistics(cfg, node.STATISTICS)


def run_evaluation(cfg: CfgNode, *, last_checkpoint: bool, resume: bool) -> Results:
    """Evaluate without calibration and, if the config names one, with it.

    Args:
        cfg (CfgNode): MODEL.LOGN.STATISTICS and MODEL.LOGN.CALIBRATION name the calibration.
        last_checkpoint (bool): load the last checkpoint in OUTPUT_DIR, not MODEL.WEIGHTS.
        resume (bool): resume an interrupted pass.

    Returns:
        dict: see `evaluate_calibrations`.
    """
    model = _model(cfg, last_checkpoint)
    path = cfg.MODEL.LOGN.STATISTICS
    statistics = check_statistics(cfg, path) if path else None
    calibrations = make_calibrations(cfg, model, statistics, TrainingClassCounts(cfg))
    return evaluate_calibrations(
        cfg, model, calibrations, build_evaluator=Trainer.build_evaluator, resume=resume
    )


def _check_evaluators(cfg: CfgNode) -> None:
    if cfg.TEST.AUG.ENABLED:
        raise UserError(
            "TEST.AUG.ENABLED is True, but calibrations are evaluated without test-time "
            "augmentation: set it to False, or wrap a model in Detectron2's GeneralizedRCNNWithTTA "
            "after logn_d2.attach."
        )
    for name in cfg.DATASETS.TEST:
        evaluator_class(name)


def _check_files(cfg: CfgNode, datasets: Sequence[str]) -> None:
    check_output_folder(cfg.OUTPUT_DIR)
    check_datasets(datasets)
    check_classes(cfg, datasets)
    check_weights(cfg.MODEL.WEIGHTS)


def _model(cfg: CfgNode, last_checkpoint: bool) -> nn.Module:
    model = Trainer.build_model(cfg)
    load_weights(model, cfg.MODEL.WEIGHTS, cfg.OUTPUT_DIR, resume=last_checkpoint)
    comm.synchronize()
    return model
