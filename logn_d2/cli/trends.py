"""Print how a detector's logits depend on the training set, which decides whether LogN helps.

LogN removes the differences between the classes' mean logits and standard deviations: a frequency
bias where they follow the training counts, useful signal where they do not. The table has one row
for each kind of classifier and sampler among the runs; several runs of a kind, such as seeds, give
mean and standard deviation. A RUN is the folder of a finished training with its statistics file; no
model is run.

Example:
    logn trends output/glyphs_demo_rfs
    logn trends output/seed0 output/seed1 output/seed0_linear output/seed1_linear
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from .arguments import Parser


def parse_args(argv: Sequence[str]) -> argparse.Namespace:
    parser = Parser("trends", __doc__)
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN")
    parser.add_argument(
        "--file",
        default="logn_stats.safetensors",
        help="statistics file in each RUN (default: logn_stats.safetensors)",
    )
    return parser.parse_args(argv)
