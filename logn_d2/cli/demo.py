"""Run all phases on LT-Glyphs: draw, train, collect, evaluate, report.

Finished phases are skipped, and an interrupted one is resumed: after any failure, repeat the same
command. Results are OUTPUT/results.json and OUTPUT/report.html.

Example:
    logn demo
    logn demo --size tiny
    logn demo --seed 1 --output output/demo_seed1
    logn demo --phase report
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from .arguments import Parser
from .main import main

# Not imported from the work, whose modules load torch.
SIZES = ("tiny", "demo", "lvis")
PHASES = ("draw", "train", "collect", "evaluate", "report")


def parse_args(argv: Sequence[str]) -> argparse.Namespace:
    parser = Parser("demo", __doc__)
    parser.add_argument("--size", choices=SIZES, default="demo", help="default: demo")
    parser.add_argument("--phase", choices=PHASES, help="run only this phase")
    parser.add_argument(
        "--sampler",
        choices=("random", "rfs"),
        default="rfs",
        help="training sampler (default: rfs)",
    )
    parser.add_argument("--seed", type=int, default=0, help="training seed (default: 0)")
    parser.add_argument("--output", type=Path, metavar="DIR", help="default: output/SIZE")
    parser.add_argument("--fresh", action="store_true", help="delete OUTPUT and start over")
    args = parser.parse_args(argv)
    args.logn = main  # the demo runs the commands that it prints
    return args
