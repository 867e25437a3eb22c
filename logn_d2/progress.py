"""Progress of long work, as log lines."""

from __future__ import annotations

import logging
import time


class Progress:
    """Logs each step as it begins, with the estimated remaining time.

    Args:
        logger (Logger): receives one INFO line per step.
        total (float): sum of the weights of all steps; a weight is the expected time in any unit.
    """

    def __init__(self, logger: logging.Logger, total: float) -> None:
        self._logger, self._total = logger, total
        self._start, self._done, self._weight = time.monotonic(), 0.0, 0.0

    def step(self, text: str, weight: float = 1.0) -> None:
        """End the previous step and begin a new one."""
        self._done += self._weight
        self._weight = weight
        seconds = time.monotonic() - self._start
        left = ""
        # The first steps are too short for an estimate.
        if self._done > 0.05 * self._total and seconds > 5:
            # Past steps predict the others: a weight is an expected time.
            rest = seconds * (self._total - self._done) / self._done
            left = (
                f"; about {rest / 60:.0f} min left" if rest > 90 else f"; about {rest:.0f} s left"
            )
        self._logger.info("%3.0f %%: %s%s", 100 * self._done / self._total, text, left)
