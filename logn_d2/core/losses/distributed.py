"""Sums over processes."""

from __future__ import annotations

import torch.distributed as dist
from torch import Tensor


def sum_over_processes(tensor: Tensor) -> Tensor:
    """The sum of every process's tensor; the tensor itself where there is one process.

    Args:
        tensor (Tensor): has the same shape on every process; not changed.
    """
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return tensor
    # all_reduce works in place.
    total = tensor.clone()
    dist.all_reduce(total)
    return total
