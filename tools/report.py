#!/usr/bin/env python
"""Compare runs in one HTML file that needs nothing else.

A RUN is a folder that train_net.py, tools/sweep_calibrations.py or tools/demo.py has written, or
FOLDER:CALIBRATION for one calibration of it. The first run is the baseline of all differences.
Everything is computed anew from the stored detections and the annotations; no network runs.

Example:
    python tools/report.py output/sweep --output report.html
    python tools/report.py output/a:uncalibrated output/a:logn output/b:logn --output report.html
    python tools/report.py output/sweep "--focus=norcal(gamma=0.6)" --output report.html
"""

from __future__ import annotations

import argparse
import logging
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from logn_d2.engine import load_config, short_errors
from logn_d2.glyphs import register_glyphs
from logn_d2.report import Settings, headline, make_report, open_runs, write_report
from logn_d2.report.runs import split_run

logger = logging.getLogger("logn_d2.report")


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Command line arguments."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    default = Settings()
    parser.add_argument("runs", nargs="+", metavar="RUN", help="FOLDER or FOLDER:CALIBRATION")
    parser.add_argument("--output", required=True, metavar="FILE", help="the page")
    parser.add_argument(
        "--focus",
        metavar="CALIBRATION",
        help="what figures and pictures show beside the baseline (default: the second run, which "
        "is logn where a folder has it)",
    )
    parser.add_argument("--dataset", help="registered name of the evaluated data set")
    parser.add_argument(
        "--config-file",
        help="registers data sets and names the training's (default: the runs' own)",
    )
    parser.add_argument(
        "--annotations",
        metavar="FILE",
        help="annotations of the runs' data set, where no config registers it",
    )
    parser.add_argument(
        "--images", metavar="FOLDER", default="", help="folder with the images of --annotations"
    )
    parser.add_argument("--figures", metavar="FOLDER", help="all figures as SVG and PNG, for print")
    parser.add_argument(
        "--stats", nargs="+", metavar="FILE", default=[],
        help="statistics beside the runs' own, such as those of positives alone",
    )  # fmt: skip
    parser.add_argument("--title", default="", help="of the page")
    parser.add_argument(
        "--pictures", type=int, default=16, help="images in the gallery (default: 16)"
    )
    parser.add_argument(
        "--resamples", type=int, default=default.resamples, help="of the images, for intervals "
        f"(default: {default.resamples:,})",
    )  # fmt: skip
    parser.add_argument(
        "--seed", type=int, default=default.seed, help="random seed of the bootstrap"
    )
    parser.add_argument(
        "--level", type=float, default=default.level,
        help=f"share of the resamples in an interval (default: {default.level})",
    )  # fmt: skip
    parser.add_argument(
        "--max-dets", type=int, default=default.max_dets, help="detections of an image that count "
        "(default: 300 in LVIS form, all in COCO form, as their rules say; -1 for all)",
    )  # fmt: skip
    parser.add_argument(
        "--score-threshold", type=float, default=default.score_threshold,
        help=f"score threshold at which the baseline is used (default: {default.score_threshold})",
    )  # fmt: skip
    return parser.parse_args(argv)


def register(args: argparse.Namespace) -> tuple[str | None, Sequence[str]]:
    """Registers what the runs may need; returns the sets, evaluated and trained on, as given."""
    register_glyphs()
    train_sets: Sequence[str] = ()
    if args.config_file:
        train_sets = load_config(args.config_file).DATASETS.TRAIN
    else:
        folders = (Path(split_run(text)[0]) for text in args.runs)
        for path in dict.fromkeys(path for each in folders for path in each.glob("config.yaml")):
            load_config(path)
    return args.dataset, train_sets


def main(argv: Sequence[str] | None = None) -> int:
    """Writes the page; returns the exit code."""
    args = parse_args(argv)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    logger.setLevel(logging.INFO)
    start = time.perf_counter()
    with short_errors():
        report = make_report(
            open_runs(args.runs, *register(args)),
            focus=args.focus,
            settings=Settings(
                args.resamples, args.seed, args.max_dets, args.score_threshold, args.level
            ),
            pictures=args.pictures,
            statistics=args.stats,
            annotations=args.annotations,
            images=args.images,
            command=shlex.join(["python", "tools/report.py", *(argv or sys.argv[1:])]),
            title=args.title,
        )
        write_report(args.output, report, args.figures)
    print(headline(report.comparison))
    seconds, size = time.perf_counter() - start, Path(args.output).stat().st_size / 2**20
    print(f"{args.output}: {size:.1f} MB, made in {seconds:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
