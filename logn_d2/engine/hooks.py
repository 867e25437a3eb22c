"""What happens when training ends, besides Detectron2's own hooks."""

from __future__ import annotations

from collections.abc import Callable

from detectron2.engine import HookBase

__all__ = ["StatisticsHook"]


class StatisticsHook(HookBase):
    """Gathers logit statistics after the last iteration.

    It belongs before the evaluation hook, which uses what it gathers.

    Args:
        collect (Callable): the statistics pass; all processes call it.
    """

    def __init__(self, collect: Callable[[], None]) -> None:
        self._collect = collect

    def after_train(self) -> None:
        # This is also called when training has failed, with an earlier iteration.
        if self.trainer.iter >= self.trainer.max_iter:
            self._collect()
        del self._collect  # a method of the trainer, which holds this hook
