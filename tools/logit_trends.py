#!/usr/bin/env python
"""Why LogN helps a detector or does not: what its logits have to do with the training set.

LogN takes each class's mean logit and standard deviation for what the long tail has done to it.
So far as they go with the number of training images, LogN takes that off; so far as they do not,
it takes off something else. The table has a row for each kind of classifier and sampler among the
runs; several runs of a kind, such as seeds, give mean and standard deviation. A RUN is the folder
of a finished training with its statistics file; a statistics pass is not made.

Example:
    python tools/logit_trends.py output/glyphs_demo_rfs
    python tools/logit_trends.py output/seed0 output/seed1 output/seed0_linear output/seed1_linear

Shapes: K foreground classes, L of them usable.
"""

from __future__ import annotations

import argparse
import functools
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from detectron2.config import CfgNode
from tabulate import tabulate

from logn_d2.analysis import format_spread
from logn_d2.core import LogitStatistics, StageStatistics, frequency_groups
from logn_d2.core.affine import foreground_columns
from logn_d2.data import class_counts
from logn_d2.engine import short_errors
from logn_d2.engine.experiments import run_config
from logn_d2.errors import MissingFileError
from logn_d2.report.numbers import spearman

# What a row is of: classifier, sampler, and stage of a cascade.
Kind = tuple[str, str, int]
Trend = Mapping[str, float]

COLUMNS = {
    "rho of mean": "Spearman's rank correlation of mean logit and training images",
    "rho of std": "the same of the logit's standard deviation",
    "mean f - r": "mean logit of the frequent classes less that of the rare ones",
    "std f / r": "their standard deviations, one divided by the other",
    "min - mean": "LogN's beta less the mean of all mean logits: how far it lowers the foreground",
}


def trend(stage: StageStatistics, image_count: np.ndarray, background: str = "last") -> Trend:
    """How logit statistics go with the number of training images.

    Args:
        stage (StageStatistics): of one classifier.
        image_count (ndarray): (K,) training images of each class.
        background (str): where the background column is, see `LogitStatistics`.

    Returns:
        Mapping: each of `COLUMNS` -> its value over the L usable classes; NaN where there are no
        such classes, or no order among them.
    """
    foreground = foreground_columns(background)
    usable = stage.usable[foreground].numpy()
    mean, std = (each[foreground].numpy()[usable] for each in (stage.mean, stage.std))
    count = np.asarray(image_count)[usable]
    groups = frequency_groups(count)
    rare, frequent = groups == "r", groups == "f"
    values = [spearman(count, mean), spearman(count, std), math.nan, math.nan, math.nan]
    if rare.any() and frequent.any():
        values[2] = mean[frequent].mean() - mean[rare].mean()
        values[3] = std[frequent].mean() / std[rare].mean()
    if len(mean):
        values[4] = mean.min() - mean.mean()
    return dict(zip(COLUMNS, map(float, values)))


def trends_of(run: Path, file: str) -> dict[Kind, Trend]:
    """The trends of each stage of a run.

    Raises:
        FileNotFoundError: no finished training, or no statistics.
        StatisticsError: statistics of other classes than the training set's.
    """
    cfg, path = run_config(run), run / file
    if not path.is_file():
        raise MissingFileError(
            f"{path} does not exist. Gather the statistics: python train_net.py --config-file "
            f"{run}/config.yaml --collect-stats {path} MODEL.WEIGHTS {run}/model_final.pth"
        )
    statistics = LogitStatistics.load(path)
    counts = _counts(tuple(cfg.DATASETS.TRAIN))
    statistics.check(
        num_classes=len(counts.class_names),
        num_stages=len(statistics.stages),
        class_names=counts.class_names,
    )
    return {
        (*_kind(cfg), index): trend(stage, counts.image_count, statistics.background)
        for index, stage in enumerate(statistics.stages)
    }


def table(runs: Sequence[Mapping[Kind, Trend]]) -> str:
    """A Markdown table with a row for each kind, over all runs that are of it."""
    kinds = sorted({kind for run in runs for kind in run})
    lines = []
    for kind in kinds:
        found = [run[kind] for run in runs if kind in run]
        cells = [format_spread([each[name] for each in found], digits=2) for name in COLUMNS]
        lines.append([*kind, len(found), *cells])
    head = ["classifier", "sampler", "stage", "runs", *COLUMNS]
    align = ["left", "left", *["right"] * (len(head) - 2)]
    return tabulate(lines, head, "pipe", colalign=align, disable_numparse=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Prints the table and what its columns are."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN")
    parser.add_argument(
        "--file",
        default="logn_stats.safetensors",
        help="statistics file in each RUN (default logn_stats.safetensors)",
    )
    args = parser.parse_args(argv)
    with short_errors():
        text = table([trends_of(run, args.file) for run in args.runs])
    print(text, "", *(f"- {name}: {what}" for name, what in COLUMNS.items()), sep="\n")
    return 0


def _kind(cfg: CfgNode) -> tuple[str, str]:
    return cfg.MODEL.LOGN.CLASSIFIER, cfg.DATALOADER.SAMPLER_TRAIN


# Runs that are compared have the same training set, and that of LVIS takes a while to read.
_counts = functools.cache(class_counts)


if __name__ == "__main__":
    sys.exit(main())
