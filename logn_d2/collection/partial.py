"""The files that a statistics pass leaves behind while it runs, one for each process."""

from __future__ import annotations

import logging
import os
from pathlib import Path

from detectron2.utils import comm

from ..core import LogitStatistics, StatisticsError

__all__ = ["PartialStatistics"]

logger = logging.getLogger(__name__)


class PartialStatistics:
    """Where this process keeps what it has gathered so far.

    The name carries a digest of the settings, the weights and the images, and which of how many
    processes wrote it: a pass that differs in any of these does not find the file, and so can't mix
    two passes.

    Args:
        output (PathLike): the statistics file that the pass will end in; the others lie beside it.
        digest (str): of everything that decides the result.
    """

    def __init__(self, output: str | os.PathLike[str], digest: str) -> None:
        self._output = Path(output)
        rank, world_size = comm.get_rank(), comm.get_world_size()
        name = f"{self._prefix}{digest}-{rank}of{world_size}.safetensors"
        self.path = self._output.with_name(name)

    @property
    def _prefix(self) -> str:
        return f"{self._output.stem}.partial-"

    def save(self, statistics: LogitStatistics) -> None:
        """Replaces what was saved before; a process killed meanwhile leaves the old file.

        Raises:
            OSError: the folder can't be written or the disk is full.
        """
        statistics.save(self.path)

    def load(self) -> LogitStatistics | None:
        """What an interrupted pass with the same settings has saved, or None."""
        if self.path.is_file():
            try:
                return LogitStatistics.load(self.path)
            except StatisticsError as error:
                logger.warning("The statistics pass starts anew: %s", error)
                return None
        others = self._all_files()
        if others:
            logger.warning(
                "The statistics pass starts anew: %s is of a pass with other settings, other "
                "weights, other images or another number of processes. To go on with it, repeat "
                "its command.",
                others[0],
            )
        else:
            logger.info("No partial file to resume from beside %s", self._output)
        return None

    def remove_all(self) -> None:
        """Removes the partial files of this output, of other processes and settings as well."""
        for path in self._all_files():
            path.unlink(missing_ok=True)

    def _all_files(self) -> list[Path]:
        folder = self._output.parent
        if not folder.is_dir():
            return []
        # Not by glob: brackets in a file name would be read as a pattern.
        return sorted(p for p in folder.iterdir() if p.name.startswith(self._prefix))
