"""The main job on LT-Glyphs, phase by phase: draw, train, collect, evaluate, report."""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import logging
import re
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from detectron2.data import MetadataCatalog
from detectron2.engine import HookBase
from detectron2.engine.hooks import EvalHook
from detectron2.utils.env import seed_all_rng
from detectron2.utils.logger import setup_logger

from ..analysis import format_table
from ..core import LogitStatistics, stage_calibrations
from ..data import class_counts
from ..data.loader import build_evaluation_loader, build_statistics_loader
from ..engine import Trainer, short_errors
from ..engine import collect as collect_statistics
from ..errors import UserError
from ..glyphs import draw_glyphs, get_size
from ..lvis import LvisResult
from ..modeling.recording import LogitRecorder
from ..report import (
    ClassInfo,
    ResultRow,
    Results,
    make_report,
    open_runs,
    summarise,
    write_report,
)
from ..report.provenance import commit, machine, versions
from ..report.results import BASELINE
from ..sweeps import sweep, sweep_results
from .demo_run import Run, open_run

SUBJECT = "logn"
CALIBRATIONS = (
    BASELINE,
    SUBJECT,
    "logn_mean",
    "logn_std",
    "logn_beta",
    "logn_no_beta",
    "norcal(gamma=0.6)",
    "fracal",
    "auto",
)
# Of the data set; --seed is that of the training, so that all seeds see the same data.
DATA_SEED = 0
# Images on which the share of foreground RoIs is measured: a standard error far below 1 %.
SHARE_IMAGES = 200
# On two cores; "lvis" on one GPU.
ROUGHLY = {
    "tiny": {"draw": "3 s", "train": "20 s", "collect": "3 s", "evaluate": "3 s", "report": "5 s"},
    "demo": {
        "draw": "20 s",
        "train": "11 min",
        "collect": "3 min",
        "evaluate": "90 s",
        "report": "1 min",
    },
    "lvis": {
        "draw": "30 min",
        "train": "hours",
        "collect": "10 min",
        "evaluate": "20 min",
        "report": "minutes",
    },
}


class DemoTrainer(Trainer):
    """Training alone: statistics and evaluation are phases of their own here."""

    def build_hooks(self) -> list[HookBase]:
        """All hooks but the evaluation."""
        return [hook for hook in super().build_hooks() if not isinstance(hook, EvalHook)]


def draw(run: Run) -> None:
    """Makes the data set, or verifies it."""
    draw_glyphs(run.root, run.size, DATA_SEED)


def train(run: Run) -> None:
    """Trains the detector, from the last checkpoint if there is one."""
    seed_all_rng(run.seed)
    (run.output / "config.yaml").write_text(run.cfg.dump())
    trainer = DemoTrainer(run.cfg)
    trainer.resume_or_load(resume=True)
    trainer.train()


def collect(run: Run) -> None:
    """Makes the statistics file, and measures how many of the RoIs behind it are foreground."""
    model = run.model()
    collect_statistics(run.cfg, model, str(run.statistics), resume=True)
    foreground = total = 0
    loader = build_statistics_loader(run.cfg)
    with LogitRecorder(model, seed=run.cfg.MODEL.LOGN.COLLECT.SEED) as record:
        for _, batch in zip(range(SHARE_IMAGES), loader, strict=False):
            labels = record(batch).labels()
            foreground += int((labels < run.cfg.MODEL.ROI_HEADS.NUM_CLASSES).sum())
            total += len(labels)
    run.journal["foreground_share"] = foreground / max(total, 1)


def evaluate(run: Run) -> None:
    """Scores every calibration from one pass over the validation set."""
    counts = class_counts(run.train_set)
    statistics = LogitStatistics.load(run.statistics)
    calibrations = {
        text: stage_calibrations(
            text,
            num_classes=run.cfg.MODEL.ROI_HEADS.NUM_CLASSES,
            statistics=statistics,
            counts=counts,
        )
        for text in CALIBRATIONS
    }
    predictions = sweep(
        run.model(),
        lambda skip: build_evaluation_loader(run.cfg, run.val_set, skip=skip),
        calibrations,
        ground_truth=run.truth(),
        output_dir=run.output / "sweep",
        resume=True,
    )
    make_results(run, sweep_results(predictions, run.truth())).save(run.results)


def make_results(run: Run, scores: dict[str, dict[str, LvisResult]]) -> Results:
    """Everything that the report needs of the evaluation, as plain data."""
    counts, truth = class_counts(run.train_set), run.truth()
    classes = ClassInfo(
        names=counts.class_names,
        labels=drawn_characters(run),
        groups=tuple(truth.groups.tolist()),
        image_count=counts.image_count,
        instance_count=counts.instance_count,
    )
    rows = tuple(
        ResultRow(name, {task: result.as_dict() for task, result in tasks.items()})
        for name, tasks in scores.items()
    )
    class_ap = {
        name: {task: 100 * result.per_class_ap for task, result in tasks.items()}
        for name, tasks in scores.items()
    }
    return Results(rows, provenance(run), classes, class_ap)


def drawn_characters(run: Run) -> tuple[str, ...]:
    """The character that each class is, from its definition."""
    content = json.loads(Path(MetadataCatalog.get(run.val_set).json_file).read_text("utf-8"))
    categories = sorted(content["categories"], key=lambda category: category["id"])
    codes = [re.search(r"U\+([0-9A-F]+)", category["def"]) for category in categories]
    return tuple(
        chr(int(code[1], 16)) if code else category["name"]
        for code, category in zip(codes, categories, strict=True)
    )


def provenance(run: Run) -> dict[str, Any]:
    """Everything that somebody needs to make the numbers again, or to doubt them."""
    statistics = LogitStatistics.load(run.statistics)
    arguments = ["--size", run.size, "--sampler", run.sampler, "--seed", str(run.seed)]
    arguments += ["--output", str(run.output)]
    command = shlex.join(["logn", "demo", *arguments])
    return {
        **run.settings,
        "dataset": {
            "train": run.train_set,
            "val": run.val_set,
            "seed": DATA_SEED,
            "sha256 of its SHA256SUMS": hashlib.sha256(run.checksums.read_bytes()).hexdigest(),
        },
        "training": {
            "iterations": run.cfg.SOLVER.MAX_ITER,
            "images_per_batch": run.cfg.SOLVER.IMS_PER_BATCH,
            "sampler": run.cfg.DATALOADER.SAMPLER_TRAIN,
        },
        "statistics": {
            "images": statistics.num_images,
            "rois": statistics.num_rois,
            "population": statistics.population,
            "estimator": statistics.estimator,
            "sampler": statistics.sampler,
        },
        "foreground_share": run.journal.get("foreground_share"),
        "seconds": {name: run.seconds(name) for name in PHASES if run.finished(name)},
        "machine": machine(),
        "versions": versions(),
        "commit": commit(),
        "commands": [command],
    }


def report(run: Run) -> None:
    """Makes the page from what the other phases have left."""
    page = make_report(
        open_runs([str(run.output)]),
        focus=SUBJECT,
        command=shlex.join(["logn", "report", str(run.output), "--output", "FILE"]),
        title=f"LogN on LT-Glyphs, size {run.size}",
    )
    write_report(run.report, page)
    run.journal["summary"] = summarise(page.comparison)


@dataclasses.dataclass(frozen=True)
class Phase:
    """A phase: what it does, what it says of itself, and the file that it leaves."""

    work: Callable[[Run], None]
    says: Callable[[Run], str]
    leaves: Callable[[Run], Path]


def _draw_says(run: Run) -> str:
    size = get_size(run.size)
    return f"{size.train_images + size.val_images:,} images of {size.num_classes:,} classes"


def _train_says(run: Run) -> str:
    solver, sampler = run.cfg.SOLVER, run.cfg.DATALOADER.SAMPLER_TRAIN
    return (
        f"Mask R-CNN, {solver.MAX_ITER:,} iterations of {solver.IMS_PER_BATCH} images, {sampler}, "
        f"on {run.cfg.MODEL.DEVICE}"
    )


PHASES = {
    "draw": Phase(draw, _draw_says, lambda run: run.checksums),
    "train": Phase(train, _train_says, lambda run: run.weights),
    "collect": Phase(
        collect,
        lambda run: "logit statistics in one pass over the training set",
        lambda run: run.statistics,
    ),
    "evaluate": Phase(
        evaluate,
        lambda run: f"{len(CALIBRATIONS)} calibrations from one pass over the validation set",
        lambda run: run.results,
    ),
    "report": Phase(report, lambda run: str(run.report), lambda run: run.report),
}


def is_done(run: Run, name: str) -> bool:
    """Whether a phase has ended, after all phases that it builds on."""
    names = list(PHASES)
    last = max((run.finished(each) for each in names[: names.index(name)]), default=0.0)
    return run.finished(name) > last and PHASES[name].leaves(run).is_file()


def run_phases(run: Run, only: str | None) -> None:
    """Does what is not done yet.

    Args:
        run (Run): the run.
        only (str): one phase; the report is then made anew. None for all.

    Raises:
        ValueError: that phase needs an earlier one.
    """
    names = list(PHASES)
    for name in names if only is None else names[: names.index(only) + 1]:
        done = is_done(run, name)
        if only not in (None, name):
            if not done:
                raise UserError(f"'{only}' needs '{name}': run that first, or leave out --phase.")
        elif done and only != "report":
            say(f"{_mark(name)} done before, in {run.seconds(name):.0f} s")
        else:
            roughly = ROUGHLY[run.size][name]
            say(f"{_mark(name)} {PHASES[name].says(run)} (about {roughly})")
            with run.timed(name):
                PHASES[name].work(run)
            say(f"{_mark(name)} done in {run.seconds(name):.0f} s")


def _mark(name: str) -> str:
    return f"[{list(PHASES).index(name) + 1}/{len(PHASES)}] {name}:"


def say(text: str) -> None:
    """A line for people, at once."""
    print(text, flush=True)


def setup_logging(output: Path) -> None:
    """Detectron2's lines on the terminal and in OUTPUT/log.txt, without the model's printout."""
    for name in ("detectron2", "fvcore", "logn_d2"):
        setup_logger(str(output), name=name, abbrev_name=name)
    logging.getLogger("detectron2.engine.defaults").setLevel(logging.WARNING)


def run(args: argparse.Namespace) -> int:
    """Runs the phases and prints the table.

    Returns:
        int: 0, or 130 when interrupted; a mistake ends the program with 1.
    """
    with short_errors():
        job = open_run(args)
    setup_logging(job.output)
    try:
        with short_errors(str(job.output / "log.txt")):
            run_phases(job, args.phase)
    except KeyboardInterrupt:
        print("\nInterrupted; the same command continues from here.", file=sys.stderr)
        return 130
    if is_done(job, "evaluate"):
        results = Results.load(job.results)
        table = format_table({row.calibration: row.tasks for row in results.rows})
        say(f"\n{table}\n")
    if is_done(job, "report"):
        say("\n".join([*job.journal["summary"], "", f"Report: {job.report}"]))
    return 0
