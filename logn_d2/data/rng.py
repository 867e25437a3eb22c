"""Random numbers that depend on what is drawn for, and leave the program's own generators alone."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator

import numpy as np
import torch

__all__ = ["preserved_rng", "seed_rng", "seeded_rng"]


@contextlib.contextmanager
def preserved_rng() -> Iterator[None]:
    """Puts the generators of Python, NumPy and torch back as they were, whatever happens inside.

    Example:
        >>> before = torch.initial_seed()
        >>> with preserved_rng():
        ...     seed_rng(1, 2)
        >>> torch.initial_seed() == before
        True
    """
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    # Asking an unused CUDA for its state would start it, in data loading workers with an error.
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
    """Seeds Python, NumPy and torch (CUDA where it is in use) from some numbers.

    Args:
        *key (int): for example a seed and the position of an image. Each key has its own stream.
    """
    words = np.random.SeedSequence([number % 2**63 for number in key]).generate_state(3)
    random.seed(int(words[0]))
    np.random.seed(int(words[1]))
    torch.default_generator.manual_seed(int(words[2]))
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(int(words[2]))


@contextlib.contextmanager
def seeded_rng(*key: int) -> Iterator[None]:
    """`seed_rng` inside, and the program's own state again afterwards."""
    with preserved_rng():
        seed_rng(*key)
        yield
