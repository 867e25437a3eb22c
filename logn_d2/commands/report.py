"""`logn report`: write the HTML report."""

from __future__ import annotations

import argparse
import logging
import time
from collections.abc import Sequence
from pathlib import Path

from ..engine import load_config, short_errors
from ..engine.config import import_modules
from ..glyphs import register_glyphs
from ..report import Settings, make_report, open_runs, summarise, write_report
from ..report.runs import split_run

logger = logging.getLogger("logn_d2.report")


def register(
    runs: Sequence[str], config_file: str | None = None, imports: Sequence[str] = ()
) -> Sequence[str]:
    """Register the data sets of runs: those of a config if given, else those of their folders.

    Args:
        runs (Sequence[str]): see `open_runs`.
        config_file (str): a config that names the data sets.
        imports (Sequence[str]): modules that register some.

    Returns:
        Sequence[str]: training sets of the given config.
    """
    import_modules(imports)
    register_glyphs()  # a folder need not have a config
    if config_file:
        return load_config(config_file).DATASETS.TRAIN
    for folder in dict.fromkeys(split_run(text)[0] for text in runs):
        for path in Path(folder).glob("config.yaml"):
            load_config(path)
    return ()


def run(args: argparse.Namespace) -> int:
    """Write the page; return the exit status."""
    # Progress of the report alone: Detectron2 and matplotlib log much more at this level.
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    logger.setLevel(logging.INFO)
    start = time.perf_counter()
    with short_errors():
        train_sets = register(args.runs, args.config_file, args.imports)
        report = make_report(
            open_runs(args.runs, args.dataset, train_sets),
            focus=args.focus,
            settings=Settings(
                args.resamples, args.seed, args.max_dets, args.score_threshold, args.level
            ),
            pictures=args.pictures,
            statistics=args.stats,
            annotations=args.annotations,
            images=args.images,
            command=args.command,
            title=args.title,
        )
        write_report(args.output, report, args.figures)
    # The page's sentences, for readers of a log.
    print("\n".join(summarise(report.comparison)))
    seconds, size = time.perf_counter() - start, Path(args.output).stat().st_size / 2**20
    print(f"{args.output}: {size:.1f} MB, made in {seconds:.0f} s")
    return 0
