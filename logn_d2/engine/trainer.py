"""Detectron2's default trainer, extended by the statistics pass and both evaluations."""

from __future__ import annotations

import logging
import math
import os
import weakref
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.engine import DefaultTrainer, HookBase
from detectron2.engine.hooks import EvalHook
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from .. import UNCALIBRATED
from ..classification.logits import ImageEvaluator
from ..core import LogitStatistics
from ..core.losses.counts import CountBuffers
from ..data.loader import build_class_aware_loader, training_images
from ..data.samplers import build_training_sampler
from ..errors import UserError
from ..evaluators import COCOFormEvaluator, LVISFormEvaluator
from ..modeling import LogNMemoryROIHeads
from ..modeling.box_predictors import unwrapped
from ..modeling.build import TrainingClassCounts
from ..modeling.second_stages import get_second_stage
from ..source import source_of
from .checkpoint import AtomicCheckpointer
from .checks import check_loss
from .evaluation import (
    Calibrations,
    Results,
    calibration_name,
    check_head,
    evaluate_calibrations,
    groups_of_training,
    make_calibrations,
)
from .events import ComparedImages, put_statistics
from .hooks import FillMemoryHook, StatisticsHook, StreamHook
from .images import classifies_images
from .second_stage import (
    classifier_state,
    freeze,
    loading_all_that_is_frozen,
    optimizer_config,
    restore_classifiers,
)
from .statistics import (
    collect,
    periodic_collection,
    periodic_statistics_path,
    statistics_path,
    without_calibration,
)
from .training_stream import TrainingStream

logger = logging.getLogger(__name__)


class Trainer(DefaultTrainer):
    """`DefaultTrainer` that collects logit statistics at the end and evaluates with and without
    them.

    TensorBoard and ``metrics.json`` have the metrics of both as "uncalibrated/bbox/AP",
    "logn/bbox/AP" and so on. Evaluations before the end (TEST.EVAL_PERIOD) use statistics of at
    most MODEL.LOGN.COLLECT.PERIODIC_IMAGES images. TensorBoard also shows histograms of the
    statistics, and pictures of MODEL.LOGN.VIS_IMAGES images.

    Args:
        cfg (CfgNode): a config with MODEL.LOGN.
    """

    def __init__(self, cfg: CfgNode) -> None:
        # Before the parent's constructor, which builds the hooks from these.
        self.statistics: LogitStatistics | None = None
        self._resume = False
        self._last_eval_results: Results = {}
        self._compared_images = ComparedImages(cfg)
        self._counts = TrainingClassCounts(cfg)
        super().__init__(cfg)
        if calibration_name(cfg, cfg.MODEL.LOGN.COLLECT.ENABLED):
            # The evaluation would find the same mistake, but only after days of training.
            check_head(self.model)

    @classmethod
    def build_model(cls, cfg: CfgNode) -> nn.Module:
        """The model with raw logits, which the evaluation calibrates.

        In a second stage, the parameters that it does not train are frozen.
        """
        model = source_of(without_calibration(cfg)).model()
        logger.info("Model:\n%s", model)
        check_loss(cfg, model)
        stage = get_second_stage(cfg.MODEL.LOGN.SECOND_STAGE)
        if stage is not None:
            freeze(model, stage)
        if cfg.MODEL.DEVICE == "cpu":  # oneDNN convolves fastest in this layout
            model = model.to(memory_format=torch.channels_last)
        return model

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: nn.Module) -> Optimizer:
        """Detectron2's optimizer for the parameters that are trained, or the LazyConfig's."""
        return source_of(optimizer_config(cfg)).optimizer(model)

    @classmethod
    def build_lr_scheduler(cls, cfg: CfgNode, optimizer: Optimizer) -> LRScheduler:
        """Detectron2's schedule, or the LazyConfig's."""
        return source_of(cfg).schedule(optimizer)

    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> Iterable:
        """Detectron2's loader, which also takes the samplers of `logn_d2.data.samplers`."""
        images = training_images(cfg)
        sampler = build_training_sampler(cfg, images)
        return TrainingStream(cfg, images, sampler)

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str) -> DatasetEvaluator:
        """The evaluator for the format of a data set, as stated in its metadata.

        Raises:
            ValueError: the data set has an unknown evaluator type.
        """
        kind, options = evaluator_class(dataset_name), {}
        if kind is ImageEvaluator:
            return ImageEvaluator()
        if kind is COCOFormEvaluator:  # COCO has no groups; the training images define them
            options["frequency_groups"] = groups_of_training(dataset_name, cfg.DATASETS.TRAIN)
        return kind(dataset_name, output_dir=os.path.join(cfg.OUTPUT_DIR, "inference"), **options)

    def build_hooks(self) -> list[HookBase]:
        """Detectron2's hooks, with our evaluation in place of its own and the statistics before
        it."""
        # The hook that saves takes the checkpointer from here. A proxy, as in Detectron2: a cycle
        # would keep model and data in memory after the training.
        self.checkpointer = AtomicCheckpointer(
            self.model, self.cfg.OUTPUT_DIR, trainer=weakref.proxy(self)
        )
        stream = self._trainer.data_loader
        self.checkpointer.add_checkpointable("training_stream", stream)
        hooks = super().build_hooks()
        # Exactly one: with none or several, a Detectron2 of another release would evaluate twice.
        (place,) = (i for i, hook in enumerate(hooks) if isinstance(hook, EvalHook))
        hooks[place] = EvalHook(self.cfg.TEST.EVAL_PERIOD, self._evaluate)
        if self.cfg.MODEL.LOGN.COLLECT.ENABLED:
            periodic = self.cfg.MODEL.LOGN.COLLECT.PERIODIC_IMAGES > 0
            period = self.cfg.TEST.EVAL_PERIOD if periodic else 0
            hooks.insert(place, StatisticsHook(period, self._collect))
        # At the front, before the hook that saves, which only the first process has.
        hooks[:0] = [*self._memory_hooks(), StreamHook(self.cfg.SOLVER.CHECKPOINT_PERIOD, stream)]
        return hooks

    def _memory_hooks(self) -> list[HookBase]:
        """Fill a feature memory before a second stage; elsewhere the features are still random."""
        memories = [m.memory for m in self.model.modules() if isinstance(m, LogNMemoryROIHeads)]
        images = max((memory.objects_per_class for memory in memories), default=0)
        if not (images and self.cfg.MODEL.LOGN.SECOND_STAGE):
            return []
        return [FillMemoryHook(partial(build_class_aware_loader, self.cfg, images))]

    def resume_or_load(self, resume: bool = True) -> None:
        """Like Detectron2's method; the passes at the end resume as well.

        A new training run resets the counts of its losses, which the weights may bring along from
        another training set.

        Raises:
            ValueError: the weights lack parameters that the second stage does not train.
        """
        self._resume = resume
        if not resume and self.checkpointer.has_checkpoint():
            logger.warning(
                "%s has checkpoints of an earlier training. This one starts from the beginning; "
                "to resume the earlier one, add --resume.",
                self.cfg.OUTPUT_DIR,
            )
        if resume and self.checkpointer.has_checkpoint():
            super().resume_or_load(resume)
            return
        self._load_first_stage()
        for module in self.model.modules():
            # A training set's own counts replace those of the first stage's.
            if isinstance(module, CountBuffers):
                module.forget()

    def state_dict(self) -> dict[str, Any]:
        """Like Detectron2's method, but with the optimizer's momentum, which version 0.5 leaves
        out."""
        return {"_trainer": self._trainer.state_dict(), **super().state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the state that `state_dict` returned."""
        super().load_state_dict(state_dict)
        # Later releases than 0.5 have a method of their own that does this.
        if "_trainer" in state_dict and "load_state_dict" not in vars(DefaultTrainer):
            self._trainer.load_state_dict(state_dict["_trainer"])

    def _load_first_stage(self) -> None:
        """Load MODEL.WEIGHTS for a new training run."""
        stage = get_second_stage(self.cfg.MODEL.LOGN.SECOND_STAGE)
        if stage is None:
            super().resume_or_load(resume=False)
            return
        fresh = classifier_state(self.model)
        with loading_all_that_is_frozen(self.model):
            super().resume_or_load(resume=False)
        if stage.renewed:
            restore_classifiers(self.model, fresh)

    def after_train(self) -> None:
        """Like Detectron2's method, which counts one iteration too many if a finished run is
        resumed."""
        self.iter = min(self.iter, self.max_iter)
        super().after_train()

    def train(self) -> Results:
        """Train, collect statistics and evaluate.

        Returns:
            dict: see `evaluate_calibrations`; empty on all processes but the first.
        """
        super().train()
        return self._last_eval_results

    def _collect(self) -> None:
        _share_buffers(self.model)
        if self._at_end:
            cfg, path = self.cfg, statistics_path(self.cfg)
        else:
            cfg, path = periodic_collection(self.cfg), periodic_statistics_path(self.cfg)
        self.statistics = collect(cfg, self.model, path, resume=self._resume and self._at_end)
        if comm.is_main_process():
            put_statistics(self.storage, self.statistics)

    def _evaluate(self) -> Results:
        _share_buffers(self.model)
        statistics = self.statistics
        if not self._at_end:  # training is about to change the weights that the statistics describe
            self.statistics = None
        # With PERIODIC_IMAGES 0 there are none for these weights, and older ones would mislead.
        awaited = self.cfg.MODEL.LOGN.COLLECT.ENABLED and statistics is None
        calibrated = self._at_end or not awaited
        cfg = self.cfg if calibrated else without_calibration(self.cfg)
        calibrations = make_calibrations(cfg, self.model, statistics, self._counts)
        self._last_eval_results = evaluate_calibrations(
            cfg,
            self.model,
            calibrations,
            build_evaluator=self.build_evaluator,
            resume=self._resume and self._at_end,
        )
        shows = cfg.MODEL.LOGN.VIS_IMAGES > 0 and not classifies_images(cfg)
        # Only the first process writes events.
        if comm.is_main_process() and shows and cfg.DATASETS.TEST:
            self._show_images(calibrations)
        # Without metrics that have no value: JSON has no NaN.
        return _finite(self._last_eval_results)

    def _show_images(self, calibrations: Calibrations) -> None:
        names = [name for name in calibrations if name != UNCALIBRATED]
        for name in names:  # one calibration, or none
            after = calibrations[name]
            self._compared_images.put(self.storage, unwrapped(self.model), name, after)

    @property
    def _at_end(self) -> bool:
        return self.iter >= self.max_iter


def evaluator_class(dataset_name: str) -> type[DatasetEvaluator]:
    """The class of the evaluator of `Trainer.build_evaluator`; this reads no files.

    Raises:
        ValueError: the data set has an unknown evaluator type.
    """
    kind = MetadataCatalog.get(dataset_name).get("evaluator_type", None)
    classes = {
        "lvis": LVISFormEvaluator,
        "coco": COCOFormEvaluator,
        "classification": ImageEvaluator,
    }
    if kind not in classes:
        raise UserError(
            f"The data set '{dataset_name}' has the evaluator type {kind!r}, expected 'lvis', "
            "'coco' or 'classification'. Register it with MODEL.LOGN.DATASETS, "
            "MODEL.LOGN.IMAGE.DATASETS or register_lvis_form."
        )
    return classes[kind]


def _finite(metrics: Mapping) -> dict:
    """Copy a nested dict without NaN."""
    return {
        key: _finite(value) if isinstance(value, Mapping) else value
        for key, value in metrics.items()
        if isinstance(value, Mapping) or not math.isnan(value)
    }


def _share_buffers(model: nn.Module) -> None:
    """Copy the buffers of the first process, which are in the checkpoint, to all processes.

    Detectron2 trains with ``broadcast_buffers=False``. Batch norm then has other running means on
    each process, and each process would evaluate a slightly different model.
    """
    if comm.get_world_size() > 1:
        for buffer in model.buffers():
            dist.broadcast(buffer, 0)
