"""Start one process or many, on GPUs or on the CPU, on one machine or several."""

from __future__ import annotations

import functools
import logging
import os
import sys
import tempfile
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from detectron2.engine import defaults
from detectron2.engine import launch as launch_on_gpus
from detectron2.utils import comm

from ..errors import UserError

__all__ = ["launch"]

# Rank 0 reads annotations and writes results while the others wait for it at a barrier.
TIMEOUT = timedelta(hours=2)


def launch(
    main_func: Callable[..., Any],
    num_processes: int,
    *,
    device: str = "cuda",
    num_machines: int = 1,
    machine_rank: int = 0,
    dist_url: str = "auto",
    args: tuple[Any, ...] = (),
) -> None:
    """Calls ``main_func(*args)`` in every process.

    On GPUs this is Detectron2's own `launch`. On the CPU, for which Detectron2 0.5 has none,
    processes talk over gloo and share the cores.

    Args:
        main_func (Callable): a function of a module, which new processes can import.
        num_processes (int): on each machine; on GPUs one for each GPU.
        device (str): ``cfg.MODEL.DEVICE``: "cpu", or "cuda" with or without an index.
        num_machines (int): how many machines run this.
        machine_rank (int): which one this is.
        dist_url (str): "tcp://HOST:PORT" of machine 0, or "auto" on a single machine.
        args (tuple): arguments of ``main_func``.

    Raises:
        ValueError: several machines without an address, or a launcher such as torchrun has started
            more processes than these.
    """
    if num_machines > 1 and dist_url == "auto":
        raise UserError(
            f"--num-machines {num_machines} needs an address that all of them reach: give "
            "--dist-url tcp://HOST:PORT with a free port of machine 0."
        )
    world_size = num_machines * num_processes
    _check_environment(world_size)
    if world_size == 1 or not device.startswith("cpu"):
        launch_on_gpus(
            main_func, num_processes, num_machines, machine_rank, dist_url, args, TIMEOUT
        )
        return
    with tempfile.TemporaryDirectory(prefix="logn_d2_") as folder:
        if dist_url == "auto":
            # Unlike a port that was free a moment ago, a new file can't be taken by another job.
            dist_url = f"file://{folder}/rendezvous"
        worker_args = (main_func, num_processes, world_size, machine_rank, dist_url, args)
        mp.spawn(_cpu_worker, worker_args, nprocs=num_processes)


def _check_environment(world_size: int) -> None:
    """Refuses processes that would each take themselves for the only one, and write one file."""
    started = os.environ.get("WORLD_SIZE", "1")
    if started.isdigit() and int(started) > world_size:
        raise UserError(
            f"WORLD_SIZE is {started} in the environment, as torchrun sets it, but {world_size} "
            "processes are asked for: each one would do all of the work and write the same files. "
            "Start the command once on each machine, without torchrun, and give --num-gpus (on the "
            "CPU --num-processes), --num-machines, --machine-rank and --dist-url."
        )


def _cpu_worker(
    local_rank: int,
    main_func: Callable[..., Any],
    num_processes: int,
    world_size: int,
    machine_rank: int,
    dist_url: str,
    args: tuple[Any, ...],
) -> None:
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // num_processes))
    rank = machine_rank * num_processes + local_rank
    exit_code: int | str | None = None
    dist.init_process_group("gloo", dist_url, TIMEOUT, world_size, rank)
    try:
        _create_local_group(num_processes)
        # Detectron2 names a GPU for each process, which DistributedDataParallel refuses for a model
        # on the CPU. This process is ours, so nobody else sees the change.
        defaults.create_ddp_model = functools.partial(defaults.create_ddp_model, device_ids=None)
        main_func(*args)
    except SystemExit as stop:
        exit_code = stop.code
    finally:
        dist.destroy_process_group()
    if exit_code:
        _leave_with(exit_code)


def _leave_with(exit_code: int | str) -> None:
    """Ends this process with the exit code of a SystemExit.

    Threads of gloo that are still there can abort an interpreter that takes itself apart, and its
    exit code would be that of the abort.
    """
    if not isinstance(exit_code, int):
        print(exit_code, file=sys.stderr)
        exit_code = 1
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(exit_code)


def _create_local_group(num_processes: int) -> None:
    """Tells Detectron2 which processes are on this machine."""
    if hasattr(comm, "create_local_process_group"):  # since 0.6
        comm.create_local_process_group(num_processes)
        return
    machine = dist.get_rank() // num_processes
    for first in range(0, dist.get_world_size(), num_processes):
        group = dist.new_group(list(range(first, first + num_processes)))
        if first // num_processes == machine:
            comm._LOCAL_PROCESS_GROUP = group
