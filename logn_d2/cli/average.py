"""Mean and standard deviation over runs, for each calibration that all of them evaluated.

A RUN is a folder written by `logn demo`, `logn sweep` or `logn train`, or a results.json itself.
Give runs that differ only in their seed.

Example:
    logn average output/seed0 output/seed1 output/seed2
    logn average output/seed0 output/seed1 output/seed2 --changes
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from .arguments import Parser


def parse_args(argv: Sequence[str]) -> argparse.Namespace:
    parser = Parser("average", __doc__)
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN")
    parser.add_argument(
        "--changes",
        action="store_true",
        help="show differences to each run's first calibration; these vary less between seeds",
    )
    return parser.parse_args(argv)
