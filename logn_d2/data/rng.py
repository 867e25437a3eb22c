"""Random numbers that depend on a key, without effect on the program's own generators."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator

import numpy as np
import torch


@contextlib.contextmanager
def preserved_rng() -> Iterator[None]:
    """Restore the generators of Python, NumPy and torch afterwards, even after an error.

    Example:
        >>> before = torch.initial_seed()
        >>> with preserved_rng():
        ...     seed_rng(1, 2)
        >>> torch.initial_seed() == before
        True
    """
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    # Reading the state of an unused CUDA would initialise it, which fails in data loading workers.
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
        if cuda:
            torch.cuda.set_rng_state_all(cuda)


def seed_rng(*key: int) -> None:
    """Seed Python, NumPy and torch (and CUDA if it is in use) from a key.

    Args:
        *key (int): for example a seed and the position of an image. Each key has a stream of its
            own.
    """
    # SeedSequence refuses negative numbers, but Detectron2's SEED is -1 by default.
    words = np.random.SeedSequence([number % 2**63 for number in key]).generate_state(3)
    random.seed(int(words[0]))
    np.random.seed(int(words[1]))
    # Not torch.manual_seed, which would also set the seed of a CUDA that is initialised later.
    torch.default_generator.manual_seed(int(words[2]))
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(int(words[2]))


@contextlib.contextmanager
def seeded_rng(*key: int) -> Iterator[None]:
    """Apply `seed_rng` inside the context, and restore the program's state afterwards."""
    with preserved_rng():
        seed_rng(*key)
        yield
