"""The ablations of the LogN paper on finished trainings; missing trainings are run first."""

from __future__ import annotations

import argparse
import functools
import logging
import shlex
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from detectron2.config import CfgNode
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger

from .. import UNCALIBRATED
from ..analysis import format_table
from ..engine import load_config, short_errors
from ..engine.experiments import (
    Metrics,
    Row,
    check_same_training,
    has_begun,
    is_trained,
    measure,
    run_config,
)
from ..errors import UserError
from ..files import write_json, write_text
from ..provenance import commit, machine
from .run import processes_here, start

# The baseline of most tables, and the method as published.
PLAIN, LOGN = Row(UNCALIBRATED), Row("LogN", "logn")
RFS, RANDOM = "RepeatFactorTrainingSampler", "TrainingSampler"

logger = logging.getLogger("logn_d2.ablations")


@dataclass(frozen=True)
class Ablation:
    """One ablation table.

    Attributes:
        title (str): content of the table, and its place in the paper.
        rows (tuple[Row, ...]): rows for each training.
        key (str): a config key, for tables that compare trainings; "" for only the run itself.
        values (Mapping[str, str]): name of a training in the table -> value of the key.
        cascade (bool): whether it applies only to cascades.
    """

    title: str
    rows: tuple[Row, ...]
    key: str = ""
    values: Mapping[str, str] | None = None
    cascade: bool = False


ABLATIONS = {
    "components": Ablation(
        "Components of LogN (paper Table 2)",
        (
            PLAIN,
            Row("mean", "logn_mean"),
            Row("std", "logn_std"),
            Row("beta", "logn_beta"),
            Row("mean, std, beta", "logn"),
        ),
    ),
    "beta": Ablation(
        "Choice of beta (paper Table 3, rows as inferred from the text)",
        (
            Row("beta -4", "logn(beta=-4)"),
            Row("beta -12", "logn(beta=-12)"),
            Row("background mean", "logn(beta=background)"),
            Row("largest mean", "logn(beta=max)"),
            Row("mean of means", "logn(beta=mean)"),
            Row("smallest mean", "logn"),
        ),
    ),
    "positives": Ablation(
        "Statistics from positives only (paper App. B.3)",
        (
            PLAIN,
            Row("positives of each class", "logn", population="positives"),
            Row("all samples", "logn", population="sampled"),
        ),
    ),
    "squared_std": Ablation(
        "Division by the squared standard deviation (paper App. B.4)",
        (PLAIN, Row("std squared", "logn(std_power=2)"), Row("std", "logn")),
    ),
    "population": Ablation(
        "Population of RoIs of the statistics",
        (
            PLAIN,
            Row("sampled RoIs", "logn", population="sampled"),
            Row("proposals", "logn", population="proposals"),
        ),
    ),
    "estimator": Ablation(
        "Estimator of the statistics",
        (
            PLAIN,
            Row("EMA, as published", "logn", estimator="ema"),
            Row("EMA, bias-corrected", "logn", estimator="ema_debiased"),
            Row("exact", "logn", estimator="exact"),
        ),
    ),
    "cascade_average": Ablation(
        "Average over the stages of a cascade",
        tuple(
            replace(row, label=f"{row.label}, {average}", average=average)
            for average in ("logits", "probs")
            for row in (PLAIN, LOGN)
        ),
        cascade=True,
    ),
    "sampler": Ablation(
        "Sampler of the training",
        (PLAIN, LOGN),
        key="DATALOADER.SAMPLER_TRAIN",
        values={"random": RANDOM, "RFS": RFS},
    ),
    "classifier": Ablation(
        "Classifier of the box head",
        (PLAIN, LOGN),
        key="MODEL.LOGN.CLASSIFIER",
        values={"linear": "linear", "cosine": "cosine"},
    ),
}


def complete(args: argparse.Namespace) -> None:
    """Split the names into ablations and runs.

    Raises:
        ValueError: a name is neither, or one of both is missing.
    """
    known = [*ABLATIONS, "all"]
    # argparse can't tell them apart: both are positional, in any order.
    args.runs = [Path(each) for each in args.names if each not in known]
    args.names = [each for each in args.names if each in known]
    for run in args.runs:
        if not run.is_dir():
            raise UserError(f"'{run}' is neither an ablation ({', '.join(known)}) nor a folder.")
    if args.config_file:
        args.runs.append(Path(load_config(args.config_file).OUTPUT_DIR))
    if not args.names or not args.runs:
        raise UserError(f"Name an ablation ({', '.join(known)}) and a run, or --config-file.")
    if "all" in args.names:
        args.names = list(ABLATIONS)
    args.output = args.output or args.runs[0] / "ablations"


def train(config_file: Path | str, output: Path, args: argparse.Namespace, *opts: str) -> None:
    """Train, or resume from the last checkpoint, unless the folder has a finished training.

    Raises:
        ValueError: the training has failed, or the existing one has other settings.
    """
    # Statistics and evaluation follow later, for all rows at once.
    keys = ["OUTPUT_DIR", str(output), "MODEL.LOGN.COLLECT.ENABLED", "False", *args.opts, *opts]
    if has_begun(output):
        check_same_training(output, load_config(config_file, keys))
    if is_trained(output):
        return
    command = [sys.executable, "-m", "logn_d2", "train", "--config-file", str(config_file)]
    command += ["--resume"]  # without a checkpoint it starts from the beginning
    command += ["--num-gpus", str(args.num_gpus), "--num-processes", str(args.num_processes)]
    command += keys
    print(f"Training {output}: {shlex.join(command)}", flush=True)
    # A process of its own: a training leaves a process group, loggers and GPU memory behind.
    if subprocess.run(command).returncode:
        raise UserError(f"The training has failed; its log is {output}/log.txt.")


def prepare(args: argparse.Namespace) -> None:
    """Run the missing trainings that the tables need."""
    if args.config_file:
        train(args.config_file, args.runs[-1], args)
    for run in args.runs:
        cfg = run_config(run)
        for name in args.names:
            ablation = ABLATIONS[name]
            for value in (ablation.values or {}).values():
                # The run itself is the training with its own value.
                if value != value_of(cfg, ablation.key):
                    train(run / "config.yaml", twin(run, value), args, ablation.key, value)


def twin(run: Path, value: str) -> Path:
    """The folder of the run with this value, which later calls find again."""
    return run.with_name(f"{run.name}_{value}")


def value_of(cfg: CfgNode, key: str) -> str:
    """The value of a config key, by its dotted name."""
    return functools.reduce(getattr, key.split("."), cfg)


def rows_of(run: Path, ablation: Ablation) -> dict[str, tuple[Path, Row]]:
    """Label in the table -> run and row."""
    if not ablation.key:
        return {row.label: (run, row) for row in ablation.rows}
    own = value_of(run_config(run), ablation.key)
    return {
        f"{what}, {row.label}": (run if value == own else twin(run, value), row)
        for what, value in ablation.values.items()
        for row in ablation.rows
    }


def applies(run: Path, ablation: Ablation) -> bool:
    """Whether the table applies to this run."""
    return not ablation.cascade or "Cascade" in run_config(run).MODEL.ROI_HEADS.NAME


def measure_runs(args: argparse.Namespace) -> dict[str, dict[str, list[Metrics]]]:
    """Ablation -> label -> metrics of each run; each run's network runs once for all tables."""
    tables = {
        name: [rows_of(run, ABLATIONS[name]) for run in args.runs]
        for name in args.names
        if applies(args.runs[0], ABLATIONS[name])
    }
    wanted: dict[Path, dict[str, Row]] = {}
    for places in (place for table in tables.values() for runs in table for place in runs.values()):
        # A row that several tables share is measured once.
        run, row = places
        wanted.setdefault(run, {})[key_of(row)] = replace(row, label=key_of(row))
    # Run by run: only one model is in memory.
    found = {}
    for index, (run, rows) in enumerate(wanted.items()):
        logger.info("Run %d of %d, %s: %s.", index + 1, len(wanted), run, ", ".join(rows))
        found[run] = measure(run_config(run), list(rows.values()), run / "ablations")
    if not comm.is_main_process():
        return {}
    return {
        name: {
            label: [found[table[label][0]][key_of(table[label][1])] for table in runs]
            for label in runs[0]
        }
        for name, runs in tables.items()
    }


def key_of(row: Row) -> str:
    """The identity of a row, independent of its label."""
    parts = (row.calibration, row.population, row.estimator, row.average)
    return " ".join(part for part in parts if part)


def write(args: argparse.Namespace, tables: Mapping[str, Mapping[str, list[Metrics]]]) -> None:
    """Print and write the tables, and write their figures as json."""
    runs = ", ".join(map(str, args.runs))
    lines = [f"# Ablations of {runs}", "", f"`{args.command}`", ""]
    lines += [f"Commit {commit()}, {machine()['cpu']}.", ""]
    for name, rows in tables.items():
        lines += [f"## {ABLATIONS[name].title}", "", format_table(rows, title=""), ""]
    print("\n".join(lines))
    write_text(args.output / "ablations.md", "\n".join(lines))
    write_json(args.output / "ablations.json", tables)


def work(args: argparse.Namespace) -> None:
    """The work of each process."""
    with short_errors():
        for name in ("detectron2", "logn_d2"):
            setup_logger(str(args.output), distributed_rank=comm.get_rank(), name=name)
        tables = measure_runs(args)
        if comm.is_main_process():
            write(args, tables)


def run(args: argparse.Namespace) -> int:
    """Run missing trainings, then start the processes; return the exit code."""
    with short_errors():
        complete(args)
        # Before any measurement, so that a training that fails costs no pass.
        prepare(args)
        skipped = [name for name in args.names if not applies(args.runs[0], ABLATIONS[name])]
        if skipped:
            print(f"Left out, because {args.runs[0]} is not a cascade: {', '.join(skipped)}")
        device = run_config(args.runs[0]).MODEL.DEVICE
        here = processes_here(device, args.num_gpus, args.num_processes)
        start(work, args, device, here)
    return 0
