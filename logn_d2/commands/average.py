"""Mean and standard deviation of each calibration over runs."""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from ..analysis import format_table
from ..classification.accuracy import accuracy_table
from ..engine import short_errors
from ..errors import MissingFileError, UserError
from ..results import read_rows

Scores = Mapping[str, Mapping[str, float]]


def scores_of(run: Path) -> dict[str, Scores]:
    """Read the scores of each calibration.

    Raises:
        FileNotFoundError: there are no results.
        ValueError: there are results for several data sets, or in another format.
    """
    # A sweep or demo has one file in its folder, a training one for each data set.
    files = [run] if run.is_file() else sorted(run.glob("results.json"))
    files = files or sorted(run.glob("inference/*/results.json"))
    if not files:
        raise MissingFileError(
            f"{run} has no results.json: expected the folder of a finished run of logn demo, "
            "logn sweep or logn train."
        )
    if len(files) > 1:
        names = ", ".join(str(path) for path in files)
        raise UserError(f"{run} has results on several data sets: give one of {names}.")
    return {row.calibration: row.tasks for row in read_rows(files[0])}


def average(runs: Sequence[Mapping[str, Scores]]) -> dict[str, list[Scores]]:
    """Calibration -> its scores in each run, for calibrations in all runs.

    Raises:
        ValueError: the runs have no calibration in common.
    """
    common = [name for name in runs[0] if all(name in run for run in runs)]
    if not common:
        found = "; ".join(", ".join(run) for run in runs)
        raise UserError(f"No calibration is in all runs; they have: {found}.")
    return {name: [run[name] for run in runs] for name in common}


def changes(table: Mapping[str, Sequence[Scores]]) -> dict[str, list[Scores]]:
    """Differences from the first calibration of the same run, which is left out."""
    first, *others = table
    return {
        name: [_less(mine, base) for mine, base in zip(table[name], table[first])]
        for name in others
    }


def _less(mine: Scores, base: Scores) -> Scores:
    # An older run may lack a metric, whose change is then undefined.
    return {
        task: {
            metric: value - base[task].get(metric, math.nan) for metric, value in metrics.items()
        }
        for task, metrics in mine.items()
    }


def as_text(table: Mapping[str, Sequence[Scores]]) -> str:
    """AP of detectors, or accuracies of image classifiers."""
    if all("image" in scores for runs in table.values() for scores in runs):
        return accuracy_table({n: [scores["image"] for scores in r] for n, r in table.items()})
    return format_table(table)


def run(args: argparse.Namespace) -> int:
    """Print the table; return the exit status."""
    with short_errors():
        table = average([scores_of(run) for run in args.runs])
    print(f"{len(args.runs)} runs, in percent: mean ± standard deviation.\n")
    if args.changes:
        print(f"Changes from {next(iter(table))} in the same run.\n")
        table = changes(table)
    print(as_text(table))
    return 0
