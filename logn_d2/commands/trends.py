"""`logn trends`: dependence of logit statistics on the training images of each class.

Shapes: K foreground classes, L of them usable.
"""

from __future__ import annotations

import argparse
import functools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from ..analysis import format_spread
from ..analysis.correlation import spearman
from ..analysis.run_table import markdown
from ..core import LogitStatistics, StageStatistics, frequency_groups, matching_gamma
from ..core.affine import foreground_columns
from ..data import class_counts
from ..engine import short_errors
from ..engine.experiments import run_config
from ..errors import MissingFileError

# Identity of a row: classifier, sampler, and cascade stage.
Kind = tuple[str, str, int]
Trend = Mapping[str, float]

COLUMNS = {
    "rho of mean": "Spearman's rank correlation of mean logit and training images",
    "rho of std": "the same for the logit's standard deviation",
    "mean f - r": "mean logit of the frequent classes minus that of the rare ones",
    "std f / r": "ratio of their standard deviations",
    "min - mean": "LogN's beta minus the mean of all mean logits: the lowering of the foreground",
    "gm of std": "geometric mean of the standard deviations: the temperature added by dividing",
    "gamma": "that of norcal(gamma=auto): how far posteriors follow the number of images",
    "own": "share of the classes' posteriors that is on their own objects, averaged over classes",
}


def trend(stage: StageStatistics, image_count: np.ndarray, background: str = "last") -> Trend:
    """Relate logit statistics to the number of training images.

    Args:
        stage (StageStatistics): statistics of one classifier.
        image_count (ndarray): (K,) training images of each class.
        background (str): position of the background column, see `LogitStatistics`.

    Returns:
        Mapping: each of `COLUMNS` -> its value over the L usable classes; NaN if undefined.
    """
    foreground = foreground_columns(background)
    # A class with a single logit has a deviation of 0, which would decide the geometric mean.
    usable = stage.usable[foreground].numpy()
    mean, std = (each[foreground].numpy()[usable] for each in (stage.mean, stage.std))
    count = np.asarray(image_count)[usable]
    groups = frequency_groups(count)
    rare, frequent = groups == "r", groups == "f"
    found = {"rho of mean": spearman(count, mean), "rho of std": spearman(count, std)}
    if rare.any() and frequent.any():
        found["mean f - r"] = mean[frequent].mean() - mean[rare].mean()
        found["std f / r"] = std[frequent].mean() / std[rare].mean()
    if len(mean):
        found["min - mean"] = mean.min() - mean.mean()
        found["gm of std"] = np.exp(np.log(std).mean())
    posteriors = stage.posteriors
    # They count for all classes, and need RoIs and their labels.
    if posteriors is not None and posteriors.labelled and posteriors.roi_count.any():
        found["gamma"] = matching_gamma(stage, image_count, background=background)
        found["own"] = posteriors.own_share()[foreground].nanmean()
    return {name: float(found.get(name, math.nan)) for name in COLUMNS}


def trends_of(run: Path, file: str) -> dict[Kind, Trend]:
    """The trends of each stage of a run.

    Raises:
        FileNotFoundError: no finished training, or no statistics.
        StatisticsError: the classes of statistics and training set differ.
    """
    cfg, path = run_config(run), run / file
    if not path.is_file():
        raise MissingFileError(
            f"{path} does not exist. Collect the statistics: logn collect --config-file "
            f"{run}/config.yaml --weights {run}/model_final.pth --output {path}"
        )
    statistics = LogitStatistics.load(path)
    counts = _counts(tuple(cfg.DATASETS.TRAIN))
    kind = cfg.MODEL.LOGN.CLASSIFIER, cfg.DATALOADER.SAMPLER_TRAIN
    statistics.check(
        num_classes=len(counts.class_names),
        num_stages=len(statistics.stages),
        class_names=counts.class_names,
    )
    return {
        (*kind, index): trend(stage, counts.image_count, statistics.background)
        for index, stage in enumerate(statistics.stages)
    }


def table(runs: Sequence[Mapping[Kind, Trend]]) -> str:
    """A Markdown table with a row for each kind, over all its runs."""
    kinds = sorted({kind for run in runs for kind in run})
    lines = []
    for kind in kinds:
        found = [run[kind] for run in runs if kind in run]
        cells = [format_spread([each[name] for each in found], digits=2) for name in COLUMNS]
        lines.append([*kind, len(found), *cells])
    head = ["classifier", "sampler", "stage", "runs", *COLUMNS]
    return markdown(lines, head, 2)


def run(args: argparse.Namespace) -> int:
    """Print the table and the meaning of its columns; return the exit status."""
    with short_errors():
        text = table([trends_of(run, args.file) for run in args.runs])
    print(text, "", *(f"- {name}: {what}" for name, what in COLUMNS.items()), sep="\n")
    return 0


# Cached, because compared runs share a training set, and LVIS's takes a while to read.
_counts = functools.cache(class_counts)
