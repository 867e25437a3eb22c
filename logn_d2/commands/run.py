"""`logn train`, `collect` and `evaluate`: from the command line to the processes."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable

import torch
from detectron2.config import CfgNode
from detectron2.engine import default_setup
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger

from ..data import records_kept
from ..engine import (
    check_collection,
    check_evaluation,
    check_training,
    launch,
    load_config,
    run_collection,
    run_evaluation,
    run_training,
    short_errors,
    statistics_path,
)
from ..engine.launch import started_processes
from ..errors import UserError


def setup(args: argparse.Namespace) -> CfgNode:
    """Load the config of a command line, which registers data sets."""
    cfg = load_config(args.config_file, args.opts, args.imports)
    cfg.freeze()
    return cfg


def check(cfg: CfgNode, args: argparse.Namespace, world_size: int) -> None:
    """Find mistakes before processes start."""
    if args.verb == "collect":
        check_collection(cfg, args.output or statistics_path(cfg))
    elif args.verb == "evaluate":
        check_evaluation(cfg)
    else:
        check_training(cfg, world_size)


def work(args: argparse.Namespace) -> None:
    """The work of each process."""
    with short_errors():
        cfg = setup(args)
    with short_errors(os.path.join(cfg.OUTPUT_DIR, "log.txt")):
        # "eval_only" keeps cudnn from benchmarking algorithms for each new image size.
        default_setup(
            cfg,
            argparse.Namespace(config_file=args.config_file, eval_only=args.verb != "train"),
        )
        setup_logger(cfg.OUTPUT_DIR, distributed_rank=comm.get_rank(), name="logn_d2")
        # Weights named on the command line take precedence over the last checkpoint.
        last_checkpoint = args.resume and "MODEL.WEIGHTS" not in args.opts
        if args.verb == "collect":
            path = args.output or statistics_path(cfg)
            run_collection(cfg, path, last_checkpoint=last_checkpoint, resume=args.resume)
        elif args.verb == "evaluate":
            run_evaluation(cfg, last_checkpoint=last_checkpoint, resume=args.resume)
        else:
            run_training(cfg, resume=args.resume)


def processes_here(device: str, num_gpus: int, num_processes: int) -> int:
    """Number of processes to start on this machine.

    Raises:
        ValueError: more processes than devices, or an option for another kind of device.
    """
    if device == "cpu":
        if num_gpus > 1:
            raise UserError(
                f"--num-gpus is {num_gpus}, but this runs on the CPU, because there is no CUDA "
                "device or MODEL.DEVICE is cpu. Use --num-processes on the CPU."
            )
        # With CUDA, MODEL.DEVICE cpu was chosen on purpose.
        if not torch.cuda.is_available():
            print(f"No CUDA device: running on the CPU, processes: {num_processes}", flush=True)
        return num_processes
    if num_processes != 1:
        raise UserError("--num-processes is for the CPU (MODEL.DEVICE cpu); use --num-gpus.")
    if num_gpus > torch.cuda.device_count():
        found = torch.cuda.device_count()
        raise UserError(f"--num-gpus is {num_gpus}, but CUDA devices: {found}.")
    return num_gpus


def start(
    work: Callable[[argparse.Namespace], None], args: argparse.Namespace, device: str, here: int
) -> None:
    """Start the processes that the command line asks for, and this machine's place among others.

    Args:
        work (Callable): the work of each process.
        args (Namespace): its argument, from `Parser.add_processes`.
        device (str): MODEL.DEVICE.
        here (int): processes on this machine, see `processes_here`.
    """
    launch(
        work,
        here,
        device=device,
        num_machines=args.num_machines,
        machine_rank=args.machine_rank,
        dist_url=args.dist_url,
        args=(args,),
    )


def run(args: argparse.Namespace) -> int:
    """Run the checks, then start the processes; return the exit status."""
    with short_errors():
        cfg = setup(args)
        here = processes_here(cfg.MODEL.DEVICE, args.num_gpus, args.num_processes)
        started, processes = started_processes(), here * args.num_machines
        # LVIS takes a minute to read: a training in this process uses the records of its checks.
        trains_here = args.verb == "train" and (started or processes == 1)
        with records_kept(cfg.DATASETS.TRAIN if trains_here else ()):
            # Once, before processes start: otherwise each would report the same mistake.
            check(cfg, args, started or processes)
            start(work, args, cfg.MODEL.DEVICE, here)
    return 0
