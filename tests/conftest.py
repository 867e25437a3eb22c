"""Settings for all tests."""

import logging
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import settings

# Two cores are what the suite is timed on; more threads make small tensors slower.
torch.set_num_threads(min(2, torch.get_num_threads()))

# The same examples in every run, and no limit that a busy machine can break.
settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.load_profile("repeatable")


@pytest.fixture(scope="session")
def one_thread() -> Iterator[None]:
    """For models that are so small that threads only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def tiny_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A datasets root that holds LT-Glyphs tiny. Read only: tests that change files copy it."""
    from logn_d2.glyphs import draw_glyphs

    root = tmp_path_factory.mktemp("datasets")
    draw_glyphs(root, "tiny", num_workers=1)
    return root


@pytest.fixture(autouse=True)
def _loggers_are_as_at_the_start() -> Iterator[None]:
    """A run in this process leaves handlers whose stream pytest closes at the end of the test.

    The next test's log would then go to a closed stream, which prints a traceback in the middle of
    what that test reads, and would not reach `caplog`.
    """
    _reset_loggers()
    yield
    _reset_loggers()


def _reset_loggers() -> None:
    for name in ("detectron2", "fvcore", "logn_d2"):
        logger = logging.getLogger(name)
        for handler in logger.handlers[:]:
            logger.removeHandler(handler)
        logger.propagate = True
        logger.setLevel(logging.NOTSET)
    # Detectron2 remembers which loggers it has set up; not imported here, where it is not yet.
    if utilities := sys.modules.get("detectron2.utils.logger"):
        utilities.setup_logger.cache_clear()
