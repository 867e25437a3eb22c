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

from .arguments import Parser


def parse_args(argv: Sequence[str]) -> argparse.Namespace:
    parser = Parser("evaluate", __doc__)
    parser.add_config()
    parser.add_calibration()
    parser.add_argument(
        "--dataset", metavar="NAME", help="registered data set (default: DATASETS.TEST)"
    )
    parser.add_argument("--output", dest="output_dir", metavar="DIR", help="folder of the results")
    parser.add_argument("--resume", action="store_true", help="resume an interrupted evaluation")
    parser.add_processes()
    return parser.parse_config(argv)
