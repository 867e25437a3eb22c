"""Long-tail methods on LT-Glyphs, all with the same budget, sampler by sampler and seed by seed.

All trainings start from one detector of other characters, as those of the papers start from
ImageNet. Post-hoc calibrations share one training; second stages share their first stage. Each
training ends with its evaluation. After each training, the table is written from all results in the
output folder, and after an interruption the same command resumes. A full run takes about five
core-hours.

Both samplers can be run at the same time, with one thread each:

    python benchmarks/methods.py --methods cross_entropy --seeds 0 --samplers rfs  # pretraining
    OMP_NUM_THREADS=1 python benchmarks/methods.py --samplers rfs &
    OMP_NUM_THREADS=1 python benchmarks/methods.py --samplers random

Examples:
    python benchmarks/methods.py
    python benchmarks/methods.py --size tiny --iterations 10 --seeds 0 1
    python benchmarks/methods.py --samplers rfs --methods cross_entropy seesaw
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import operator
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from compared_methods import CROSS_ENTROPY, METHODS, SAMPLERS, SIZES
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from resumable import run_to_exit_status
from tabulate import tabulate

from logn_d2 import UNCALIBRATED
from logn_d2.analysis import format_spread
from logn_d2.config import config_file
from logn_d2.engine import Trainer, load_config
from logn_d2.engine.experiments import (
    Row,
    check_same_training,
    has_begun,
    is_trained,
    measure,
    run_config,
)
from logn_d2.files import atomic_write
from logn_d2.glyphs import draw_glyphs
from logn_d2.lvis import LvisGroundTruth, evaluate_fixed_ap, evaluate_lvis
from logn_d2.sweeps import SweepDetections

ROOT = Path(__file__).resolve().parents[1]
METRICS = ("AP", "APr", "APc", "APf")
# Classes do not compete for places in an image (docs/when_logn_helps.md).
FIXED = ("fixed AP", "fixed APr")
# Detections per image for fixed AP; AP uses the best of them, up to the config's limit.
KEPT = 1000


@dataclass(frozen=True)
class Job:
    """One training: its folder, its config, and its calibrations."""

    folder: Path
    cfg: CfgNode
    after: tuple[Row, ...] = ()

    @property
    def results(self) -> Path:
        """The evaluation at its end."""
        return self.folder / "inference" / self.cfg.DATASETS.TEST[0] / "results.json"

    def seconds(self) -> float:
        """Of its iterations, at their median speed."""
        lines = (self.folder / "metrics.json").read_text().splitlines()
        times = [entry["time"] for entry in map(json.loads, lines) if "time" in entry]
        return statistics.median(times) * self.cfg.SOLVER.MAX_ITER

    @property
    def settings(self) -> Path:
        """The config of its start."""
        return self.folder / "benchmark.yaml"

    def has_begun(self) -> bool:
        """Whether it was started with these settings.

        Raises:
            ValueError: with others.
        """
        if has_begun(self.folder):
            check_same_training(self.folder, self.cfg)
            return True
        return False

    def is_done(self) -> bool:
        """Whether it is trained and evaluated; raises like `has_begun`."""
        return self.has_begun() and is_trained(self.folder) and self.results.is_file()


def pretraining_folder(args: argparse.Namespace) -> Path:
    """Folder of the initial detector, the same for all methods, samplers and seeds."""
    return args.output / "pretraining"


def make_pretraining(args: argparse.Namespace) -> Job:
    """The training of the initial detector."""
    folder = pretraining_folder(args)
    cfg = load_config(config_file(SIZES[args.size].pretraining))
    cfg.MODEL.LOGN.COLLECT.ENABLED = False
    cfg.OUTPUT_DIR = str(folder)
    cfg.freeze()
    return Job(folder, cfg)


def make_job(args: argparse.Namespace, sampler: str, seed: int, name: str) -> Job:
    """The training of a method."""
    method, size = METHODS[name], SIZES[args.size]
    place = args.output / sampler / f"seed{seed}"
    cfg = load_config(config_file(size.config))
    rate = cfg.SOLVER.BASE_LR
    cfg.DATALOADER.SAMPLER_TRAIN = SAMPLERS[sampler]
    cfg.DATALOADER.REPEAT_THRESHOLD = size.not_frequent
    if method.config:
        cfg.merge_from_file(config_file(method.config))
    if method.loss:
        cfg.MODEL.LOGN.LOSS = method.loss_for(size, args.iterations)
    cfg.MODEL.MASK_ON = False
    cfg.MODEL.LOGN.COLLECT.ENABLED = False
    if cfg.MODEL.LOGN.SECOND_STAGE:
        cfg.MODEL.WEIGHTS = str(place / method.first / "model_final.pth")
    elif size.pretraining:
        cfg.MODEL.WEIGHTS = str(pretraining_folder(args) / "model_final.pth")
    cfg.SOLVER.MAX_ITER = max(1, round(args.iterations * method.length))
    cfg.SOLVER.BASE_LR = rate
    cfg.SOLVER.LR_SCHEDULER_NAME, cfg.SOLVER.STEPS = "WarmupCosineLR", ()
    cfg.SOLVER.WARMUP_ITERS = min(cfg.SOLVER.WARMUP_ITERS, cfg.SOLVER.MAX_ITER // 4)
    cfg.SOLVER.CHECKPOINT_PERIOD = 100
    cfg.SEED, cfg.OUTPUT_DIR = seed, str(place / name)
    cfg.freeze()
    return Job(place / name, cfg, method.after)


def train(job: Job) -> None:
    """Train and evaluate, or resume an interrupted training.

    Raises:
        ValueError: the folder has a run with other settings, or the training has failed.
    """
    job.folder.mkdir(parents=True, exist_ok=True)
    if job.is_done():
        return
    with atomic_write(job.settings) as temporary:
        temporary.write_text(job.cfg.dump())
    command = [sys.executable, "-m", "logn_d2", "train", "--config-file", str(job.settings)]
    command.append("--resume")
    with open(job.folder / "terminal.txt", "a") as log:
        if subprocess.run(command, stdout=log, stderr=subprocess.STDOUT).returncode:
            raise ValueError(f"The training has failed; its log is {log.name}.")


def calibrate(job: Job) -> dict[str, dict[str, float]]:
    """Label -> figures of `figures` without calibration, then for each calibration."""
    found = calibrated(job)
    if found is None:
        found = figures(job, rows_of(job))
        with atomic_write(job.folder / "calibrated.json") as temporary:
            temporary.write_text(json.dumps(found, indent=1) + "\n")
    return found


def rows_of(job: Job) -> tuple[Row, ...]:
    """The training alone, and its calibrations."""
    return (Row(UNCALIBRATED), *job.after)


def figures(job: Job, rows: Sequence[Row]) -> dict[str, dict[str, float]]:
    """Label -> box AP under the config's limit of detections, and fixed AP, from one pass."""
    cfg = run_config(job.folder, ["TEST.DETECTIONS_PER_IMAGE", str(KEPT)])
    folder = job.folder / "calibrated"
    measure(cfg, rows, folder)
    swept = SweepDetections.load(folder / f"sweep_{cfg.MODEL.LOGN.CASCADE_AVERAGE}")
    truth = LvisGroundTruth.from_json(MetadataCatalog.get(cfg.DATASETS.TEST[0]).json_file)
    return figures_of(truth, swept, job.cfg.TEST.DETECTIONS_PER_IMAGE)


def figures_of(
    truth: LvisGroundTruth, swept: SweepDetections, limit: int
) -> dict[str, dict[str, float]]:
    """The same from detections of which only the best `limit` of an image count for AP."""
    found = {}
    for label in swept.names:
        detections = swept.detections(label)
        scores = evaluate_lvis(truth, detections, max_dets=limit).as_dict()
        fixed = evaluate_fixed_ap(truth, detections).as_dict()
        found[label] = {m: scores[m] for m in METRICS}
        found[label] |= {name: fixed[name.removeprefix("fixed ")] for name in FIXED}
    return found


def calibrated(job: Job) -> dict[str, dict[str, float]] | None:
    """The result of `calibrate`; None if there is none for these rows and weights."""
    path, weights = job.folder / "calibrated.json", job.folder / "model_final.pth"
    if not path.is_file() or path.stat().st_mtime < weights.stat().st_mtime:
        return None
    found = json.loads(path.read_text())
    # Files of older releases lack the training's own row, and fixed AP.
    return found if list(found) == [row.label for row in rows_of(job)] else None


def evaluated(job: Job) -> dict[str, float]:
    """Metrics of boxes at the end of a training."""
    (row,) = json.loads(job.results.read_text())["rows"]
    return {metric: row["bbox"][metric] for metric in METRICS}


def sizes_of_model(cfg: CfgNode) -> tuple[int, int]:
    """Numbers in parameters, and in other state: buffers, and LOCE's memory when it is full."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.DEVICE = "cpu"
    model = Trainer.build_model(cfg)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    state = sum(buffer.numel() for buffer in model.buffers())
    if hasattr(model.roi_heads, "memory"):
        box, capacity = cfg.MODEL.ROI_BOX_HEAD, cfg.MODEL.LOGN.MEMORY.CAPACITY
        roi = cfg.MODEL.FPN.OUT_CHANNELS * box.POOLER_RESOLUTION**2 + 4
        state += cfg.MODEL.ROI_HEADS.NUM_CLASSES * capacity * roi
    return parameters, state


class Table:
    """All results so far, of all processes that write to one folder, as Markdown.

    Args:
        args (Namespace): arguments of the command line; its samplers and methods are ignored.
    """

    def __init__(self, args: argparse.Namespace) -> None:
        self._args = args
        self._job = functools.cache(functools.partial(make_job, args))
        self._size = functools.cache(lambda name: sizes_of_model(self._job("rfs", 0, name).cfg))

    def __str__(self) -> str:
        args = self._args
        lines = [
            "# Methods on LT-Glyphs",
            "",
            f"`python benchmarks/methods.py --size {args.size} --iterations {args.iterations}`: "
            "box AP in percent, mean ± standard deviation over seeds; fixed AP, where classes do "
            "not compete for places in an image; time of the iterations of "
            "all stages relative to cross-entropy's; additional numbers in the model compared with "
            "cross-entropy's, as parameters and as other state. The time excludes passes without "
            "training: LogN's over the training set, LOCE's over five images of each "
            "class.",
        ]
        for sampler in SAMPLERS:
            body = [line for name in METHODS for line in self._lines(sampler, name)]
            headers = ["method", "seeds", *METRICS, *FIXED, "time", "parameters", "state"]
            align = ["left", *["right"] * (len(headers) - 1)]
            table = tabulate(body, headers, "pipe", disable_numparse=True, colalign=align)
            lines += ["", f"## Sampler: {sampler}", "", table] if body else []
        return "\n".join([*lines, ""])

    def _lines(self, sampler: str, name: str) -> Iterator[list[str]]:
        """A method's line, and those of its calibrations."""
        jobs = [self._job(sampler, seed, name) for seed in self._args.seeds]
        jobs = [job for job in jobs if job.is_done()]
        if not jobs:
            return
        times = [self._seconds(sampler, job, name) for job in jobs]
        parameters, state = map(operator.sub, self._size(name), self._size(CROSS_ENTROPY))
        found = [scores for scores in map(calibrated, jobs) if scores]
        runs = [{**evaluated(job), **_fixed(calibrated(job))} for job in jobs]
        yield _line(METHODS[name].title, runs, times, parameters, state)
        state += 2 * jobs[0].cfg.MODEL.ROI_HEADS.NUM_CLASSES
        suffix = METHODS[name].title.removeprefix(METHODS[CROSS_ENTROPY].title)
        for row in METHODS[name].after if found else ():
            scores = [each[row.label] for each in found]
            yield _line(row.label + suffix, scores, times, parameters, state)

    def _seconds(self, sampler: str, job: Job, name: str) -> float:
        """Of all its stages, in those of cross-entropy with the same seed."""
        seed, seconds = job.cfg.SEED, job.seconds()
        if job.cfg.MODEL.LOGN.SECOND_STAGE:
            seconds += self._job(sampler, seed, METHODS[name].first).seconds()
        return seconds / self._job(sampler, seed, CROSS_ENTROPY).seconds()


def _fixed(found: Mapping[str, Mapping[str, float]] | None) -> dict[str, float]:
    """Fixed AP of a training alone; NaN before it has been measured."""
    return {name: found[UNCALIBRATED][name] if found else math.nan for name in FIXED}


def _line(
    label: str,
    runs: Sequence[Mapping[str, float]],
    times: Sequence[float],
    parameters: int,
    state: int,
) -> list[str]:
    scores = [format_spread([run[metric] for run in runs]) for metric in (*METRICS, *FIXED)]
    return [
        *(label, str(len(runs)), *scores),
        *(format_spread(times, 2), f"{parameters:+,}", f"{state:+,}"),
    ]


def draw_sets(size: str) -> None:
    """Draw the missing data sets."""
    root = os.environ.get("DETECTRON2_DATASETS", "datasets")
    for name in [size, "pretrain"] if SIZES[size].pretraining else [size]:
        draw_glyphs(root, name)


def run(args: argparse.Namespace, say: Callable[[str], None]) -> None:
    """Run the missing trainings, and write the table after each method."""
    table = Table(args)
    if SIZES[args.size].pretraining:
        say("pretraining")
        train(make_pretraining(args))
    for sampler in args.samplers:
        for seed in args.seeds:
            for name in args.methods:
                job = make_job(args, sampler, seed, name)
                say(f"{sampler}, seed {seed}: {METHODS[name].title}")
                train(job)
                calibrate(job)
                with atomic_write(args.output / "methods.md") as temporary:
                    temporary.write_text(str(table), encoding="utf-8")
    print(table)


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Command line arguments."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", choices=list(SIZES), default="demo")
    parser.add_argument("--iterations", type=int, default=300, help="length of a first stage")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--samplers", nargs="+", choices=list(SAMPLERS), default=list(SAMPLERS))
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS))
    parser.add_argument("--output", type=Path, help="default: output/methods_SIZE")
    args = parser.parse_args(argv)
    args.output = args.output or Path("output") / f"methods_{args.size}"
    # Everything is compared with cross-entropy, and second stages need their first.
    wanted = {CROSS_ENTROPY, *args.methods, *(METHODS[name].first for name in args.methods)}
    args.methods = [name for name in METHODS if name in wanted]
    return args


def main() -> int:
    """Run the benchmark; the exit status is 130 after Ctrl-C."""
    args = parse_args()

    def work() -> None:
        args.output.mkdir(parents=True, exist_ok=True)
        draw_sets(args.size)
        run(args, lambda text: print(text, flush=True))

    return run_to_exit_status(work)


if __name__ == "__main__":
    sys.exit(main())
