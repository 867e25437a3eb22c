"""`logn train`, `collect` and `evaluate`: from the command line to the processes."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from dataclasses import dataclass

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


@dataclass(frozen=True)
class Job:
    """A command and its settings, passed to every process.

    Attributes:
        verb (str): "train", "collect" or "evaluate".
        config_file (str): config of the model.
        opts (Sequence[str]): KEY VALUE pairs.
        output (str): statistics file to write, "" for the config's.
        stats (str): statistics file of the calibration.
        calibration (str): text form of the calibration.
        dataset (str): registered name of the data set to evaluate on.
        stop_at (float): standard error that ends a statistics pass; None for the config's.
        resume (bool): resume an interrupted job.
        imports (Sequence[str]): modules to import first.
        num_gpus, num_processes, num_machines, machine_rank, dist_url: see `launch`.
    """

    verb: str
    config_file: str
    opts: Sequence[str] = ()
    output: str = ""
    stats: str = ""
    calibration: str = ""
    dataset: str = ""
    stop_at: float | None = None
    resume: bool = False
    imports: Sequence[str] = ()
    num_gpus: int = 1
    num_processes: int = 1
    num_machines: int = 1
    machine_rank: int = 0
    dist_url: str = "auto"

    @classmethod
    def from_args(cls, args: argparse.Namespace) -> Job:
        """The job of a command line; missing options keep their defaults."""
        return cls(**{k: v for k, v in vars(args).items() if k in cls.__dataclass_fields__})

    def setup(self) -> CfgNode:
        """Load the config, which registers data sets."""
        cfg = load_config(self.config_file, self.opts, self.imports)
        if self.stats:
            cfg.MODEL.LOGN.STATISTICS = self.stats
        if self.calibration:
            cfg.MODEL.LOGN.CALIBRATION = self.calibration
        if self.dataset:
            cfg.DATASETS.TEST = (self.dataset,)
        if self.stop_at is not None:
            cfg.MODEL.LOGN.COLLECT.STOP_AT = self.stop_at
        cfg.freeze()
        return cfg

    def check(self, cfg: CfgNode, world_size: int) -> None:
        """Find mistakes before processes start."""
        if self.verb == "collect":
            check_collection(cfg, self.output or statistics_path(cfg))
        elif self.verb == "evaluate":
            check_evaluation(cfg)
        else:
            check_training(cfg, world_size)


def work(job: Job) -> None:
    """The work of each process."""
    with short_errors():
        cfg = job.setup()
    with short_errors(os.path.join(cfg.OUTPUT_DIR, "log.txt")):
        # "eval_only" keeps cudnn from benchmarking algorithms for each new image size.
        default_setup(
            cfg,
            argparse.Namespace(config_file=job.config_file, eval_only=job.verb != "train"),
        )
        setup_logger(cfg.OUTPUT_DIR, distributed_rank=comm.get_rank(), name="logn_d2")
        # Weights named on the command line take precedence over the last checkpoint.
        last_checkpoint = job.resume and "MODEL.WEIGHTS" not in job.opts
        if job.verb == "collect":
            path = job.output or statistics_path(cfg)
            run_collection(cfg, path, last_checkpoint=last_checkpoint, resume=job.resume)
        elif job.verb == "evaluate":
            run_evaluation(cfg, last_checkpoint=last_checkpoint, resume=job.resume)
        else:
            run_training(cfg, resume=job.resume)


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
        if not torch.cuda.is_available():
            print(f"No CUDA device: running on the CPU, processes: {num_processes}", flush=True)
        return num_processes
    if num_processes != 1:
        raise UserError("--num-processes is for the CPU (MODEL.DEVICE cpu); use --num-gpus.")
    if num_gpus > torch.cuda.device_count():
        found = torch.cuda.device_count()
        raise UserError(f"--num-gpus is {num_gpus}, but CUDA devices: {found}.")
    return num_gpus


def run(args: argparse.Namespace) -> int:
    """Run the checks, then start the processes; return the exit status."""
    job = Job.from_args(args)
    with short_errors():
        cfg = job.setup()
        here = processes_here(cfg.MODEL.DEVICE, job.num_gpus, job.num_processes)
        started, processes = started_processes(), here * job.num_machines
        # LVIS takes a minute to read: a training in this process uses the records of its checks.
        trains_here = job.verb == "train" and (started or processes == 1)
        with records_kept(cfg.DATASETS.TRAIN if trains_here else ()):
            # Once, before processes start: otherwise each would report the same mistake.
            job.check(cfg, started or processes)
            launch(
                work,
                here,
                device=cfg.MODEL.DEVICE,
                num_machines=job.num_machines,
                machine_rank=job.machine_rank,
                dist_url=job.dist_url,
                args=(job,),
            )
    return 0
