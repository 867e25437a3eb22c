"""Collect the logit statistics of a trained detector in one pass over its training set.

The same command with --resume resumes an interrupted pass.

Example:
    logn collect --config-file C.yaml --weights model_final.pth --output logn_stats.safetensors
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from .arguments import Parser, sampling_error


def parse_args(argv: Sequence[str]) -> argparse.Namespace:
    parser = Parser("collect", __doc__)
    parser.add_config()
    parser.add_argument(
        "--output",
        metavar="FILE",
        help="the statistics file (default: logn_stats.safetensors in the config's OUTPUT_DIR)",
    )
    parser.add_argument(
        "--stop-at",
        type=sampling_error,
        metavar="TOL",
        help="end the pass at this standard error of the calibrated logits "
        "(MODEL.LOGN.COLLECT.STOP_AT)",
    )
    parser.add_argument("--resume", action="store_true", help="resume an interrupted pass")
    parser.add_processes()
    return parser.parse_config(argv)
