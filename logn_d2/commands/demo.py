"""All phases on LT-Glyphs, as a chain of commands: draw, train, collect, sweep, report."""

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

from ..analysis import format_table
from ..data import class_counts
from ..engine import short_errors
from ..errors import UserError
from ..report import ClassInfo, Results
from . import INTERRUPTED
from .demo_run import Run, open_run
from .demo_words import ending, meaning, overview, roughly, says

# Runs a command line, without the word `logn`, and returns its exit status.
Logn = Callable[[list[str]], int]

SUBJECT = "logn"
# Rarely costs a group of classes anything (docs/when_logn_helps.md).
SAFE = "p2p(source=negatives, alpha=0.65, offset=-1)"
# Beside LogN, methods that need no further training either.
CALIBRATIONS = (SUBJECT, "norcal(gamma=0.6)", "fracal", SAFE, "auto")
# Seed of the data set. --seed is the training's, so that runs with different seeds share the data.
DATA_SEED = 0


@dataclasses.dataclass(frozen=True)
class Phase:
    """A phase: its command, and the file that it writes.

    Attributes:
        command (Callable): the arguments of `logn`.
        leaves (Callable): the file.
        after (Callable): completes that file; None for nothing.
    """

    command: Callable[[Run], list[str]]
    leaves: Callable[[Run], Path]
    after: Callable[[Run], None] | None = None


def draw(run: Run) -> list[str]:
    """Draw the data set, or verify it."""
    return ["data", "draw", "--size", run.size, "--root", str(run.root), "--seed", str(DATA_SEED)]


def train(run: Run) -> list[str]:
    """Train the detector; statistics and evaluation are separate phases here."""
    options = ["OUTPUT_DIR", str(run.output), "SEED", str(run.seed)]
    # An empty DATASETS.TEST evaluates nothing.
    options += ["MODEL.LOGN.COLLECT.ENABLED", "False", "DATASETS.TEST", "()"]
    options += ["DATALOADER.SAMPLER_TRAIN", run.cfg.DATALOADER.SAMPLER_TRAIN]
    return ["train", "--config-file", str(run.config_file), "--resume", *_processes(run), *options]


def collect(run: Run) -> list[str]:
    """Collect the statistics file."""
    given = ["--output", str(run.statistics), "--resume", *_processes(run)]
    return ["collect", *_model(run), *given]


def sweep(run: Run) -> list[str]:
    """Evaluate every calibration from one pass over the validation set."""
    given = ["--stats", str(run.statistics), "--dataset", run.val_set]
    given += ["--output", str(run.output), "--resume", *_processes(run)]
    given += ["--calibrations", *CALIBRATIONS]
    return ["sweep", *_model(run), *given]


def report(run: Run) -> list[str]:
    """Make the page from the files of the other phases."""
    title = f"LogN on LT-Glyphs, size {run.size}"
    given = ["--dataset", run.val_set, "--focus", SUBJECT, "--title", title]
    return ["report", str(run.output), *given, "--output", str(run.report)]


def _model(run: Run) -> list[str]:
    """Options that name the trained detector, with the config written by its training."""
    return ["--config-file", str(run.output / "config.yaml"), "--weights", str(run.weights)]


def _processes(run: Run) -> list[str]:
    return ["--num-processes", str(run.processes)] if run.processes > 1 else []


def add_provenance(run: Run) -> None:
    """Add to the results what `logn sweep` does not know: the demo, and the drawn characters."""
    results, counts = Results.load(run.results), class_counts(run.train_set)
    classes = ClassInfo(
        names=counts.class_names,
        labels=drawn_characters(run),
        groups=tuple(run.truth().groups.tolist()),
        image_count=counts.image_count,
        instance_count=counts.instance_count,
    )
    known = {**results.provenance, **provenance(run)}
    dataclasses.replace(results, provenance=known, classes=classes).save(run.results)


def drawn_characters(run: Run) -> tuple[str, ...]:
    """The character of each class, from its definition."""
    content = json.loads(Path(MetadataCatalog.get(run.val_set).json_file).read_text("utf-8"))
    categories = sorted(content["categories"], key=lambda category: category["id"])
    # `draw` writes a character's code point into its definition.
    codes = [re.search(r"U\+([0-9A-F]+)", category["def"]) for category in categories]
    return tuple(
        chr(int(code[1], 16)) if code else category["name"]
        for code, category in zip(codes, categories, strict=True)
    )


def provenance(run: Run) -> dict[str, Any]:
    """The settings and data needed, besides the commands, to reproduce the numbers."""
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
        "seconds": {name: run.seconds(name) for name in PHASES if run.finished(name)},
        "commands": [command_line(run, name) for name in PHASES],
    }


def command_line(run: Run, name: str) -> str:
    """The command of a phase, as typed in a shell."""
    return shlex.join(["logn", *PHASES[name].command(run)])


PHASES = {
    "draw": Phase(draw, lambda run: run.checksums),
    "train": Phase(train, lambda run: run.weights),
    "collect": Phase(collect, lambda run: run.statistics),
    "evaluate": Phase(sweep, lambda run: run.results, add_provenance),
    "report": Phase(report, lambda run: run.report),
}


def is_done(run: Run, name: str) -> bool:
    """Whether a phase has finished, after all phases that it depends on."""
    names = list(PHASES)
    # By time, since a phase that was run again makes those after it outdated.
    last = max((run.finished(each) for each in names[: names.index(name)]), default=0.0)
    return run.finished(name) > last and PHASES[name].leaves(run).is_file()


def run_phases(run: Run, only: str | None, logn: Logn) -> None:
    """Run the unfinished phases.

    Args:
        run (Run): the run.
        logn (Callable): runs a command and returns its exit status.
        only (str): one phase; "report" is then made again. None for all.

    Raises:
        ValueError: that phase needs an earlier one.
    """
    names = list(PHASES)
    for name in names if only is None else names[: names.index(only) + 1]:
        done = is_done(run, name)
        if only not in (None, name):
            if not done:
                raise UserError(f"'{only}' needs '{name}': run that first, or leave out --phase.")
        elif done and only != "report":  # by name, the page is made again
            say(f"{_mark(name)} already done, in {run.seconds(name):.0f} s")
        else:
            say(f"\n{_mark(name)} {says(run, name)} (about {roughly(run.size, [name])})")
            say(f"$ {command_line(run, name)}")
            with run.timed(name):
                do(run, PHASES[name], logn)
            say(f"{_mark(name)} done in {run.seconds(name):.0f} s{_next(name)}")


def do(run: Run, phase: Phase, logn: Logn) -> None:
    """Run the command of a phase.

    Raises:
        KeyboardInterrupt: it was interrupted.
        SystemExit: it failed, after its error message.
    """
    status = logn(phase.command(run))
    if status == INTERRUPTED:
        raise KeyboardInterrupt
    if status:
        raise SystemExit(status)
    if phase.after is not None:
        phase.after(run)


def _mark(name: str) -> str:
    return f"[{list(PHASES).index(name) + 1}/{len(PHASES)}] {name}:"


def _next(name: str) -> str:
    after = list(PHASES)[list(PHASES).index(name) + 1 :]
    return f"; next: {after[0]}" if after else ""


def say(text: str) -> None:
    """Print a line at once, also into a pipe."""
    print(text, flush=True)


def quiet_logging() -> None:
    """Suppress the lines on the machine, the whole config and the model's layers."""
    logging.getLogger("detectron2").addFilter(_is_more_than_info)
    for name in ("detectron2.engine.defaults", "logn_d2.engine.trainer"):
        logging.getLogger(name).setLevel(logging.WARNING)


def _is_more_than_info(record: logging.LogRecord) -> bool:
    return record.levelno > logging.INFO


def run(args: argparse.Namespace) -> int:
    """Run the phases and print the table.

    Args:
        args (Namespace): the command line; ``logn`` runs another command and returns its exit
            status.

    Returns:
        int: 0, or 130 after an interruption; a mistake ends the program with 1.
    """
    with short_errors():
        job = open_run(args)
    quiet_logging()  # the table and the sentences should stand out
    if not is_done(job, "report"):
        say(overview(job))
    try:
        with short_errors(str(job.output / "log.txt")):
            run_phases(job, args.phase, args.logn)
    except KeyboardInterrupt:
        print("Repeat the `logn demo` command to resume.", file=sys.stderr)
        return INTERRUPTED
    if is_done(job, "evaluate"):
        results = Results.load(job.results)
        table = format_table({row.calibration: row.tasks for row in results.rows})
        say(f"\n{table}\n\n{meaning(results, SUBJECT)}")
    if is_done(job, "report"):
        say(ending(job))
    return 0
