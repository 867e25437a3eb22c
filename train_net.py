#!/usr/bin/env python
"""Train a detector, gather its logit statistics, evaluate it with and without calibration.

    train_net.py --config-file C.yaml --num-gpus 8                              # everything
    train_net.py --config-file C.yaml --collect-stats [PATH] MODEL.WEIGHTS W    # only statistics
    train_net.py --config-file C.yaml --eval-only --stats PATH MODEL.WEIGHTS W  # calibrated
    train_net.py --config-file C.yaml --eval-only MODEL.WEIGHTS W               # uncalibrated

After an interruption, the same command with --resume goes on where it stopped.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.engine import default_argument_parser, default_setup
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger

from logn_d2 import add_logn_config
from logn_d2.engine import (
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
from logn_d2.errors import UserError


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Detectron2's arguments and ours."""
    parser = default_argument_parser(epilog=__doc__)
    parser.description = "Train, gather statistics, evaluate with and without calibration."
    parser.add_argument(
        "--collect-stats",
        nargs="?",
        const="",
        metavar="PATH",
        help="only gather statistics; PATH is OUTPUT_DIR/logn_stats.safetensors if not given",
    )
    parser.add_argument(
        "--stop-at",
        type=float,
        metavar="TOL",
        help="end the statistics pass at this standard error of the calibrated logits "
        "(MODEL.LOGN.COLLECT.STOP_AT)",
    )
    parser.add_argument(
        "--stats", metavar="PATH", help="with --eval-only: calibrate with this file"
    )
    parser.add_argument(
        "--num-processes", type=int, default=1, help="processes per machine on the CPU"
    )
    parser.set_defaults(dist_url="auto")
    args = parser.parse_args(argv)
    if args.collect_stats and _is_config_key(args.collect_stats):
        # --collect-stats without PATH, and its first KEY was taken for one.
        args.opts = [args.collect_stats, *args.opts]
        args.collect_stats = ""
    late = [option for option in args.opts if option.startswith("--")]
    if late:
        parser.error(f"write {late[0]} before the first KEY VALUE")
    if args.collect_stats is not None and (args.eval_only or args.stats):
        parser.error("--collect-stats goes without --eval-only and --stats")
    if args.stop_at is not None and args.eval_only:
        parser.error("--stop-at is for a statistics pass, and --eval-only makes none")
    if args.stats and not args.eval_only:
        parser.error("--stats is for --eval-only: a training gathers its own statistics")
    if not args.config_file:
        parser.error("--config-file is needed")
    return args


def _is_config_key(text: str) -> bool:
    node = get_cfg()
    add_logn_config(node)
    for part in text.split("."):
        if not isinstance(node, CfgNode) or part not in node:
            return False
        node = node[part]
    return True


def setup(args: argparse.Namespace) -> CfgNode:
    """The config of the command line; data sets are registered."""
    cfg = load_config(args.config_file, args.opts)
    if args.stats:
        cfg.MODEL.LOGN.STATISTICS = args.stats
    if args.stop_at is not None:
        cfg.MODEL.LOGN.COLLECT.STOP_AT = args.stop_at
    cfg.freeze()
    return cfg


def check(cfg: CfgNode, args: argparse.Namespace, num_processes: int) -> None:
    """Finds mistakes before processes start."""
    if args.collect_stats is not None:
        check_collection(cfg, args.collect_stats or statistics_path(cfg))
    elif args.eval_only:
        check_evaluation(cfg)
    else:
        check_training(cfg, num_processes)


def main(args: argparse.Namespace) -> None:
    """What every process does."""
    with short_errors():
        cfg = setup(args)
    with short_errors(os.path.join(cfg.OUTPUT_DIR, "log.txt")):
        default_setup(cfg, args)
        setup_logger(cfg.OUTPUT_DIR, distributed_rank=comm.get_rank(), name="logn_d2")
        # Weights that were named on the command line are the ones that are meant.
        last_checkpoint = args.resume and "MODEL.WEIGHTS" not in args.opts
        if args.collect_stats is not None:
            path = args.collect_stats or statistics_path(cfg)
            run_collection(cfg, path, last_checkpoint=last_checkpoint, resume=args.resume)
        elif args.eval_only:
            run_evaluation(cfg, last_checkpoint=last_checkpoint, resume=args.resume)
        else:
            run_training(cfg, resume=args.resume)


def placement(cfg: CfgNode, args: argparse.Namespace) -> int:
    """Processes on this machine."""
    if cfg.MODEL.DEVICE == "cpu":
        if args.num_gpus > 1:
            raise UserError(
                f"--num-gpus is {args.num_gpus}, but this runs on the CPU, since there is no CUDA "
                "device or MODEL.DEVICE is cpu. Give --num-processes for the CPU."
            )
        if not torch.cuda.is_available():
            print(
                f"No CUDA device: running on the CPU, processes: {args.num_processes}", flush=True
            )
        return args.num_processes
    if args.num_processes != 1:
        raise UserError("--num-processes is for the CPU (MODEL.DEVICE cpu); use --num-gpus.")
    if args.num_gpus > torch.cuda.device_count():
        found = torch.cuda.device_count()
        raise UserError(f"--num-gpus is {args.num_gpus}, but CUDA devices: {found}.")
    return args.num_gpus


def run(args: argparse.Namespace) -> int:
    """Checks, then starts the processes; returns the exit code."""
    with short_errors():
        cfg = setup(args)
        num_processes = placement(cfg, args)
        check(cfg, args, num_processes * args.num_machines)
        launch(
            main,
            num_processes,
            device=cfg.MODEL.DEVICE,
            num_machines=args.num_machines,
            machine_rank=args.machine_rank,
            dist_url=args.dist_url,
            args=(args,),
        )
    return 0


if __name__ == "__main__":
    sys.exit(run(parse_args()))
