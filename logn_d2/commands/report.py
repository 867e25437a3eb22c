"""`logn report`: write the HTML report."""

from __future__ import annotations

import argparse
import logging
import shlex
import time
from collections.abc import Sequence
from pathlib import Path

from ..engine import load_config, short_errors
from ..glyphs import register_glyphs
from ..report import Settings, make_report, open_runs, summarise, write_report
from ..report.runs import split_run

logger = logging.getLogger("logn_d2.report")


def register(args: argparse.Namespace) -> tuple[str | None, Sequence[str]]:
    """Register the runs' data sets; return the given evaluated set and training sets."""
    register_glyphs()
    train_sets: Sequence[str] = ()
    if args.config_file:
        train_sets = load_config(args.config_file).DATASETS.TRAIN
    else:
        folders = (Path(split_run(text)[0]) for text in args.runs)
        for path in dict.fromkeys(path for each in folders for path in each.glob("config.yaml")):
            load_config(path)
    return args.dataset, train_sets


def run(args: argparse.Namespace) -> int:
    """Write the page; return the exit status."""
    # Progress of the report alone: Detectron2 and matplotlib log much more at this level.
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
            command=shlex.join(["logn", "report", *args.argv]),
            title=args.title,
        )
        write_report(args.output, report, args.figures)
    print("\n".join(summarise(report.comparison)))
    seconds, size = time.perf_counter() - start, Path(args.output).stat().st_size / 2**20
    print(f"{args.output}: {size:.1f} MB, made in {seconds:.0f} s")
    return 0
