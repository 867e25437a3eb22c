#!/usr/bin/env python
"""Reproduce Table 1 of the paper on LVIS v1: train and evaluate all unfinished rows.

The rows are those of docs/methods.md. Rows that others start from come first; a finished row is
kept, and an interrupted one is resumed. After a failure, the rows that do not depend on it
continue. OUTPUT_DIR/table1.md shows our figures beside the paper's; it is updated after each row.

Needs LVIS v1 under $DETECTRON2_DATASETS and GPUs. The remaining time is estimated from measured
iterations of the same detector, once there are any.

Example:
    python benchmarks/paper_table1.py --dry-run
    python benchmarks/paper_table1.py --num-gpus 8
    python benchmarks/paper_table1.py --num-gpus 8 --detectors "Mask R-CNN R-50" --samplers RFS
"""

from __future__ import annotations

import argparse
import json
import re
import shlex
import statistics
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from detectron2.config import CfgNode

from logn_d2 import UNCALIBRATED
from logn_d2.engine import load_config, short_errors
from logn_d2.engine.experiments import is_trained
from logn_d2.errors import UserError
from logn_d2.files import atomic_write

ROOT = Path(__file__).resolve().parents[1]
METHODS = ROOT / "docs" / "methods.md"
METRICS = ("AP", "APr", "APc", "APf")
LINEAR = ROOT / "configs" / "linear"
ROW = re.compile(r"\| (.+?) \| (random|RFS) \| (.+?) \| (.+?) \| \[`(.+?)`\]\(.+?\) \| (.+?) \|")


@dataclass(frozen=True)
class Row:
    """A row of the table, as docs/methods.md has it."""

    detector: str
    sampler: str
    method: str
    how: str
    config: str
    paper: str


@dataclass(frozen=True)
class Job:
    """A config to train or evaluate."""

    config: Path
    cfg: CfgNode
    verb: str

    @property
    def folder(self) -> Path:
        return Path(self.cfg.OUTPUT_DIR)

    def results(self) -> list[Mapping[str, Mapping[str, float]]]:
        """Rows of its evaluation; empty if it is not finished."""
        (test,) = self.cfg.DATASETS.TEST
        path = self.folder / "inference" / test / "results.json"
        return json.loads(path.read_text(encoding="utf-8"))["rows"] if path.is_file() else []

    def is_done(self) -> bool:
        return bool(self.results()) and (self.verb == "evaluate" or is_trained(self.folder))

    def command(self, num_gpus: int) -> list[str]:
        """The arguments of `logn`."""
        given = ["--config-file", str(self.config), "--num-gpus", str(num_gpus)]
        return [self.verb, *given, "--resume"]

    def seconds_per_iteration(self) -> float | None:
        """Median of the logged times of its training; None before."""
        path = self.folder / "metrics.json"
        lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
        times = [entry["time"] for entry in map(json.loads, lines) if "time" in entry]
        return statistics.median(times) if times else None


def read_rows(path: Path = METHODS) -> list[Row]:
    """The rows of docs/methods.md, in their order."""
    return [Row(*match.groups()) for match in ROW.finditer(path.read_text(encoding="utf-8"))]


def make_jobs(rows: Sequence[Row]) -> dict[str, Job]:
    """Config -> job, for these rows and, first, the rows they start from.

    Raises:
        ValueError: a row starts from weights that no config here makes.
    """
    every = {row.config: row.how.split()[0] for row in read_rows()}
    every |= {str(p.relative_to(ROOT)): "train" for p in LINEAR.glob("lvis_v1*.yaml")}
    known = {name: Job(ROOT / name, load_config(ROOT / name), verb) for name, verb in every.items()}
    jobs: dict[str, Job] = {}

    def add(name: str) -> None:
        first, weights = starts_from(known[name], known), known[name].cfg.MODEL.WEIGHTS
        if first is not None:
            add(first)
        elif weights.endswith("model_final.pth"):
            raise UserError(f"{name} starts from {weights}, which no config of the table makes.")
        jobs.setdefault(name, known[name])

    for row in rows:
        add(row.config)
    return jobs


def starts_from(job: Job, jobs: Mapping[str, Job]) -> str | None:
    """The config of the training whose weights a job takes; None for a backbone's."""
    weights = Path(job.cfg.MODEL.WEIGHTS)
    return next((n for n, j in jobs.items() if j.folder / "model_final.pth" == weights), None)


def figures(row: Row, job: Job) -> str:
    """Box AP / mask AP / APr / APc / APf as in the paper's column; "" if it is not finished."""
    wanted = [
        each for each in job.results() if (each["calibration"] == UNCALIBRATED) == is_raw(row)
    ]
    if not wanted:
        return ""
    box, mask = wanted[0]["bbox"], wanted[0]["segm"]
    return " / ".join(f"{v:.1f}" for v in (box["AP"], *(mask[m] for m in METRICS)))


def is_raw(row: Row) -> bool:
    """Whether the row is of the uncalibrated model: all that are trained."""
    return row.how.startswith("train")


def table(rows: Iterable[Row], jobs: Mapping[str, Job]) -> str:
    """The table with a column of our figures."""
    lines = ["| detector | sampler | method | config | paper | ours |", "|---" * 6 + "|"]
    for row in rows:
        cells = (row.detector, row.sampler, row.method, f"`{row.config}`", row.paper)
        lines.append(f"| {' | '.join(cells)} | {figures(row, jobs[row.config])} |")
    return "\n".join(lines) + "\n"


def time_left(jobs: Iterable[Job], measured: Mapping[str, float]) -> str:
    """Hours of the remaining trainings whose detector's depth has been measured."""
    left = [job for job in jobs if not job.is_done() and job.verb == "train"]
    unknown = [job for job in left if key_of(job) not in measured]
    hours = sum(j.cfg.SOLVER.MAX_ITER * measured.get(key_of(j), 0) for j in left) / 3600
    more = f", and {len(unknown)} trainings that nothing is known of" if unknown else ""
    return f"{len(left)} trainings left: about {hours:.0f} h{more}"


def key_of(job: Job) -> str:
    """Trainings with the same key take about the same time for an iteration."""
    return f"{job.cfg.MODEL.ROI_HEADS.NAME} {job.cfg.MODEL.RESNETS.DEPTH}"


def run(jobs: Mapping[str, Job], rows: Sequence[Row], args: argparse.Namespace) -> list[str]:
    """Run the unfinished jobs; return the configs that failed or were skipped."""
    failed: list[str] = []
    for name, job in jobs.items():
        first = starts_from(job, jobs)
        if first in failed:
            print(f"left out: {name}, which starts from {first}", flush=True)
            failed.append(name)
        elif not job.is_done():
            command = job.command(args.num_gpus)
            measured = {key_of(j): s for j in jobs.values() if (s := j.seconds_per_iteration())}
            print(time_left(jobs.values(), measured), flush=True)
            print(f"$ {shlex.join(['logn', *command])}", flush=True)
            if subprocess.run([sys.executable, "-m", "logn_d2", *command]).returncode:
                print(f"failed: {name}; its log is in {job.folder}/log.txt", flush=True)
                failed.append(name)
        with atomic_write(args.output) as temporary:
            temporary.write_text(table(rows, jobs), encoding="utf-8")
    return failed


def main(argv: Sequence[str] | None = None) -> int:
    """Return the exit status: 1 if a row failed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    every = read_rows()
    for name in ("detector", "sampler", "method"):
        choices = list(dict.fromkeys(getattr(row, name) for row in every))
        parser.add_argument(f"--{name}s", nargs="+", choices=choices, default=choices)
    parser.add_argument("--num-gpus", type=int, default=8)
    parser.add_argument("--output", type=Path, default=Path("output/table1.md"), metavar="FILE")
    parser.add_argument("--dry-run", action="store_true", help="only print the commands")
    args = parser.parse_args(argv)
    rows = [
        row
        for row in every
        if row.detector in args.detectors
        and row.sampler in args.samplers
        and row.method in args.methods
    ]
    with short_errors():
        jobs = make_jobs(rows)
        if args.dry_run:
            for job in jobs.values():
                state = "  # done" if job.is_done() else ""
                print(shlex.join(["logn", *job.command(args.num_gpus)]) + state)
            return 0
        failed = run(jobs, rows, args)
    print(f"Table: {args.output}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
