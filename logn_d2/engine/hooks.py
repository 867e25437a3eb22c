"""Hooks that fill the feature memory, collect statistics and record the position in the stream."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sized

from detectron2.engine import HookBase
from detectron2.utils.events import EventStorage
from detectron2.utils.logger import log_every_n_seconds
from fvcore.common.timer import Timer

from ..modeling.box_predictors import unwrapped
from .training_stream import TrainingStream


class FillMemoryHook(HookBase):
    """Fills the memory of `LogNMemoryROIHeads` before the first step, as LOCE's second stage does.

    Images go through the model as in a step, but only the state of losses changes, such as LOCE's
    mean scores. Checkpoints do not contain the memory: a resumed training run fills it again, and
    then restores the state of losses from the checkpoint.

    ``memory/seconds`` in ``metrics.json`` is the time taken.

    Args:
        build_loader (Callable): builds a finite loader of mapped training images, of the same
            length on all processes.
    """

    def __init__(self, build_loader: Callable[[], Sized]) -> None:
        self._build_loader = build_loader

    def before_train(self) -> None:
        trainer = self.trainer
        if trainer.start_iter >= trainer.max_iter:
            return
        timer = Timer()
        loader, model = self._build_loader(), unwrapped(trainer.model)
        resumed = trainer.start_iter > 0
        state = [(buffer, buffer.clone()) for buffer in model.buffers()] if resumed else []
        # A storage of its own: the scalars of these images belong to no step. It starts at 1
        # because heads draw pictures at 0.
        with EventStorage(start_iter=1):
            for done, batch in enumerate(loader, start=1):
                model(batch)
                progress = f"Filling the feature memory: {done} of {len(loader)} images"
                log_every_n_seconds(logging.INFO, progress, n=10, name=__name__)
        for buffer, kept in state:
            buffer.copy_(kept)
        trainer.storage.put_scalar("memory/seconds", timer.seconds(), smoothing_hint=False)


class StreamHook(HookBase):
    """Records the position in the stream of images just before a checkpoint is saved.

    Every process needs this hook, while only the first one saves. Put it before the hook that
    saves.

    Args:
        period (int): iterations between two checkpoints (SOLVER.CHECKPOINT_PERIOD).
        stream (TrainingStream): the training's loader.
    """

    def __init__(self, period: int, stream: TrainingStream) -> None:
        self._period = period
        self._stream = stream

    def after_step(self) -> None:
        # When PeriodicCheckpointer saves: with its period, and after the last iteration.
        done = self.trainer.iter + 1
        if done % self._period == 0 or done >= self.trainer.max_iter:
            self._stream.keep(self.trainer.iter)


class StatisticsHook(HookBase):
    """Collects logit statistics before each evaluation.

    Put it before the evaluation hook, which uses the statistics.

    Args:
        period (int): iterations between two evaluations (TEST.EVAL_PERIOD); 0 collects only after
            the last iteration.
        collect (Callable): makes the statistics pass; all processes call it.
    """

    def __init__(self, period: int, collect: Callable[[], None]) -> None:
        self._period = period
        self._collect = collect

    def after_step(self) -> None:
        done = self.trainer.iter + 1
        if self._period > 0 and done % self._period == 0 and done < self.trainer.max_iter:
            self._collect()

    def after_train(self) -> None:
        # Detectron2 also calls this after a failure, at an earlier iteration.
        if self.trainer.iter >= self.trainer.max_iter:
            self._collect()
        del self._collect  # it is a method of the trainer, which holds this hook: a cycle
