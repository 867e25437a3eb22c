"""Compare runs in one self-contained HTML file.

A RUN is a folder written by `logn train`, `logn evaluate`, `logn sweep` or `logn demo`, or
FOLDER:CALIBRATION for one of its calibrations. The first run is the baseline of all differences.
All figures are computed from the stored detections and the annotations; no model is run.

Example:
    logn report output/sweep --output report.html
    logn report output/a:uncalibrated output/a:logn output/b:logn --output report.html
    logn report output/sweep "--focus=norcal(gamma=0.6)" --output report.html
"""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence

from .arguments import Parser


def parse_args(argv: Sequence[str]) -> argparse.Namespace:
    parser = Parser("report", __doc__)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="FOLDER or FOLDER:CALIBRATION")
    parser.add_argument("--output", required=True, metavar="FILE", help="HTML file to write")
    parser.add_argument(
        "--focus",
        metavar="CALIBRATION",
        help="calibration shown beside the baseline in figures and pictures (default: the second "
        "run, which is logn if a folder has it)",
    )
    parser.add_argument(
        "--dataset", metavar="NAME", help="registered name of the evaluated data set"
    )
    parser.add_argument(
        "--config-file",
        metavar="FILE",
        help="config that registers the data sets and names the training set (default: the runs')",
    )
    parser.add_imports()
    parser.add_argument(
        "--annotations",
        metavar="FILE",
        help="annotations of a data set that no config registers",
    )
    parser.add_argument(
        "--images", metavar="DIR", default="", help="folder with the images of --annotations"
    )
    parser.add_argument("--figures", metavar="DIR", help="folder for all figures as SVG and PNG")
    parser.add_argument(
        "--stats",
        nargs="+",
        metavar="FILE",
        default=[],
        help="statistics files in addition to the runs' own, such as one for positives only",
    )
    parser.add_argument("--title", default="", help="title of the page")
    number = parser.add_argument_group("numbers")
    number.add_argument(
        "--pictures", type=int, default=16, metavar="N", help="images in the gallery (default: 16)"
    )
    number.add_argument(
        "--resamples",
        type=int,
        default=1000,
        metavar="N",
        help="bootstrap resamples for the intervals (default: 1,000)",
    )
    number.add_argument(
        "--seed", type=int, default=0, metavar="N", help="random seed of the bootstrap"
    )
    number.add_argument(
        "--level",
        type=float,
        default=0.95,
        metavar="P",
        help="share of the resamples in an interval (default: 0.95)",
    )
    number.add_argument(
        "--max-dets",
        type=int,
        metavar="N",
        help="detections that count per image (default: 300 in LVIS format, all in COCO format, "
        "as in their rules; -1 for all)",
    )
    number.add_argument(
        "--score-threshold",
        type=float,
        default=0.5,
        metavar="SCORE",
        help="score threshold at which the baseline is used (default: 0.5)",
    )
    args = parser.parse_args(argv)
    args.command = shlex.join(["logn", "report", *argv])
    return args
