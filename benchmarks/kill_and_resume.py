#!/usr/bin/env python
"""Kill commands at random moments with SIGKILL, resume them, and compare their results.

Each command runs once undisturbed. In COUNT trials it is then killed one to three times, at moments
drawn from the length of that run, and resumed. The results must be equal to the last bit: weights,
statistics, figures, drawn files. Everything uses LT-Glyphs tiny, on the CPU.

Example:
    python benchmarks/kill_and_resume.py --count 20 --seed 0 --output output/kills
    python benchmarks/kill_and_resume.py train collect --count 5 --output output/kills
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from logn_d2.core import LogitStatistics

ROOT = Path(__file__).resolve().parents[1]
CONFIG = ROOT / "configs" / "glyphs_tiny_mask_rcnn_R_18_FPN.yaml"
# Often enough that a kill leaves something to resume from.
TRAIN = ["SOLVER.CHECKPOINT_PERIOD", "3", "SOLVER.MAX_ITER", "20", "SEED", "1"]
OFTEN = ["MODEL.LOGN.COLLECT.CHECKPOINT_PERIOD", "4", "MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.0"]


@dataclass(frozen=True)
class Verb:
    """A command that writes to a folder, its arguments for resuming, and the compared results."""

    command: Callable[[Path, Path], list[str]]
    result: Callable[[Path], Any]
    resume: tuple[str, ...] = ("--resume",)


def command(verb: str, *arguments: str) -> list[str]:
    return [verb, "--config-file", str(CONFIG), *arguments]


def weights(folder: Path) -> dict[str, str]:
    """A digest of each tensor of the last checkpoint."""
    model = torch.load(folder / "model_final.pth", weights_only=True)["model"]
    return {key: digest(value.contiguous().numpy().tobytes()) for key, value in model.items()}


def statistics(folder: Path) -> list[list[float]]:
    found = LogitStatistics.load(folder / "stats.safetensors")
    return [[*stage.mean.tolist(), *stage.var.tolist()] for stage in found.stages]


def results(folder: Path) -> Any:
    """AP of every run; times and versions differ."""
    (path,) = folder.rglob("results.json")
    return numbers(json.loads(path.read_text()))


def numbers(value: Any) -> Any:
    if isinstance(value, dict):
        told = ("seconds", "time", "provenance", "OUTPUT")
        return {k: numbers(v) for k, v in value.items() if not any(each in k for each in told)}
    return [numbers(each) for each in value] if isinstance(value, list) else value


def files(folder: Path) -> dict[str, str]:
    """Digests of drawn files."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): digest(path.read_bytes()) for path in paths}


def page(folder: Path) -> str:
    """A report, which contains the command that wrote it."""
    return digest((folder / "report.html").read_text().replace(str(folder), "").encode())


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


VERBS = {
    "draw": Verb(
        lambda out, _: ["data", "draw", "--size", "tiny", "--root", str(out)], files, resume=()
    ),
    "train": Verb(lambda out, _: command("train", "--output", str(out), *TRAIN, *OFTEN), weights),
    "collect": Verb(
        lambda out, model: command(
            *("collect", "--output", str(out / "stats.safetensors")),
            *("--weights", str(model / "model_final.pth"), *OFTEN, "OUTPUT_DIR", str(out)),
        ),
        statistics,
    ),
    "evaluate": Verb(
        lambda out, model: command(
            *("evaluate", "--stats", str(model / "logn_stats.safetensors"), "--output", str(out)),
            *("--weights", str(model / "model_final.pth"), *OFTEN),
        ),
        results,
    ),
    "sweep": Verb(
        lambda out, model: command(
            *("sweep", "--stats", str(model / "logn_stats.safetensors"), "--output", str(out)),
            *("--calibrations", "uncalibrated", "logn", "norcal(gamma=[0.2, 0.6])"),
            *("--save-outputs", str(out / "logits")),
            *("--weights", str(model / "model_final.pth"), *OFTEN),
        ),
        results,
    ),
    # It has no state to resume from, and must not leave a partial page.
    "report": Verb(
        lambda out, model: [
            *("report", str(model.with_name("whole_sweep"))),
            *("--output", str(out / "report.html"), "--resamples", "200"),
        ],
        page,
        resume=(),
    ),
}

# Inputs of a verb's runs.
NEEDS = {"collect": ["train"], "evaluate": ["train"], "sweep": ["train"]}
NEEDS["report"] = ["train", "sweep"]


def start(verb: Verb, out: Path, model: Path, environment: dict[str, str]) -> subprocess.Popen:
    words = [sys.executable, "-m", "logn_d2", *verb.command(out, model), *verb.resume]
    log = open(out.with_suffix(".log"), "a")  # the child keeps it open beyond this function
    return subprocess.Popen(words, env=environment, stdout=log, stderr=subprocess.STDOUT)


def trial(
    verb: Verb,
    out: Path,
    model: Path,
    environment: dict[str, str],
    duration: float,
    draw: random.Random,
) -> int:
    """Kill and resume; return the number of kills before the command finished."""
    kills = 0
    for _ in range(draw.randint(1, 3)):
        process = start(verb, out, model, environment)
        try:
            code = process.wait(timeout=draw.uniform(0, duration))
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            kills += 1
        else:
            if code:
                raise RuntimeError(f"exit status {code}: see {out.with_suffix('.log')}")
    code = start(verb, out, model, environment).wait()
    if code:
        raise RuntimeError(f"exit status {code}: see {out.with_suffix('.log')}")
    return kills


def main() -> int:
    """Print a line for each verb; the exit status is 1 if a result differs."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("verbs", nargs="*", help=f"some of {', '.join(VERBS)} (default: all)")
    parser.add_argument("--count", type=int, default=20, help="trials of each command")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, required=True, help="a folder for all runs")
    args = parser.parse_args()
    unknown = set(args.verbs) - set(VERBS)
    if unknown:
        parser.error(f"unknown verb {sorted(unknown)[0]!r}; known: {', '.join(VERBS)}")
    args.output.mkdir(parents=True, exist_ok=True)
    environment = {
        **os.environ,
        "DETECTRON2_DATASETS": str(args.output / "datasets"),
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
    }
    drawing = [sys.executable, "-m", "logn_d2", "data", "draw", "--size", "tiny"]
    subprocess.run(drawing, env=environment, check=True, capture_output=True)
    draw, model, bad = random.Random(args.seed), args.output / "whole_train", 0
    chosen = args.verbs or list(VERBS)
    wanted = dict.fromkeys(each for name in chosen for each in (*NEEDS.get(name, ()), name))
    for name in wanted:
        verb, whole = VERBS[name], args.output / f"whole_{name}"
        shutil.rmtree(whole, ignore_errors=True)
        begun = time.perf_counter()
        if start(verb, whole, model, environment).wait():
            print(f"{name}: the undisturbed run failed, see {whole.with_suffix('.log')}")
            return 1
        duration, expected = time.perf_counter() - begun, verb.result(whole)
        if name not in chosen:
            continue
        kills, different = [], []
        for number in range(args.count):
            out = args.output / f"{name}_{number}"
            shutil.rmtree(out, ignore_errors=True)
            kills.append(trial(verb, out, model, environment, duration, draw))
            if verb.result(out) != expected:
                different.append(out.name)
            print(f"{name}: {number + 1} of {args.count}, kills {sum(kills)}", file=sys.stderr)
        bad += len(different)
        print(
            f"{name}: {args.count} trials, {sum(kills)} kills in runs of {duration:.0f} s, "
            f"different: {len(different)} {different}",
            flush=True,
        )
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main())
