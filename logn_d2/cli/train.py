"""Train a detector, collect its logit statistics, evaluate it with and without calibration.

The same command with --resume resumes an interrupted training.

Example:
    logn train --config-file C.yaml --num-gpus 8
    torchrun --nproc_per_node 8 -m logn_d2 train --config-file C.yaml
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from .arguments import Parser


def parse_args(argv: Sequence[str]) -> argparse.Namespace:
    parser = Parser("train", __doc__)
    parser.add_config()
    parser.add_argument("--output", dest="output_dir", metavar="DIR", help="folder of the training")
    parser.add_argument("--resume", action="store_true", help="resume from the last checkpoint")
    parser.add_processes()
    return parser.parse_config(argv)
