"""Long-tail methods on LT-Glyphs, all with the same budget, sampler by sampler and seed by seed.

All trainings start from one detector of other characters, as those of the papers start from other
photographs. Calibrations after training share one training; second stages share their first. Each
training ends with its evaluation. The table is written whenever a method is done, and after an
interruption the same command goes on. About three hours on two cores, estimated from one training.

    python benchmarks/methods.py
    python benchmarks/methods.py --size tiny --iterations 10 --seeds 0 1
    python benchmarks/methods.py --samplers rfs --methods cross_entropy seesaw
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from detectron2.config import CfgNode
from tabulate import tabulate

from logn_d2.config import config_file
from logn_d2.core import atomic_write
from logn_d2.data import draw_glyphs
from logn_d2.engine import Trainer, load_config, short_errors
from logn_d2.engine.experiments import Row, is_trained, measure, run_config
from logn_d2.evaluation import format_spread

ROOT = Path(__file__).resolve().parents[1]
METRICS = ("AP", "APr", "APc", "APf")
CROSS_ENTROPY = "cross_entropy"
SAMPLERS = {"random": "TrainingSampler", "rfs": "RepeatFactorTrainingSampler"}


@dataclass(frozen=True)
class Size:
    """A size of LT-Glyphs.

    Attributes:
        config (str): of all methods, in configs/.
        not_frequent (float): share of images that a frequent class is in, at least.
        pretraining (str): config of what they start from; "" for random weights.
    """

    config: str
    not_frequent: float
    pretraining: str = ""


SIZES = {
    "demo": Size(
        "glyphs_demo_faster_rcnn_R_18_FPN_pretrained.yaml",
        0.033,
        "glyphs_pretrain_faster_rcnn_R_18_FPN.yaml",
    ),
    "tiny": Size("glyphs_tiny_mask_rcnn_R_18_FPN.yaml", 0.3),
}


@dataclass(frozen=True)
class Method:
    """A method that trains.

    Attributes:
        title (str): for the table.
        config (str): what it changes, in configs/; "" for nothing.
        loss (str): MODEL.LOGN.LOSS, with {share} for the size's share; "" for the config's.
        length (float): of its training, as a part of the first stage's.
        rate (float): its learning rate, as a part of the first stage's.
    """

    title: str
    config: str = ""
    loss: str = ""
    length: float = 1.0
    rate: float = 1.0


# Lengths and rates of second stages are those of the configs for LVIS v1, relative to 24 epochs at
# 0.02; EQL v2's repository trains cRT and LWS for about half as long as the first stage.
METHODS = {
    CROSS_ENTROPY: Method("cross-entropy"),
    "eql": Method("EQL", "eql/Base-EQL.yaml", "eql(threshold={share})"),
    "eql_v2": Method("EQL v2", "eql_v2/Base-EQLv2.yaml"),
    "seesaw": Method("Seesaw loss", "seesaw/Base-Seesaw.yaml"),
    "bags": Method("BAGS", "bags/Base-BAGS.yaml", length=0.5, rate=0.5),
    "loce": Method("LOCE", "loce/Base-LOCE.yaml", length=0.25),
    "crt": Method("cRT", "crt/Base-cRT.yaml", length=0.5),
    "lws": Method("LWS", "lws/Base-LWS.yaml", length=0.5),
    "focal": Method("focal loss", loss="focal"),
    "balanced_softmax": Method("balanced softmax", loss="balanced_softmax"),
    "inverse_logn": Method("inverse LogN", loss="inverse_logn"),
}
# After the training with cross-entropy.
AFTER = (
    Row("LogN", "logn"),
    Row("LogN, mean only", "logn_mean"),
    Row("LogN without beta", "logn_no_beta"),
    Row("NorCal, gamma 0.6", "norcal(gamma=0.6)"),
    Row("NorCal, class-balanced weights", "class_balanced(gamma=0.999)"),
    Row("logit adjustment", "logit_adjustment"),
)


@dataclass(frozen=True)
class Job:
    """One training: where it is, and its config."""

    folder: Path
    first: Path
    cfg: CfgNode

    @property
    def results(self) -> Path:
        """The evaluation at its end."""
        return self.folder / "inference" / self.cfg.DATASETS.TEST[0] / "results.json"

    def seconds(self) -> float:
        """Of its iterations, at their median speed, and of filling a memory before them."""
        lines = (self.folder / "metrics.json").read_text().splitlines()
        entries = list(map(json.loads, lines))
        times = [entry["time"] for entry in entries if "time" in entry]
        before = max(entry.get("memory/seconds", 0.0) for entry in entries)
        return before + statistics.median(times) * self.cfg.SOLVER.MAX_ITER


def pretraining_folder(args: argparse.Namespace) -> Path:
    """Where the detector is that all methods start from; every sampler and seed has the same."""
    return args.output / "pretraining"


def make_pretraining(args: argparse.Namespace) -> Job:
    """The training of what all methods start from."""
    folder = pretraining_folder(args)
    cfg = load_config(config_file(SIZES[args.size].pretraining))
    cfg.MODEL.LOGN.COLLECT.ENABLED = False
    cfg.OUTPUT_DIR = str(folder)
    cfg.freeze()
    return Job(folder, folder, cfg)


def make_job(args: argparse.Namespace, sampler: str, seed: int, name: str) -> Job:
    """The training of a method."""
    method, size = METHODS[name], SIZES[args.size]
    place = args.output / sampler / f"seed{seed}"
    folder, first = place / name, place / CROSS_ENTROPY
    cfg = load_config(config_file(size.config))
    rate = cfg.SOLVER.BASE_LR
    cfg.DATALOADER.SAMPLER_TRAIN = SAMPLERS[sampler]
    cfg.DATALOADER.REPEAT_THRESHOLD = size.not_frequent
    if method.config:
        cfg.merge_from_file(config_file(method.config))
    if method.loss:
        cfg.MODEL.LOGN.LOSS = method.loss.format(share=size.not_frequent)
    cfg.MODEL.MASK_ON = False
    cfg.MODEL.LOGN.COLLECT.ENABLED = False
    if cfg.MODEL.LOGN.SECOND_STAGE:
        cfg.MODEL.WEIGHTS = str(first / "model_final.pth")
    elif size.pretraining:
        cfg.MODEL.WEIGHTS = str(pretraining_folder(args) / "model_final.pth")
    cfg.SOLVER.MAX_ITER = max(1, round(args.iterations * method.length))
    cfg.SOLVER.BASE_LR = rate * method.rate
    cfg.SOLVER.LR_SCHEDULER_NAME, cfg.SOLVER.STEPS = "WarmupCosineLR", ()
    cfg.SOLVER.WARMUP_ITERS = min(cfg.SOLVER.WARMUP_ITERS, cfg.SOLVER.MAX_ITER // 4)
    cfg.SOLVER.CHECKPOINT_PERIOD = 100
    cfg.SEED, cfg.OUTPUT_DIR = seed, str(folder)
    cfg.freeze()
    return Job(folder, first, cfg)


def train(job: Job) -> None:
    """Trains and evaluates, from where it was interrupted.

    Raises:
        ValueError: the folder has a run with other settings, or the training has failed.
    """
    job.folder.mkdir(parents=True, exist_ok=True)
    path = job.folder / "benchmark.yaml"
    if path.is_file() and path.read_text() != job.cfg.dump():
        raise ValueError(
            f"{job.folder} has a run with other settings. Give another --output, or delete it."
        )
    if is_trained(job.folder) and job.results.is_file():
        return
    with atomic_write(path) as temporary:
        temporary.write_text(job.cfg.dump())
    command = [sys.executable, str(ROOT / "train_net.py"), "--config-file", str(path), "--resume"]
    with open(job.folder / "terminal.txt", "a") as log:
        if subprocess.run(command, stdout=log, stderr=subprocess.STDOUT).returncode:
            raise ValueError(f"The training has failed; what it said is in {log.name}.")


def calibrate(job: Job) -> dict[str, dict[str, float]]:
    """Row -> metrics of boxes for each calibration of a training with cross-entropy."""
    path = job.folder / "calibrated.json"
    weights = job.folder / "model_final.pth"
    if not path.is_file() or path.stat().st_mtime < weights.stat().st_mtime:
        found = measure(run_config(job.folder), AFTER, job.folder / "calibrated")
        with atomic_write(path) as temporary:
            rows = {label: {m: tasks["bbox"][m] for m in METRICS} for label, tasks in found.items()}
            temporary.write_text(json.dumps(rows, indent=1) + "\n")
    return json.loads(path.read_text())


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
    """What has been measured so far, as Markdown.

    Args:
        args (Namespace): of the command line.
    """

    def __init__(self, args: argparse.Namespace) -> None:
        self._args = args
        self._scores: dict[str, dict[str, list[Mapping[str, float]]]] = {}
        self._times: dict[str, dict[str, list[float]]] = {}
        self._sizes: dict[str, tuple[int, int]] = {}

    def add(self, sampler: str, name: str, job: Job) -> None:
        """Adds a training that is done, and what is made from it."""
        title, num_classes = METHODS[name].title, job.cfg.MODEL.ROI_HEADS.NUM_CLASSES
        scores = {title: evaluated(job)}
        seconds = job.seconds()
        baseline = make_job(self._args, sampler, job.cfg.SEED, CROSS_ENTROPY).seconds()
        if job.cfg.MODEL.LOGN.SECOND_STAGE:
            seconds += baseline
        if title not in self._sizes:
            self._sizes[title] = sizes_of_model(job.cfg)
        if name == CROSS_ENTROPY:
            scores.update(calibrate(job))
            parameters, state = self._sizes[title]
            self._sizes.update({row.label: (parameters, state + 2 * num_classes) for row in AFTER})
        for label, metrics in scores.items():
            self._scores.setdefault(sampler, {}).setdefault(label, []).append(metrics)
            self._times.setdefault(sampler, {}).setdefault(label, []).append(seconds / baseline)

    def __str__(self) -> str:
        args = self._args
        lines = [
            "# Methods on LT-Glyphs",
            "",
            f"`python benchmarks/methods.py --size {args.size} --iterations {args.iterations}`: "
            "box AP in percent, mean ± standard deviation over seeds; training time of all stages "
            "against cross-entropy's; numbers that the model has more than cross-entropy's, "
            f"as parameters and as other state. {torch.get_num_threads()} threads.",
        ]
        for sampler, rows in self._scores.items():
            body = [self._line(sampler, label) for label in rows]
            headers = ["method", "seeds", *METRICS, "time", "parameters", "state"]
            align = ["left", *["right"] * (len(headers) - 1)]
            table = tabulate(body, headers, "pipe", disable_numparse=True, colalign=align)
            lines += ["", f"## Sampler: {sampler}", "", table]
        return "\n".join([*lines, ""])

    def _line(self, sampler: str, label: str) -> list[str]:
        runs, times = self._scores[sampler][label], self._times[sampler][label]
        base = self._sizes[METHODS[CROSS_ENTROPY].title]
        more = [mine - theirs for mine, theirs in zip(self._sizes[label], base)]
        scores = [format_spread([run[metric] for run in runs]) for metric in METRICS]
        return [label, str(len(runs)), *scores, format_spread(times, 2), *(f"{m:+,}" for m in more)]


def draw_sets(size: str) -> None:
    """Draws the data sets that are missing."""
    root = os.environ.get("DETECTRON2_DATASETS", "datasets")
    for name in [size, "pretrain"] if SIZES[size].pretraining else [size]:
        draw_glyphs(root, name)


def run(args: argparse.Namespace, say: Callable[[str], None]) -> None:
    """Trains what is missing and writes the table after each method."""
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
                table.add(sampler, name, job)
                with atomic_write(args.output / "methods.md") as temporary:
                    temporary.write_text(str(table), encoding="utf-8")
    print(table)


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Command line arguments."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", choices=list(SIZES), default="demo")
    parser.add_argument("--iterations", type=int, default=300, help="of a first stage")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--samplers", nargs="+", choices=list(SAMPLERS), default=list(SAMPLERS))
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS))
    parser.add_argument("--output", type=Path, help="default: output/methods_SIZE")
    args = parser.parse_args(argv)
    args.output = args.output or Path("output") / f"methods_{args.size}"
    # Everything else is compared with it.
    args.methods = list(dict.fromkeys([CROSS_ENTROPY, *args.methods]))
    return args


def main() -> int:
    """Runs the benchmark; the exit code is 130 when it is interrupted."""
    args = parse_args()
    try:
        with short_errors():
            args.output.mkdir(parents=True, exist_ok=True)
            draw_sets(args.size)
            run(args, lambda text: print(text, flush=True))
    except KeyboardInterrupt:
        print("\nInterrupted; the same command goes on from here.", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
