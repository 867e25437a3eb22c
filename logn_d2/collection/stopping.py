"""Ends a statistics pass when its sampling error is small enough.

The k-th check of the error takes place when the first k * period positions of the pass are done:
the same images for any number of processes, and in a resumed pass.
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

logger = logging.getLogger(__name__)


class StoppingLoader:
    """A loader that ends once the sampling error of the statistics is small enough.

    The error is `LogitStatistics.sampling_error` of all processes' images together. It falls with
    the square root of the number of images. Every process takes part in every check, also after its
    last image, and all follow the result of process 0, so they stop together.

    Args:
        loader (Iterable): this process's batches, in random order.
        collector (LogitStatisticsCollector): the statistics of the batches so far.
        tolerance (float): stop at this error.
        period (int): images of all processes between two checks.

    Raises:
        ValueError: the loader yields images in the data set's order, so its beginning need not
            represent the whole.
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
        """Largest possible number of batches."""
        return len(self._loader)

    def __iter__(self) -> Iterator[Sequence[Mapping[str, Any]]]:
        look = self._first_look()
        batches = iter(self._loader)
        while True:
            # More than one look may be due after a large batch. All of them are taken, since
            # `all_gather` needs as many calls on each process.
            while self._collector.num_images >= self._due(look):
                if self._ends(look, exhausted=False):
                    return
                look += 1
            batch = next(batches, None)
            if batch is None:
                break
            yield batch
        while not self._ends(look, exhausted=True):  # other processes may still have images
            look += 1

    def _due(self, look: int) -> int:
        """Number of this process's images among the first ``look * period`` positions of the pass.

        Process r of W has the positions r, r + W, ...
        """
        # Counted in positions of the whole pass, not in images of a process, so that a look covers
        # the same images for any number of processes.
        positions = look * self._period - comm.get_rank()
        return max(math.ceil(positions / comm.get_world_size()), 0)

    def _first_look(self) -> int:
        """The first check that some process may not have made before an interruption.

        Processes save their states at different times. A process whose state is past a check made
        it together with all others, and the pass went on.
        """
        look = 1
        while self._due(look) < self._collector.num_images:
            look += 1
        # The latest one, because each look needs all processes, and an earlier one has been passed
        # by some process already.
        return max(comm.all_gather(look))

    def _ends(self, look: int, exhausted: bool) -> bool:
        """Check the error, together with all processes."""
        parts = comm.all_gather((self._collector.own_statistics(), exhausted))
        # Nobody has images left, so no look can change anything.
        if all(done for _, done in parts):
            return True
        seen = [statistics for statistics, _ in parts if statistics is not None]
        if not seen:
            return False
        # On every process, at O(K) each: sending a result would be one more round of communication.
        statistics = functools.reduce(LogitStatistics.merge, seen)
        # Processors of another kind may round differently, so one process decides.
        error = comm.all_gather(statistics.sampling_error())[0]
        logger.info(
            "Check %d, %d images: standard error of calibrated logits %.4f, the pass ends at %g",
            look,
            statistics.num_images,
            error,
            self._tolerance,
        )
        return error <= self._tolerance


def _check_random_order(loader: BatchLoader) -> None:
    sampler = getattr(loader, "sampler", None)
    # Only known orders are refused; a sampler of somebody else's may shuffle.
    in_order = isinstance(sampler, (SequentialSampler, InferenceSampler))
    if in_order or getattr(getattr(loader, "dataset", None), "in_order", False):
        raise UserError(
            "This loader yields images in the data set's order, and the first images need not "
            "represent the others: the pass can't end early. Shuffle them with a seed "
            "(build_statistics_loader does), or set stop_at to 0."
        )
