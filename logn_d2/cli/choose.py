"""Choose among the calibrations of a sweep, and say what the choice is worth on other images.

The largest AP of a sweep's table was chosen on the images that it is the AP of. Here the images are
divided at random into halves, one chooses and the other scores, in turn. No network runs.

Example:
    logn choose output/sweep
    logn choose output/sweep --metric APr --calibrations uncalibrated logn "norcal(gamma=0.6)"
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from .. import UNCALIBRATED
from .arguments import Parser


def parse_args(argv: Sequence[str]) -> argparse.Namespace:
    parser = Parser("choose", __doc__)
    parser.add_argument("run", metavar="RUN", help="folder of logn sweep or logn demo")
    parser.add_argument(
        "--calibrations", nargs="+", metavar="NAME", help="candidates (default: all of the run)"
    )
    parser.add_argument("--baseline", default=UNCALIBRATED, metavar="NAME")
    parser.add_argument("--metric", default="AP", help="AP (default), AP50, APr, ...")
    parser.add_argument("--task", choices=("bbox", "segm"), default="bbox", help="default: bbox")
    parser.add_argument("--dataset", metavar="NAME", help="registered; the evaluated one")
    parser.add_argument(
        "--resamples", type=int, default=200, metavar="N", help="for the interval (default: 200)"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="default: 0")
    return parser.parse_args(argv)


def main(argv: Sequence[str]) -> int:
    args = parse_args(argv)
    from ..commands.choose import run

    return run(args)
