"""`logn choose`: choose among the calibrations of a run."""

from __future__ import annotations

import argparse
from functools import partial

from tqdm import tqdm

from ..analysis import choose
from ..engine import short_errors
from ..engine.evaluation import read_ground_truth
from ..lvis import match_lvis
from ..report.runs import RunFolder
from .report import register


def run(args: argparse.Namespace) -> int:
    """Print the choice; return the exit status."""
    with short_errors():
        register([args.run], imports=args.imports)
        folder = RunFolder.open(args.run, args.dataset)
        # A sweep that lacks images would make every calibration look worse by chance.
        truth = read_ground_truth(folder.dataset, folder.train_sets)
        folder.check(truth)
        names = dict.fromkeys([args.baseline, *(args.calibrations or folder.calibrations)])
        # Once for each calibration: splits and resamples reuse the matches.
        matches = {
            name: match_lvis(truth, folder.detections(name), args.task)
            for name in tqdm(names, "matching", unit="calibration")
        }
        choice = choose(
            matches,
            args.baseline,
            metric=args.metric,
            resamples=args.resamples,
            seed=args.seed,
            progress=partial(tqdm, desc="splitting the images", unit="calibration"),
        )
    print(f"{choice.table()}\n\n{choice}")
    return 0
