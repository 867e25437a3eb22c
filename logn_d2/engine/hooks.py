"""What happens at evaluations, besides Detectron2's own hooks."""

from __future__ import annotations

from collections.abc import Callable

from detectron2.engine import HookBase

__all__ = ["StatisticsHook"]


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
