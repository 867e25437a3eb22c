#!/usr/bin/env python
"""Train a detector, collect its logit statistics, evaluate it with and without calibration.

    train_net.py --config-file C.yaml --num-gpus 8                              # everything
    train_net.py --config-file C.yaml --collect-stats [PATH] MODEL.WEIGHTS W    # only statistics
    train_net.py --config-file C.yaml --eval-only --stats PATH MODEL.WEIGHTS W  # calibrated
    train_net.py --config-file C.yaml --eval-only MODEL.WEIGHTS W               # uncalibrated

These are `logn train`, `logn collect` and `logn evaluate` under Detectron2's option names. The same
command with --resume resumes an interrupted job.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from detectron2.config import CfgNode, get_cfg
from detectron2.engine import default_argument_parser

from logn_d2 import add_logn_config
from logn_d2.cli.arguments import option_pairs, sampling_error
from logn_d2.commands.run import run


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Detectron2's arguments and ours."""
    parser = default_argument_parser(epilog=__doc__)
    parser.description = "Train, collect statistics, evaluate with and without calibration."
    parser.add_argument(
        "--collect-stats",
        nargs="?",
        const="",
        metavar="PATH",
        help="only collect statistics; default PATH: OUTPUT_DIR/logn_stats.safetensors",
    )
    parser.add_argument(
        "--stop-at",
        type=sampling_error,
        metavar="TOL",
        help="end the statistics pass at this standard error of the calibrated logits "
        "(MODEL.LOGN.COLLECT.STOP_AT)",
    )
    parser.add_argument(
        "--stats", metavar="PATH", default="", help="with --eval-only: calibrate with this file"
    )
    parser.add_argument(
        "--num-processes", type=int, default=1, help="processes per machine on the CPU"
    )
    parser.set_defaults(dist_url="auto", imports=(), output=None)
    args = parser.parse_args(argv)
    if args.collect_stats and _is_config_key(args.collect_stats):
        # --collect-stats without PATH: argparse took the first KEY for it.
        args.opts = [args.collect_stats, *args.opts]
        args.collect_stats = ""
    late = [option for option in args.opts if option.startswith("--")]
    if late:
        parser.error(f"write {late[0]} before the first KEY VALUE")
    if args.collect_stats is not None and (args.eval_only or args.stats):
        parser.error("--collect-stats excludes --eval-only and --stats")
    if args.stop_at is not None and args.eval_only:
        parser.error("--stop-at is for a statistics pass, and --eval-only makes none")
    if args.stats and not args.eval_only:
        parser.error("--stats is for --eval-only: a training collects its own statistics")
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


def main(argv: Sequence[str] | None = None) -> int:
    """Run the requested job; return the exit status."""
    args = parse_args(argv)
    args.verb = "evaluate" if args.eval_only else "train"
    if args.collect_stats is not None:
        args.verb, args.output = "collect", args.collect_stats
    args.opts += option_pairs(args)
    return run(args)


if __name__ == "__main__":
    sys.exit(main())
