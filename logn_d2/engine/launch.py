"""Start one process or many, on GPUs or on the CPU, on one machine or several."""

from __future__ import annotations

import functools
import logging
import os
import re
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from detectron2.engine import defaults
from detectron2.engine import launch as launch_on_gpus
from detectron2.utils import comm

from ..errors import UserError

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
    """Call ``main_func(*args)`` in every process.

    A process started by torchrun or srun joins the others and starts none. Otherwise, on GPUs, this
    is Detectron2's own `launch`. On the CPU, which Detectron2 0.5 does not support, processes
    communicate over gloo and share the cores.

    Args:
        main_func (Callable): a function of a module, which new processes can import.
        num_processes (int): processes on each machine; on GPUs, one per GPU.
        device (str): ``cfg.MODEL.DEVICE``: "cpu", or "cuda" with or without an index.
        num_machines (int): number of machines.
        machine_rank (int): rank of this machine.
        dist_url (str): "tcp://HOST:PORT" of machine 0, or "auto" on a single machine.
        args (tuple): arguments of ``main_func``.

    Raises:
        ValueError: several machines without an address; or more processes are requested although a
            launcher has started some.
    """
    if num_machines > 1 and dist_url == "auto":
        raise UserError(
            f"--num-machines {num_machines} needs an address that all of them reach: give "
            "--dist-url tcp://HOST:PORT with a free port of machine 0."
        )
    world_size = num_machines * num_processes
    place = _place_among_started()
    if place is not None:
        # Each started process would start as many again.
        if world_size > 1:
            raise UserError(
                f"{place.launcher} has started {place.world_size} processes, and {world_size} more "
                "were requested. Omit --num-gpus, --num-processes and --num-machines, or start "
                f"the command without {place.launcher}."
            )
        _join(place, device, place.dist_url, main_func, args)
    elif world_size == 1 or not device.startswith("cpu"):
        # For a single process it calls the function in this one, on any device.
        launch_on_gpus(
            main_func, num_processes, num_machines, machine_rank, dist_url, args, TIMEOUT
        )
    else:
        with tempfile.TemporaryDirectory(prefix="logn_d2_") as folder:
            if dist_url == "auto":
                # Unlike a port that was free before, no other job can take a new file.
                dist_url = f"file://{folder}/rendezvous"
            worker_args = (main_func, num_processes, world_size, machine_rank, dist_url, args)
            mp.spawn(_cpu_worker, (_log_settings(), *worker_args), nprocs=num_processes)


@dataclass(frozen=True)
class Place:
    """A process among those started by a launcher.

    Attributes:
        launcher (str): "torchrun" or "srun".
        rank, world_size (int): among all processes.
        local_rank, local_size (int): among the processes of this machine.
        dist_url (str): address at which all processes meet.
    """

    launcher: str
    rank: int
    world_size: int
    local_rank: int
    local_size: int
    dist_url: str = "env://"


def started_processes() -> int:
    """Number of processes started by torchrun or srun, including this one; 0 without a launcher."""
    place = _place_among_started()
    return 0 if place is None else place.world_size


def _place_among_started() -> Place | None:
    """This process's place from the launcher's environment; None without a launcher."""
    env = os.environ
    if int(env.get("WORLD_SIZE", 1)) > 1 and "RANK" in env:
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
        missing = [name for name in (*names, "MASTER_ADDR", "MASTER_PORT") if name not in env]
        if missing:
            raise UserError(
                f"WORLD_SIZE is {env['WORLD_SIZE']} in the environment, as torchrun sets it, but "
                f"{missing[0]} is not set. Start the command with torchrun, or unset WORLD_SIZE."
            )
        return Place("torchrun", *(int(env[name]) for name in names))
    # Variables of a step: a batch script has SLURM_PROCID too, but runs alone.
    if int(env.get("SLURM_STEP_NUM_TASKS", 1)) > 1 and "SLURM_PROCID" in env:
        world_size = int(env["SLURM_STEP_NUM_TASKS"])
        machines = int(env.get("SLURM_STEP_NUM_NODES", 1))
        host = env.get("MASTER_ADDR") or _first_host(env.get("SLURM_STEP_NODELIST", "localhost"))
        # The same for all tasks of a job, and most likely different for the next job.
        port = env.get("MASTER_PORT") or str(20000 + int(env.get("SLURM_JOB_ID", 0)) % 20000)
        return Place(
            "srun",
            int(env["SLURM_PROCID"]),
            world_size,
            int(env["SLURM_LOCALID"]),
            world_size // machines,
            f"tcp://{host}:{port}",
        )
    return None


def _first_host(nodes: str) -> str:
    """The first machine in Slurm's list.

    Example:
        >>> _first_host("gpu[07-09,12],login1")
        'gpu07'
    """
    return re.sub(r"\[(\d+)[^\]]*\]", r"\1", re.split(r",(?![^\[]*\])", nodes)[0])


LogSettings = dict[str, tuple[int, list[Any]]]


def _log_settings() -> LogSettings:
    """Level and filters of Detectron2's loggers and ours, so that new processes log as this one."""
    loggers = logging.root.manager.loggerDict.items()
    return {
        name: (logger.level, logger.filters)
        for name, logger in loggers
        if name.startswith(("detectron2", "logn_d2")) and isinstance(logger, logging.Logger)
    }


def _cpu_worker(
    local_rank: int,
    log_settings: LogSettings,
    main_func: Callable[..., Any],
    num_processes: int,
    world_size: int,
    machine_rank: int,
    dist_url: str,
    args: tuple[Any, ...],
) -> None:
    for name, (level, filters) in log_settings.items():
        logger = logging.getLogger(name)
        logger.setLevel(level)
        for each in filters:
            logger.addFilter(each)
    # By default each process would use all cores, and they would wait for each other.
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // num_processes))
    rank = machine_rank * num_processes + local_rank
    place = Place("logn_d2", rank, world_size, local_rank, num_processes)
    _join(place, "cpu", dist_url, main_func, args)


def _join(
    place: Place, device: str, dist_url: str, main_func: Callable[..., Any], args: tuple[Any, ...]
) -> None:
    """Call the function as one process of a group."""
    exit_code: int | str | None = None
    on_cpu = device.startswith("cpu")
    if not on_cpu:
        torch.cuda.set_device(place.local_rank)
    dist.init_process_group(
        "gloo" if on_cpu else "nccl", dist_url, TIMEOUT, place.world_size, place.rank
    )
    try:
        _create_local_group(place.local_size)
        if on_cpu:
            # Detectron2 names a GPU for each process, which DistributedDataParallel refuses for a
            # model on the CPU. This process is ours, so nobody else sees the change.
            defaults.create_ddp_model = functools.partial(
                defaults.create_ddp_model, device_ids=None
            )
        main_func(*args)
    except SystemExit as stop:
        exit_code = stop.code
    finally:
        dist.destroy_process_group()
    if exit_code:
        _leave_with(exit_code)


def _leave_with(exit_code: int | str) -> None:
    """End this process with the exit code of a SystemExit.

    Remaining threads of gloo can abort the interpreter during its shutdown, and the exit code would
    be that of the abort.
    """
    if not isinstance(exit_code, int):
        print(exit_code, file=sys.stderr)
        exit_code = 1
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(exit_code)


def _create_local_group(num_processes: int) -> None:
    """Tell Detectron2 which processes are on this machine."""
    if hasattr(comm, "create_local_process_group"):  # since 0.6
        comm.create_local_process_group(num_processes)
        return
    # Creating a group is a collective call: every process takes part in those of all machines.
    machine = dist.get_rank() // num_processes
    for first in range(0, dist.get_world_size(), num_processes):
        group = dist.new_group(list(range(first, first + num_processes)))
        if first // num_processes == machine:
            comm._LOCAL_PROCESS_GROUP = group
