"""Settings for all tests."""

import gc
import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("dist", "no") != "no":  # runs no test itself, but has others run them
        return
    gc.disable()  # until all tests are collected: nothing of what is read is garbage
    from hypothesis import settings

    # The same examples in every run, and no limit that a busy machine can break.
    settings.register_profile("repeatable", derandomize=True, deadline=None)
    settings.load_profile("repeatable")


def pytest_collection_finish() -> None:
    """What is there now stays: collections of garbage need not look through it again."""
    gc.freeze()
    gc.enable()


@pytest.fixture(scope="session", autouse=True)
def _few_threads() -> None:
    """Two cores are what the suite is timed on; more threads make small tensors slower."""
    import torch

    torch.set_num_threads(min(2, torch.get_num_threads()))


@pytest.fixture(scope="session", autouse=True)
def _no_waiting_for_the_disk() -> Iterator[None]:
    """No test can see whether a file would survive a power cut, and each such wait takes time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


@pytest.fixture(scope="session")
def one_thread() -> Iterator[None]:
    """For models that are so small that threads only wait for each other."""
    import torch

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
