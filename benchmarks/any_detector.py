"""Calibrations of detectors without box predictors, on LT-Glyphs, seed by seed.

Two detectors: Detectron2's RetinaNet (sigmoid scores of anchors, no background) and a small
query-based one (benchmarks/small_detr.py; softmax with "no object"). Both start from the backbone
that benchmarks/methods.py pretrains on other characters, and train with AdamW and repeat factor
sampling. The set has 40 of demo's classes with demo's imbalance (`few`), because these detectors
need more iterations per class than R-CNNs, whose heads train on balanced samples. After a training
there is one pass over the training images for each population of statistics, and one over the
validation images for all calibrations. Calibrations that a detector refuses are named below its
table. A training with its measurements takes five minutes of one core. After an interruption the
same command resumes.

Examples:
    OMP_NUM_THREADS=1 python benchmarks/any_detector.py
    python benchmarks/any_detector.py --detectors retinanet --seeds 0 --start model_final.pth
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import small_detr as _small_detr  # noqa: F401  # only registration
import torch
from detectron2.config import CfgNode
from detectron2.utils.env import seed_all_rng
from methods import METRICS, make_pretraining, pretraining_folder, train
from resumable import run_to_exit_status, write_markdown
from tabulate import tabulate
from torch import nn
from torch.optim import Optimizer

from logn_d2 import UNCALIBRATED, attach
from logn_d2.analysis import format_spread
from logn_d2.config import config_file
from logn_d2.data import class_counts
from logn_d2.engine import Trainer, load_config
from logn_d2.engine.experiments import Row, is_trained, measure, run_config
from logn_d2.errors import UserError
from logn_d2.files import atomic_write
from logn_d2.glyphs import SIZES, GlyphSize, draw_glyphs, register_glyphs
from logn_d2.sites import config_site

CONFIG = "glyphs_demo_retinanet_R_18_FPN.yaml"
DETECTORS = {"retinanet": "RetinaNet", "queries": "SmallDetr"}
POPULATIONS = ("sampled", "proposals", "positives")
ITERATIONS = {"retinanet": 400, "queries": 450}
# Learning rates of the new parameters; the pretrained backbone takes a fraction of them.
RATES = {"retinanet": 1e-3, "queries": 2e-3}
BACKBONE_RATE = 0.3
WARMUP = 30
# Demo's imbalance: 11 rare classes, 16 common and 13 frequent ones.
FEW = dataclasses.replace(
    SIZES["demo"], name="few", num_classes=40, train_images=800, val_images=240
)
CHOICES: dict[str, GlyphSize] = {"few": FEW, "demo": SIZES["demo"], "tiny": SIZES["tiny"]}
# Classes in fewer images than this are repeated, as LVIS v1's threshold of 1e-3 means there.
REPEATED_BELOW = 100
# A random part of the training images, since each population takes a pass of its own.
STATISTICS_IMAGES = 250
# Calibrations without statistics come first: a refusal of them is known before any pass.
ROWS = (
    Row(UNCALIBRATED),
    *(
        Row(text, text)
        for text in (
            *("norcal(gamma=0.6)", "norcal(gamma=0.6, centre=mean)", "logit_adjustment"),
            *("class_balanced(gamma=0.99)", "fracal", "temperature(temperature=2)", "tau_norm"),
        )
    ),
    *(
        Row(f"{text}, sampled", text, "sampled")
        for text in (
            *("logn", "logn_mean", "logn_std", "logn(std_reference=geometric)"),
            *("p2p(alpha=1, centre=mean)", "auto"),
        )
    ),
    *(
        Row(f"{text}, {population}", text, population)
        for population in ("proposals", "positives")
        for text in ("logn", "logn(std_reference=geometric)")
    ),
)

# Without background, a shift or factor common to all classes changes no ranking, so these rows have
# the AP of another one. That saves a RetinaNet's inference, which is slow with a threshold of 0.
SAME_RANKING = {
    "norcal(gamma=0.6, centre=mean)": "norcal(gamma=0.6)",
    "temperature(temperature=2)": UNCALIBRATED,
    **{
        f"logn(std_reference=geometric), {population}": f"logn, {population}"
        for population in ("sampled", "proposals", "positives")
    },
}


class Adam(Trainer):
    """One-stage detectors and transformers learn little from a few steps of plain descent."""

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: nn.Module) -> Optimizer:
        old, rate = list(model.backbone.bottom_up.parameters()), cfg.SOLVER.BASE_LR
        known = {id(each) for each in old}
        new = [each for each in model.parameters() if id(each) not in known]
        groups = [{"params": new}, {"params": old, "lr": rate * BACKBONE_RATE}]
        return torch.optim.AdamW(groups, rate, weight_decay=cfg.SOLVER.WEIGHT_DECAY)


def make_config(args: argparse.Namespace, detector: str, seed: int) -> CfgNode:
    """The config of one training, which starts from the common backbone."""
    cfg, size = load_config(config_file(CONFIG)), CHOICES[args.size]
    cfg.MODEL.META_ARCHITECTURE = DETECTORS[detector]
    cfg.MODEL.RETINANET.NUM_CLASSES = cfg.MODEL.ROI_HEADS.NUM_CLASSES = size.num_classes
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = (
        (f"lt_glyphs_{size.name}_{split}",) for split in ("train", "val")
    )
    cfg.MODEL.RETINANET.NORM = "GN"  # subnets from random weights learn faster with it
    cfg.DATALOADER.REPEAT_THRESHOLD = REPEATED_BELOW / size.train_images
    cfg.MODEL.WEIGHTS = str(args.start or "")
    cfg.MODEL.LOGN.COLLECT.ENABLED = False
    cfg.MODEL.LOGN.COLLECT.MAX_IMAGES = STATISTICS_IMAGES
    cfg.SOLVER.MAX_ITER = args.iterations or ITERATIONS[detector]
    cfg.SOLVER.BASE_LR = RATES[detector]
    cfg.SOLVER.WARMUP_ITERS = min(WARMUP, cfg.SOLVER.MAX_ITER // 4)
    cfg.SOLVER.CHECKPOINT_PERIOD = 100
    cfg.SEED, cfg.OUTPUT_DIR = seed, str(args.output / detector / f"seed{seed}")
    cfg.freeze()
    return cfg


def train_detector(cfg: CfgNode) -> None:
    """Train, or resume an interrupted training; `measure` evaluates."""
    folder = Path(cfg.OUTPUT_DIR)
    if is_trained(folder):
        return
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_write(folder / "config.yaml") as temporary:
        temporary.write_text(cfg.dump())
    seed_all_rng(cfg.SEED)
    silent = cfg.clone()
    silent.defrost()
    silent.DATASETS.TEST = ()  # nothing to evaluate at the end
    trainer = Adam(silent)
    trainer.resume_or_load(resume=True)
    trainer.train()


def refused(cfg: CfgNode) -> dict[str, str]:
    """Label -> why, for calibrations that these scores do not allow."""
    model = Trainer.build_model(cfg)
    counts = class_counts(tuple(cfg.DATASETS.TRAIN))
    found = {}
    for row in ROWS:
        if not row.population:
            try:
                attach(model, row.calibration, counts=counts, replace=True)
            except UserError as error:
                found[row.label] = str(error)
    return found


def evaluate(folder: Path) -> dict[str, Any]:
    """Scores of each row, refusals and the last losses of a training; measured once."""
    path = folder / "scores.json"
    if not path.is_file():
        cfg = run_config(folder)
        reasons = refused(cfg)
        left_out = {*reasons, *(SAME_RANKING if config_site(cfg).background == "none" else ())}
        rows = [row for row in ROWS if row.label not in left_out]
        found = measure(cfg, rows, folder / "measured")
        content = {
            "scores": {
                name: {m: tasks["bbox"][m] for m in METRICS} for name, tasks in found.items()
            },
            "refused": reasons,
            "loss": last_loss(folder),
        }
        with atomic_write(path) as temporary:
            temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return json.loads(path.read_text(encoding="utf-8"))


def last_loss(folder: Path) -> float:
    """The total loss at the end of a training: Detectron2's median of 20 iterations."""
    lines = (folder / "metrics.json").read_text(encoding="utf-8").splitlines()
    return [x["total_loss"] for x in map(json.loads, lines) if "total_loss" in x][-1]


def table(runs: Sequence[Mapping[str, Any]]) -> str:
    """A detector's rows: mean and standard deviation over seeds, and changes seed by seed."""
    body = []
    for label in (row.label for row in ROWS if all(row.label in run["scores"] for run in runs)):
        scores = [[run["scores"][label][m] for run in runs] for m in METRICS]
        gains = [run["scores"][label]["AP"] - run["scores"][UNCALIBRATED]["AP"] for run in runs]
        gain = "" if label == UNCALIBRATED else f"{mean(gains):+.1f} ({min(gains):+.1f})"
        body.append([label, *map(format_spread, scores), gain])
    head = ["calibration, statistics", *METRICS, "gain (worst seed)"]
    return tabulate(body, head, "pipe", disable_numparse=True)


def write(args: argparse.Namespace) -> str:
    """Write all results so far to a Markdown file, and return its text."""
    parts = ["# Calibrations of detectors without box predictors"]
    for detector in DETECTORS:
        folders = sorted((args.output / detector).glob("seed*/scores.json"))
        runs = [json.loads(path.read_text(encoding="utf-8")) for path in folders]
        if runs:
            losses = ", ".join(f"{run['loss']:.2f}" for run in runs)
            parts += [f"## {detector}, {len(runs)} seeds", f"Loss at the end: {losses}."]
            parts += [table(runs)]
            parts += [f"`{name}` is refused: {why}" for name, why in runs[0]["refused"].items()]
    return write_markdown(args.output / "any_detector.md", parts)


def run(args: argparse.Namespace) -> None:
    """Run missing trainings and measurements, and write the tables after each seed."""
    args.output.mkdir(parents=True, exist_ok=True)
    root = os.environ.get("DETECTRON2_DATASETS", "datasets")
    draw_glyphs(root, CHOICES[args.size])
    register_glyphs(root, CHOICES.values())
    if args.start is None and args.size != "tiny":
        draw_glyphs(root, "pretrain")
        train(make_pretraining(argparse.Namespace(size="demo", output=args.output)))
        args.start = pretraining_folder(args) / "model_final.pth"
    for seed in args.seeds:
        for detector in args.detectors:
            cfg, start = make_config(args, detector, seed), time.process_time()
            train_detector(cfg)
            trained = time.process_time()
            evaluate(Path(cfg.OUTPUT_DIR))
            seconds = trained - start, time.process_time() - trained
            print(f"{detector}, seed {seed}: {seconds[0]:.0f} + {seconds[1]:.0f} s", flush=True)
            text = write(args)
    print(text)


def main() -> int:
    """Run the benchmark; the exit status is 130 after an interruption."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--detectors", nargs="+", choices=list(DETECTORS), default=list(DETECTORS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--size", choices=list(CHOICES), default="few")
    parser.add_argument("--iterations", type=int, help=f"default: {ITERATIONS}")
    parser.add_argument("--start", type=Path, help="pretrained detector (default: trained first)")
    parser.add_argument("--output", type=Path, default=Path("output/any_detector"))
    args = parser.parse_args()
    return run_to_exit_status(lambda: run(args))


if __name__ == "__main__":
    sys.exit(main())
