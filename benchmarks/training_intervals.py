"""Changes of box AP by calibrations, over several trainings and with intervals over the images.

Each cell is the mean over the trainings ± their standard deviation, and the 95 % interval of this
mean in a bootstrap over the images (`logn_d2.analysis.bootstrap_lvis`): all trainings and
calibrations are evaluated on the same resampled images. The first row is the uncalibrated
detectors' AP.

    logn sweep ... --output output/seedN/sweep     # once for each training N
    python benchmarks/training_intervals.py datasets/muscima/val.json output/seed?/sweep
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from tabulate import tabulate

from logn_d2 import UNCALIBRATED
from logn_d2.analysis import BootstrapResult, bootstrap_lvis
from logn_d2.lvis import LvisGroundTruth, match_lvis
from logn_d2.report.words import display_name
from logn_d2.sweeps import SweepDetections

FIGURES = ("AP", "APr", "APc", "APf")


def bootstrapped(
    truth: LvisGroundTruth, folder: Path, resamples: int
) -> dict[str, BootstrapResult]:
    """Calibration -> its figures; the resamples are the same for every calibration and folder."""
    swept = SweepDetections.load(folder / "sweep")
    return {
        name: bootstrap_lvis(match_lvis(truth, swept.detections(name)), resamples=resamples)
        for name in swept.names
    }


def cells(
    runs: Sequence[BootstrapResult], bases: Sequence[BootstrapResult] | None = None
) -> list[str]:
    """A cell per figure: of the runs, or of their changes from the bases of the same training."""
    found, sign = [], "" if bases is None else "+"
    for figure in FIGURES:
        if figure not in runs[0].estimate or np.isnan(runs[0].estimate[figure]):
            found.append("")  # a group without classes
            continue
        estimates = np.array([run.estimate[figure] for run in runs])
        samples = np.array([run.samples[figure] for run in runs])
        if bases is not None:
            estimates -= [base.estimate[figure] for base in bases]
            samples -= [base.samples[figure] for base in bases]
        mean = estimates.mean()
        bounds = (0.0 if bases is None else -1.0, 1.0)
        low, high = replace(runs[0], bounds=bounds).interval(samples.mean(axis=0), mean)
        spread = f" ± {100 * estimates.std(ddof=1):.1f}" if len(runs) > 1 else ""
        found.append(
            f"{100 * mean:{sign}.1f}{spread} [{100 * low:{sign}.1f}, {100 * high:{sign}.1f}]"
        )
    return found


def table(truth: LvisGroundTruth, folders: Sequence[Path], resamples: int) -> str:
    """A row for the uncalibrated detectors, then the change of each calibration."""
    runs = [bootstrapped(truth, folder, resamples) for folder in folders]
    bases = [run[UNCALIBRATED] for run in runs]
    rows = [["uncalibrated", *cells(bases)]]
    for name in runs[0]:
        if name != UNCALIBRATED:
            rows.append([display_name(name), *cells([run[name] for run in runs], bases)])
    return tabulate(rows, ["calibration", *FIGURES], tablefmt="github", disable_numparse=True)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("annotations", type=Path, help="annotations of the evaluated images")
    parser.add_argument(
        "sweeps", type=Path, nargs="+", help="one folder of logn sweep per training"
    )
    parser.add_argument("--resamples", type=int, default=1000)
    args = parser.parse_args()
    truth = LvisGroundTruth.from_json(args.annotations, masks=False)
    print(f"{len(args.sweeps)} trainings, {args.resamples} resamples, in percent\n")
    print(table(truth, args.sweeps, args.resamples))


if __name__ == "__main__":
    main()
