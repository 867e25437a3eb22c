"""Settings that all tests share."""

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
