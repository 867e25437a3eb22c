"""What happens before training and at evaluations, besides Detectron2's own hooks."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sized

from detectron2.engine import HookBase
from detectron2.utils.events import EventStorage
from detectron2.utils.logger import log_every_n_seconds

from ..modeling.box_predictors import unwrapped
from .training_stream import TrainingStream

__all__ = ["FillMemoryHook", "StatisticsHook", "StreamHook"]


class FillMemoryHook(HookBase):
    """Fills the memory of `LogNMemoryROIHeads` before the first step, as LOCE's second stage does.

    Images go through the model as in a step, after which nothing is learnt but the state of losses,
    such as LOCE's mean scores. A training that goes on fills its memory again, as checkpoints don't
    have it, and keeps the state that it had.

    ``memory/seconds`` in ``metrics.json`` is how long that took.

    Args:
        build_loader (Callable): builds a finite loader of mapped training images; as long on all
            processes.
    """

    def __init__(self, build_loader: Callable[[], Sized]) -> None:
        self._build_loader = build_loader

    def before_train(self) -> None:
        trainer = self.trainer
        if trainer.start_iter >= trainer.max_iter:
            return
        start = time.perf_counter()
        loader, model = self._build_loader(), unwrapped(trainer.model)
        resumed = trainer.start_iter > 0
        state = [(buffer, buffer.clone()) for buffer in model.buffers()] if resumed else []
        # What the heads note about these images belongs to no step; at 1 they draw no pictures.
        with EventStorage(start_iter=1):
            for done, batch in enumerate(loader, start=1):
                model(batch)
                progress = f"Filling the feature memory: {done} of {len(loader)} images"
                log_every_n_seconds(logging.INFO, progress, n=10, name=__name__)
        for buffer, kept in state:
            buffer.copy_(kept)
        seconds = time.perf_counter() - start
        trainer.storage.put_scalar("memory/seconds", seconds, smoothing_hint=False)


class StreamHook(HookBase):
    """Notes the position in the stream of images just before a checkpoint is saved.

    All processes have one, while the first alone saves. It belongs before the hook that saves.

    Args:
        period (int): iterations between two checkpoints (SOLVER.CHECKPOINT_PERIOD).
        stream (TrainingStream): the training's loader.
    """

    def __init__(self, period: int, stream: TrainingStream) -> None:
        self._period = period
        self._stream = stream

    def after_step(self) -> None:
        done = self.trainer.iter + 1
        if done % self._period == 0 or done >= self.trainer.max_iter:
            self._stream.keep(self.trainer.iter)


class StatisticsHook(HookBase):
    """Gathers logit statistics before each evaluation.

    It belongs before the evaluation hook, which uses what it gathers.

    Args:
        period (int): of the evaluations (TEST.EVAL_PERIOD); 0 for only after the last iteration.
        collect (Callable): the statistics pass; all processes call it.
    """

    def __init__(self, period: int, collect: Callable[[], None]) -> None:
        self._period = period
        self._collect = collect

    def after_step(self) -> None:
        done = self.trainer.iter + 1
        if self._period > 0 and done % self._period == 0 and done < self.trainer.max_iter:
            self._collect()

    def after_train(self) -> None:
        # This is also called when training has failed, with an earlier iteration.
        if self.trainer.iter >= self.trainer.max_iter:
            self._collect()
        del self._collect  # a method of the trainer, which holds this hook
