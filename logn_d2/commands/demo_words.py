"""The demo's texts for a newcomer: each phase, the next step, the meaning of the table."""

from __future__ import annotations

import math
from collections.abc import Iterable

from .. import UNCALIBRATED
from ..glyphs import get_size
from ..report import ResultRow, Results
from ..report.words import display_name, format_value, join_words
from .demo_run import Run

# Seconds on two cores; for "lvis" on one GPU.
ROUGHLY = {
    "tiny": {"draw": 3, "train": 20, "collect": 3, "evaluate": 3, "report": 10},
    "demo": {"draw": 25, "train": 310, "collect": 25, "evaluate": 60, "report": 35},
    "lvis": {"draw": 1800, "train": 36000, "collect": 600, "evaluate": 1200, "report": 300},
}


def roughly(size: str, phases: Iterable[str]) -> str:
    """Approximate total duration of phases, rounded as in speech.

    Example:
        >>> roughly("tiny", ["draw"]), roughly("demo", ["draw", "train"])
        ('3 s', '6 min')
    """
    seconds = sum(ROUGHLY[size][phase] for phase in phases)
    if seconds < 100:
        return f"{seconds} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.0f} h"


def overview(run: Run) -> str:
    """The text before the first phase."""
    where = "one GPU" if run.size == "lvis" else "two cores"
    phases = ROUGHLY[run.size]
    return (
        f"{len(phases)} phases, about {roughly(run.size, phases)} on {where}: "
        f"{join_words(list(phases))}.\n"
        "Each prints the command that it runs; the same commands work for your own data. "
        "Ctrl-C stops the demo; the same command resumes it."
    )


def says(run: Run, phase: str) -> str:
    """One sentence about a phase."""
    size, solver = get_size(run.size), run.cfg.SOLVER
    rare = run.cfg.DATALOADER.SAMPLER_TRAIN == "RepeatFactorTrainingSampler"
    return {
        "draw": (
            f"draws {size.train_images:,} training and {size.val_images:,} validation images with "
            f"{size.num_classes} kinds of characters; as in LVIS, most kinds are in few images"
        ),
        "train": (
            f"trains a Mask R-CNN to find them, {solver.MAX_ITER:,} iterations of "
            f"{solver.IMS_PER_BATCH} images{', rare kinds more often' if rare else ''}, on "
            f"{run.cfg.MODEL.DEVICE}; in the lines below, eta is the remaining time, and the "
            "losses fall"
        ),
        "collect": (
            "measures the detector's logits for each kind in the training images: LogN's "
            "statistics, without any training"
        ),
        "evaluate": (
            f"runs the detector once on the {size.val_images:,} validation images, and evaluates "
            "it without and with every calibration"
        ),
        "report": "makes one page: intervals, errors, every class, pictures before and after",
    }[phase]


def meaning(results: Results, subject: str) -> str:
    """The table's result for boxes in one sentence.

    Args:
        results (Results): results of a sweep, including the uncalibrated detector.
        subject (str): the calibration to describe.
    """
    rows = {row.calibration: row for row in results.rows}
    base, calibrated = rows[UNCALIBRATED], rows[subject]
    best = max(results.rows, key=lambda row: _ap(row, "AP"))
    # As after the few seconds that size tiny trains: the differences are noise.
    if math.isnan(_ap(base, "AP")) or _ap(best, "AP") < 1:
        return (
            "Meaning: none, since this detector has not learnt to find anything. `logn demo` "
            "trains one that has."
        )
    return (
        f"Meaning: without further training, {display_name(subject)} changes the box AP of rare "
        f"classes {_from_to(base, calibrated, 'APr')} and that of frequent ones "
        f"{_from_to(base, calibrated, 'APf')}; over all classes, {display_name(best.calibration)} "
        f"is best here, {_from_to(base, best, 'AP')}."
    )


def _ap(row: ResultRow, metric: str) -> float:
    return row.tasks["bbox"][metric]


def _from_to(before: ResultRow, after: ResultRow, metric: str) -> str:
    return f"from {format_value(_ap(before, metric))} to {format_value(_ap(after, metric))}"


def ending(run: Run) -> str:
    """The last text: time of each phase, path of the page, commands for another detector."""
    times = {phase: run.seconds(phase) for phase in ROUGHLY[run.size]}
    each = ", ".join(f"{phase} {seconds:.0f}" for phase, seconds in times.items())
    return (
        f"Seconds: {each}; total {sum(times.values()):.0f}\n"
        f"Report: {run.report}\n"
        "Next, for your own trained detector:\n"
        "$ logn collect --config-file C.yaml --weights W.pth --output stats.safetensors\n"
        "$ logn sweep --config-file C.yaml --weights W.pth --stats stats.safetensors "
        "--output output/sweep\n"
        "Your own data and heads: docs/your_project.md"
    )
