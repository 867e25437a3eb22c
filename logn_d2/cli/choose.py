"""Choose among the calibrations of a sweep, and estimate the value of the choice on other images.

The largest AP in a sweep's table is too optimistic, since it was chosen on the same images. Here
the images are split at random into halves; one is used to choose and the other to score, in turn.
No model is run.

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
    parser.add_argument(
        "--dataset", metavar="NAME", help="registered name of the evaluated data set"
    )
    parser.add_argument(
        "--resamples",
        type=int,
        default=200,
        metavar="N",
        help="resamples for the interval (default: 200)",
    )
    parser.add_imports()
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="random seed (default: 0)")
    return parser.parse_args(argv)
