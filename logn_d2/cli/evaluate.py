"""Evaluate a detector, calibrated if a statistics file or a calibration is given.

The same command with --resume resumes an interrupted evaluation.

Example:
    logn evaluate --config-file C.yaml --weights model_final.pth
    logn evaluate --config-file C.yaml --weights model_final.pth --stats logn_stats.safetensors
    logn evaluate --config-file C.yaml --weights model_final.pth --calibration "norcal(gamma=0.6)"
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from .arguments import Parser, add_placement, overrides


def parse_args(argv: Sequence[str]) -> argparse.Namespace:
    parser = Parser("evaluate", __doc__)
    parser.add_config()
    parser.add_argument("--stats", metavar="FILE", default="", help="statistics file")
    parser.add_argument(
        "--calibration", metavar="NAME", default="", help="default with --stats: logn"
    )
    parser.add_argument(
        "--dataset", metavar="NAME", default="", help="registered data set (default: DATASETS.TEST)"
    )
    parser.add_argument("--output", dest="output_dir", metavar="DIR", help="folder of the results")
    parser.add_argument("--resume", action="store_true", help="resume an interrupted evaluation")
    add_placement(parser, machines=True)
    args = parser.parse_intermixed_args(argv)
    args.verb, args.opts = "evaluate", overrides(args)
    return args
