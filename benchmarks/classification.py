"""Small image classifiers: the rows of the paper's ImageNet-LT table, and LogitNorm.

Three long-tailed sets: glyphs (60 drawn characters, 300 to 3 training images), fashion
(Fashion-MNIST with the largest and smallest class of ImageNet-LT, 1,280 and 5), and digits
(scikit-learn's, 114 to 1); the network has two layers. Each seed has its own data (rare classes,
choice or drawing of the images), initial weights and order of images. All methods share them, so
that differences are paired. Post-hoc calibrations share one training, and second stages start from
it. Tau-norm's tau is chosen on validation images, and the temperature is fitted there too; digits
has none. Unknown images are characters outside the classes (near), digits and noise (far). The
table is written after each training. After an interruption the same command resumes. A training
takes half a minute of one core.

Examples:
    OMP_NUM_THREADS=1 python benchmarks/classification.py
    OMP_NUM_THREADS=1 python benchmarks/classification.py --set fashion --seeds 0 1 2
    OMP_NUM_THREADS=1 python benchmarks/classification.py --seeds 0 --heads linear --iterations 100
"""

from __future__ import annotations

import argparse
import functools
import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from common import machine
from detectron2.config import CfgNode
from detectron2.utils.env import seed_all_rng
from image_sets import SETS, ImageSet
from resumable import run_to_exit_status, write_markdown
from tabulate import tabulate
from torch import nn

from logn_d2 import UNCALIBRATED
from logn_d2.analysis import format_spread
from logn_d2.classification.odin import NOISE
from logn_d2.config import config_file
from logn_d2.core import LogitStatistics, expand_grid
from logn_d2.data import class_counts
from logn_d2.engine import Trainer, load_config, statistics_path
from logn_d2.engine.checkpoint import load_weights
from logn_d2.engine.experiments import check_same_training, is_trained
from logn_d2.engine.image_sweep import ImageSweep
from logn_d2.files import atomic_write
from logn_d2.modeling.attach import calibrations_at, find_sites
from logn_d2.ood import OODResult

HEADS = ("linear", "cosine")
CALIBRATIONS = (
    *("logit_adjustment", "logn_mean", "logn_std", "logn"),
    *("norcal(gamma=0.6)", "norcal(gamma=auto)", "p2p(alpha=1)", "p2p(alpha=0.8)"),
)
TAU_NORM = "tau_norm(tau=0:2:0.1, keep_bias=False)"
METRICS = {"many": "Many", "medium": "Medium", "few": "Few", "acc": "All", "ECE": "ECE"}
OOD_METRICS = {
    "auroc": "AUROC",
    "fpr95_id_pos": "FPR95, ID pos.",
    "fpr95_ood_pos": "FPR95, OOD pos.",
    "aupr_in": "AUPR in",
    "aupr_out": "AUPR out",
}


@dataclass(frozen=True)
class Method:
    """One training of the comparison.

    Attributes:
        title (str): title of its row.
        loss (str): MODEL.LOGN.LOSS, with a placeholder for `ImageSet.few`.
        stage (str): MODEL.LOGN.SECOND_STAGE, after Softmax; "" for a first stage.
        heads (tuple[str, ...]): classifiers to train with.
        after (tuple[str, ...]): calibrations to evaluate as well.
        unknown (bool): whether to compare it on unknown images.
    """

    title: str
    loss: str = ""
    stage: str = ""
    heads: tuple[str, ...] = HEADS
    after: tuple[str, ...] = ()
    unknown: bool = False


METHODS = {
    "softmax": Method("Softmax", after=CALIBRATIONS, unknown=True),
    "focal": Method("Focal", "focal"),
    "eql": Method("EQL, sigmoids", "eql(threshold={few})"),
    "seesaw": Method("Seesaw", "seesaw"),
    "balanced_softmax": Method("Balanced softmax", "balanced_softmax"),
    # The default momentum averages over more iterations than this training has.
    "inverse_logn": Method("Inverse LogN", "inverse_logn(momentum=0.01)"),
    "crt": Method("cRT", stage="crt"),
    "lws": Method("LWS", stage="lws"),
    # Linear only: a cosine classifier bounds its logits without this loss.
    **{
        f"logit_norm_{tau}": Method(
            f"LogitNorm, tau {tau}", f"logit_norm(tau={tau})", heads=("linear",), unknown=True
        )
        for tau in (0.04, 0.1)
    },
}
TITLES = {
    "logit_adjustment": "LogA",
    "logn": "LogN",
    "logn_mean": "LogN, mean only",
    "logn_std": "LogN, std only",
    "norcal(gamma=0.6)": "NorCal, gamma 0.6",
    "norcal(gamma=auto)": "NorCal, gamma by matching",
    "p2p(alpha=1)": "P2P",
    "p2p(alpha=0.8)": "P2P, alpha 0.8",
    "tau_norm": "tau-norm",
}


def config_of(args: argparse.Namespace, head: str, seed: int, name: str) -> CfgNode:
    """The config of one training, with the sets of its seed registered."""
    method, place, data = METHODS[name], args.output / head / f"seed{seed}", SETS[args.set]
    cfg = load_config(
        config_file(f"classification/{data.config}.yaml"),
        ["MODEL.LOGN.IMAGE.DATASETS", data.entries(seed), "MODEL.DEVICE", "cpu"],
    )
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = (data.name("train", seed),), (data.name("test", seed),)
    cfg.MODEL.LOGN.CLASSIFIER = head
    cfg.MODEL.LOGN.LOSS = method.loss.format(few=data.few)
    cfg.MODEL.LOGN.SECOND_STAGE = method.stage
    cfg.MODEL.LOGN.COLLECT.ENABLED = bool(method.after)
    cfg.SOLVER.MAX_ITER = args.iterations
    if method.stage:
        cfg.MODEL.WEIGHTS = str(place / "softmax" / "model_final.pth")
        cfg.DATALOADER.SAMPLER_TRAIN = "ClassAwareTrainingSampler"
        cfg.SOLVER.MAX_ITER = args.iterations // 3
    cfg.SOLVER.CHECKPOINT_PERIOD = cfg.SOLVER.MAX_ITER
    cfg.SEED, cfg.OUTPUT_DIR = seed, str(place / name)
    cfg.freeze()
    return cfg


def train(cfg: CfgNode) -> None:
    """Run a training, unless it is finished."""
    folder = Path(cfg.OUTPUT_DIR)
    if is_trained(folder):
        check_same_training(folder, cfg)
        return
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_write(folder / "config.yaml") as temporary:
        temporary.write_text(cfg.dump())
    seed_all_rng(cfg.SEED)
    silent = cfg.clone()
    silent.defrost()
    silent.DATASETS.TEST = ()  # `measure` evaluates
    trainer = Trainer(silent)
    trainer.resume_or_load(resume=False)
    trainer.train()


def measure(cfg: CfgNode, method: Method, data: ImageSet, seed: int) -> dict[str, Any]:
    """Accuracies of one training under its calibrations, and separation of unknown images."""
    model = Trainer.build_model(cfg).eval()
    load_weights(model, str(Path(cfg.OUTPUT_DIR, "model_final.pth")), cfg.OUTPUT_DIR, resume=False)
    validation = data.name("val", seed) if "val" in data.sources else ""
    has_grid = method.after and validation and cfg.MODEL.LOGN.CLASSIFIER == "linear"
    grid = expand_grid(TAU_NORM) if has_grid else ()
    calibrations = made(cfg, model, (*method.after, *grid))
    (test,) = cfg.DATASETS.TEST
    sweep = ImageSweep(cfg, model, calibrations, cfg.OUTPUT_DIR, resume=True)
    temperatures = sweep.temperatures(test, validation) if validation else {}
    results = sweep.results(test)
    rows = {n: {**found.as_dict(), **temperatures.get(n, {})} for n, found in results.items()}
    found: dict[str, Any] = {"rows": {k: v for k, v in rows.items() if k not in grid}}
    if grid:
        on_val = sweep.results(validation)
        chosen = max(grid, key=lambda name: on_val[name].metrics()["acc"])
        found["rows"]["tau_norm"], found["tau_norm"] = rows[chosen], chosen
    if method.unknown:
        options = {"resume": True, "odin_noise": NOISE}
        alone = ImageSweep(cfg, model, {UNCALIBRATED: ()}, cfg.OUTPUT_DIR, **options)
        found["ood"] = {
            where: separation(alone, test, data.name(name, seed) if name in data.sources else name)
            for where, name in data.unknown.items()
        }
    return found


def made(cfg: CfgNode, model: nn.Module, names: Sequence[str]) -> dict[str, Sequence]:
    """Name -> calibrations of the model; empty for the baseline."""
    if not names:
        return {UNCALIBRATED: ()}
    sites, counts = find_sites(model), functools.cache(lambda: class_counts(cfg.DATASETS.TRAIN))
    statistics = LogitStatistics.load(statistics_path(cfg))
    options = {"statistics": statistics, "counts": counts}
    return {UNCALIBRATED: (), **{name: calibrations_at(sites, name, **options) for name in names}}


def separation(sweep: ImageSweep, known: str, unknown: str) -> dict[str, dict[str, float]]:
    """Separation of unknown images: score -> metric -> percent."""
    found: Mapping[str, OODResult] = sweep.unknown(known, unknown)[UNCALIBRATED]
    return {
        score: {metric: 100 * getattr(result, metric) for metric in OOD_METRICS}
        for score, result in found.items()
    }


def measured(args: argparse.Namespace, head: str, seed: int, name: str) -> dict[str, Any]:
    """Results of one training, which is run and measured only if they are missing."""
    cfg, start = config_of(args, head, seed, name), time.process_time()
    path = Path(cfg.OUTPUT_DIR, "measured.json")
    if not path.is_file():
        train(cfg)
        found = measure(cfg, METHODS[name], SETS[args.set], seed)
        found["seconds"] = time.process_time() - start
        with atomic_write(path) as temporary:
            temporary.write_text(json.dumps(found, indent=1) + "\n")
    return json.loads(path.read_text())


Runs = dict[str, dict[int, dict[str, Any]]]
"""Results of one head: method -> seed -> return value of `measured`."""


def rows_of(runs: Runs) -> Iterator[tuple[str, dict[int, dict[str, float]]]]:
    """Title and seed -> metrics of each row."""
    for name, method in METHODS.items():
        by_seed = runs.get(name, {})
        labels = dict.fromkeys(label for found in by_seed.values() for label in found["rows"])
        for label in labels:
            title = method.title if label == UNCALIBRATED else TITLES[label]
            yield title, {s: found["rows"][label] for s, found in by_seed.items()}


def accuracy_lines(runs: Runs) -> str:
    """The table of one head, with differences from its Softmax seed by seed."""
    lines, (_, softmax) = [], next(rows_of(runs))
    for title, by_seed in rows_of(runs):
        cells = [format_spread([found[m] for found in by_seed.values()]) for m in METRICS]
        cells.append(format_spread([found.get("ECE_T") for found in by_seed.values()]))
        for metric in ("acc", "few"):
            gains = [found[metric] - softmax[s][metric] for s, found in by_seed.items()]
            cells.append("" if title == "Softmax" else difference(gains))
        lines.append([title, str(len(by_seed)), *cells])
    heads = ["method", "seeds", *METRICS.values(), "ECE, T", "All: difference", "Few: difference"]
    return tabulate(lines, heads, "pipe", disable_numparse=True)


def difference(gains: Sequence[float]) -> str:
    """Mean and standard deviation of paired differences, and the number of positive ones."""
    spread = format_spread(gains)
    return f"{spread if spread.startswith('-') else '+' + spread} ({sum(g > 0 for g in gains)})"


def unknown_lines(runs: Runs) -> str:
    """The table of unknown images, with AUROC's difference from that of Softmax's MSP."""
    lines = []
    for name, method in METHODS.items():
        by_seed = {s: found["ood"] for s, found in runs.get(name, {}).items() if "ood" in found}
        for where, score in _pairs(by_seed):
            scored = {s: each[where][score] for s, each in by_seed.items() if score in each[where]}
            cells = [format_spread([each[m] for each in scored.values()]) for m in OOD_METRICS]
            base = {s: runs["softmax"][s]["ood"][where]["msp"]["auroc"] for s in scored}
            gains = [each["auroc"] - base[s] for s, each in scored.items()]
            change = "" if (name, score) == ("softmax", "msp") else difference(gains)
            lines.append([where, method.title, score, *cells, change])
    order = list(dict.fromkeys(line[0] for line in lines))
    lines.sort(key=lambda line: order.index(line[0]))
    heads = ["unknown", "training", "score", *OOD_METRICS.values(), "AUROC: difference"]
    return tabulate(lines, heads, "pipe", disable_numparse=True)


def _pairs(by_seed: Mapping[int, Mapping[str, Mapping]]) -> list[tuple[str, str]]:
    """Sets and scores; results of an earlier version may lack ODIN's."""
    pairs = [(w, score) for each in by_seed.values() for w in each for score in each[w]]
    return list(dict.fromkeys(pairs))


def write(args: argparse.Namespace) -> str:
    """Write all results so far to a Markdown file, and return its text."""
    found = {
        head: {
            name: {
                int(path.parents[1].name.removeprefix("seed")): json.loads(path.read_text())
                for path in sorted((args.output / head).glob(f"seed*/{name}/measured.json"))
            }
            for name in METHODS
        }
        for head in HEADS
    }
    parts = [
        f"# Image classifiers on {SETS[args.set].title}",
        f"{machine()}; {args.iterations} iterations.",
    ]
    for head, runs in found.items():
        if runs["softmax"]:
            seconds = [each["seconds"] for m in runs.values() for each in m.values()]
            parts += [f"## {head} classifier", accuracy_lines(runs)]
            parts += [f"{len(seconds)} trainings, {np.mean(seconds):.0f} s of CPU each."]
    if found["linear"]["softmax"]:
        parts += ["## Unknown images, linear classifier", unknown_lines(found["linear"])]
    return write_markdown(args.output / "classification.md", parts)


def run(args: argparse.Namespace) -> None:
    """Run the missing rows; Softmax comes first, since the others are compared with it."""
    args.output.mkdir(parents=True, exist_ok=True)
    text = ""
    for seed in args.seeds:
        for head in args.heads:
            for name in dict.fromkeys(["softmax", *args.methods]):
                if head in METHODS[name].heads:
                    found = measured(args, head, seed, name)
                    line = f"{head}, seed {seed}, {name}: {found['rows'][UNCALIBRATED]['acc']:.1f}"
                    print(f"{line}, {found['seconds']:.0f} s", flush=True)
                    text = write(args)
    print(text)


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Command line arguments."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--set", choices=list(SETS), default="glyphs")
    parser.add_argument("--heads", nargs="+", choices=HEADS, default=list(HEADS))
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--iterations", type=int, help="default: 30 epochs (digits: 150)")
    parser.add_argument("--output", type=Path, help="default: output/classification/SET")
    args = parser.parse_args(argv)
    args.iterations = args.iterations or SETS[args.set].iterations
    args.output = args.output or Path("output/classification", args.set)
    return args


def main() -> int:
    """Run the benchmark; the exit status is 130 after an interruption."""
    args = parse_args()
    return run_to_exit_status(lambda: run(args))


if __name__ == "__main__":
    sys.exit(main())
