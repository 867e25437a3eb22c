"""Ends a statistics pass when its numbers are known well enough.

The k-th look at the error is taken when the first k * period positions of the pass are done: the
same images for any number of processes, and in a resumed pass.
"""

from __future__ import annotations

import functools
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from detectron2.data.samplers import InferenceSampler
from detectron2.utils import comm
from torch.utils.data import SequentialSampler

from ..core import LogitStatistics
from ..errors import UserError
from ..passes.resume import BatchLoader
from .collector import LogitStatisticsCollector

__all__ = ["StoppingLoader"]

logger = logging.getLogger(__name__)


class StoppingLoader:
    """A loader that has no more batches once the statistics' error is small enough.

    The error is `LogitStatistics.sampling_error` of all processes' images together. It falls
    with the square root of the number of images. Every process takes part in every look, also one
    whose images are all done, and takes process 0's word for the result: so all stop together.

    Args:
        loader (Iterable): this process's batches, in random order.
        collector (LogitStatisticsCollector): what has been gathered from the batches given out.
        tolerance (float): stop at this error.
        period (int): images of all processes between two looks.

    Raises:
        ValueError: the loader is known to give images in the data set's order: its beginning would
            not speak for the whole.
    """

    def __init__(
        self,
        loader: BatchLoader,
        collector: LogitStatisticsCollector,
        tolerance: float,
        period: int,
    ) -> None:
        _check_random_order(loader)
        self._loader = loader
        self._collector = collector
        self._tolerance = tolerance
        self._period = max(period, 1)

    def __len__(self) -> int:
        """Batches at most."""
        return len(self._loader)

    def __iter__(self) -> Iterator[Sequence[Mapping[str, Any]]]:
        look = self._first_look()
        batches = iter(self._loader)
        while True:
            while self._collector.num_images >= self._due(look):
                if self._ends(look, exhausted=False):
                    return
                look += 1
            batch = next(batches, None)
            if batch is None:
                break
            yield batch
        while not self._ends(look, exhausted=True):  # others may still have images
            look += 1

    def _due(self, look: int) -> int:
        """Images of this process among the first ``look * period`` positions of the pass.

        Process r of W has the positions r, r + W, ...
        """
        positions = look * self._period - comm.get_rank()
        return max(math.ceil(positions / comm.get_world_size()), 0)

    def _first_look(self) -> int:
        """The first look that some process may not have taken before an interruption.

        A process saves its state at times of its own. One whose state is past a look has taken it
        together with all others, and it said to go on.
        """
        look = 1
        while self._due(look) < self._collector.num_images:
            look += 1
        return max(comm.all_gather(look))

    def _ends(self, look: int, exhausted: bool) -> bool:
        """Takes a look, together with all processes."""
        parts = comm.all_gather((self._collector.own_statistics(), exhausted))
        if all(done for _, done in parts):
            return True
        seen = [statistics for statistics, _ in parts if statistics is not None]
        if not seen:
            return False
        statistics = functools.reduce(LogitStatistics.merge, seen)
        # The others' arithmetic might round otherwise on another kind of processor.
        error = comm.all_gather(statistics.sampling_error())[0]
        logger.info(
            "Look %d, %d images: standard error of calibrated logits %.4f, the pass ends at %g",
            look,
            statistics.num_images,
            error,
            self._tolerance,
        )
        return error <= self._tolerance


def _check_random_order(loader: BatchLoader) -> None:
    sampler = getattr(loader, "sampler", None)
    in_order = isinstance(sampler, (SequentialSampler, InferenceSampler))
    if in_order or getattr(getattr(loader, "dataset", None), "in_order", False):
        raise UserError(
            "This loader gives images in the data set's order, and the first of them need not be "
            "like the others: the pass can't end early. Shuffle them with a seed "
            "(build_statistics_loader does), or set stop_at to 0."
        )
