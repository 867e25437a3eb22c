#!/usr/bin/env python
"""Which calibration is best, and how close is one without hyper-parameters?

Every block is a training of `benchmarks/methods.py` (sampler, seed, classifier, length). One pass
over the training set collects its statistics, and one pass over the validation set evaluates the
whole grid: LogN and its parts, NorCal, P2P and FRACAL over their strengths and common shifts. The
table of a block has the best point of each family. Then come the criteria for `auto`: its distance
to the best point of the grid, its gain over LogN and NorCal 0.6, and the largest loss of a group
against the uncalibrated detector. The last table has the spread over seeds. Finished blocks
are kept. `--runs` takes finished trainings of any detector instead.

Example:
    python benchmarks/calibration_grid.py \\
        --blocks rfs/seed0/cross_entropy random/seed0/cross_entropy rfs/seed0/cross_entropy_linear
    python benchmarks/calibration_grid.py --runs output/demo --dataset lt_glyphs_demo_val
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

from compared_methods import SIZES
from methods import make_job, make_pretraining, train
from tabulate import tabulate

from logn_d2 import UNCALIBRATED
from logn_d2.core import expand_grid
from logn_d2.engine import short_errors
from logn_d2.engine.experiments import Row, measure, run_config
from logn_d2.files import atomic_write
from logn_d2.glyphs import draw_glyphs

METRICS = ("AP", "APr", "APc", "APf")
PLAIN, LOGN, NORCAL, AUTO = UNCALIBRATED, "logn", "norcal(gamma=0.6)", "auto"
FAMILIES = {
    PLAIN: (PLAIN,),
    LOGN: (LOGN,),
    "LogN, parts and variants": (
        *("logn_mean", "logn_std", "logn_beta", "logn_no_beta", "logn(use_std=False)"),
        *("logn(std_reference=geometric)", "logn(std_reference=geometric, beta=none)"),
        *("logn(source=negatives)", "logn(source=negatives, std_reference=geometric)"),
    ),
    "NorCal as published": ("norcal(gamma=0.2:1:0.2)",),
    "NorCal, centred": ("norcal(gamma=[0.4, 0.6, 0.8, 1.0], centre=mean, offset=[1, 0, -1, -2])",),
    "NorCal, its own gamma": ("norcal(gamma=auto, centre=mean, offset=[0, -1])",),
    "P2P, all RoIs": ("p2p(alpha=[0.5, 0.65, 0.8, 1.0], offset=[1, 0.5, 0, -1, -2, -4])",),
    "P2P, negatives": ("p2p(source=negatives, alpha=[0.65, 1.0], offset=[0, -1, -2])",),
    "P2P, labels": ("p2p(source=labels, alpha=[0.65, 1.0], offset=[0, -1, -2])",),
    "FRACAL": ("fracal", "fracal(lam=0)"),
    AUTO: (AUTO,),
}
# Points without a parameter chosen on these images.
GEOMETRIC = "logn(std_reference=geometric, beta=none)"
CHOSEN_BY_NOBODY = (PLAIN, LOGN, GEOMETRIC, NORCAL, "fracal", AUTO)
GRID = {name: [t for each in texts for t in expand_grid(each)] for name, texts in FAMILIES.items()}

Scores = Mapping[str, float]


def trained_block(args: argparse.Namespace, block: str) -> Path:
    """Folder of a training of `benchmarks/methods.py`; it is trained where it is not."""
    sampler, seed, method = block.split("/")
    job = make_job(args, sampler, int(seed.removeprefix("seed")), method)
    if missing_points(job.folder):  # figures need no training
        train(job)
    return job.folder


def missing_points(run: Path) -> list[str]:
    """Points that joined the grid after a run was evaluated; the others keep their figures."""
    known = stored_scores(run)
    return [text for family in GRID.values() for text in family if text not in known]


def stored_scores(run: Path) -> dict[str, Scores]:
    """Figures that a run has already; empty before its first evaluation."""
    path = run / "grid.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def evaluate(run: Path, opts: Sequence[str] = ()) -> dict[str, Scores]:
    """Box AP of every point of the grid for a finished training; `opts` are KEY VALUE pairs."""
    scores, path = stored_scores(run), run / "grid.json"
    texts = [text for family in GRID.values() for text in family]
    rows = [Row(text, text) for text in missing_points(run)]
    if rows:
        found = measure(run_config(run, opts), rows, run / "grid")
        scores |= {name: {m: tasks["bbox"][m] for m in METRICS} for name, tasks in found.items()}
        with atomic_write(path) as temporary:
            temporary.write_text(json.dumps(scores, indent=1) + "\n", encoding="utf-8")
    return {text: scores[text] for text in texts}


def table(scores: Mapping[str, Scores]) -> str:
    """The best point of each family, with its change of AP and of each group."""
    lines = []
    for family, texts in GRID.items():
        best = max(texts, key=lambda text: scores[text]["AP"])
        base = {m: 0.0 if family == PLAIN else scores[PLAIN][m] for m in METRICS}
        change = [
            f"{scores[best][m] - base[m]:{'' if family == PLAIN else '+'}.1f}" for m in METRICS
        ]
        lines.append([family, best if len(texts) > 1 else "", *change])
    return tabulate(lines, ["family", "best point", *METRICS], "pipe", disable_numparse=True)


def asked(scores: Mapping[str, Scores], text: str) -> tuple[float, float, float, float]:
    """The criteria: AP less the best point's, LogN's, NorCal 0.6's; change of the worst group."""
    best = max(values["AP"] for values in scores.values())
    mine, plain = scores[text], scores[PLAIN]
    gaps = (mine["AP"] - each for each in (best, scores[LOGN]["AP"], scores[NORCAL]["AP"]))
    return (*gaps, min(mine[m] - plain[m] for m in METRICS[1:]))


def is_met(scores: Mapping[str, Scores], text: str) -> bool:
    """Within 0.3 of the best point, above LogN and NorCal 0.6, no group more than 0.3 lower."""
    gap, logn, norcal, group = asked(scores, text)
    return gap >= -0.3 and logn > 0 and norcal > 0 and group >= -0.3


def most_often_met(blocks: Mapping[str, Mapping[str, Scores]]) -> str:
    """The five points that meet the criteria in most blocks, with the number of blocks."""
    texts = [text for family in GRID.values() for text in family]
    counts = {text: sum(is_met(scores, text) for scores in blocks.values()) for text in texts}
    found = sorted(texts, key=lambda text: -counts[text])[:5]
    return ", ".join(f"{text}: {counts[text]} of {len(blocks)}" for text in found)


def verdict(blocks: Mapping[str, Mapping[str, Scores]]) -> str:
    """How `auto` does in each block."""
    lines = []
    for block, scores in blocks.items():
        lines.append([block, *(f"{value:+.2f}" for value in asked(scores, AUTO))])
    head = ["block", "auto - best of the grid", "- LogN", "- NorCal 0.6", "worst group"]
    return tabulate(lines, head, "pipe", disable_numparse=True)


def over_seeds(blocks: Mapping[str, Mapping[str, Scores]]) -> str:
    """Mean and standard deviation over the seeds of each sampler and method."""
    kinds: dict[str, list[Mapping[str, Scores]]] = {}
    for block, scores in blocks.items():
        # What is left without the seed: "rfs/seed0/cross_entropy" or "demo0".
        kind = ", ".join(filter(None, re.sub(r"(seed)?\d+(?=/|$)", "", block).split("/")))
        kinds.setdefault(kind, []).append(scores)
    lines = []
    for kind, seeds in kinds.items():
        for text in CHOSEN_BY_NOBODY:
            changes = [
                [each[text][m] - (each[PLAIN][m] if text != PLAIN else 0) for each in seeds]
                for m in METRICS
            ]
            sign = "" if text == PLAIN else "+"
            lines.append([f"{kind} ({len(seeds)})", text, *(_spread(c, sign) for c in changes)])
    return tabulate(lines, ["training (seeds)", "", *METRICS], "pipe", disable_numparse=True)


def _spread(values: list[float], sign: str) -> str:
    deviation = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):{sign}.1f}{deviation}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--blocks", nargs="+", default=[], metavar="SAMPLER/seedN/METHOD")
    source.add_argument("--runs", nargs="+", default=[], type=Path, metavar="FOLDER")
    parser.add_argument("--dataset", metavar="NAME", help="data set of --runs (default: their own)")
    parser.add_argument("--size", choices=list(SIZES), default="demo")
    parser.add_argument("--iterations", type=int, default=300)
    parser.add_argument("--output", type=Path, default=Path("output/methods"))
    args = parser.parse_args()
    with short_errors():
        if args.blocks:
            draw_glyphs(_root(), args.size)
        if args.blocks and SIZES[args.size].pretraining:
            draw_glyphs(_root(), "pretrain")
            train(make_pretraining(args))
        opts = ["DATASETS.TEST", f"('{args.dataset}',)"] if args.dataset else []
        found = {}
        for block in [*args.blocks, *args.runs]:
            run = block if block in args.runs else trained_block(args, block)
            name = run.name if block in args.runs else block
            found[name] = evaluate(run, opts)
            print(f"\n## {name}\n\n{table(found[name])}", flush=True)
    print(f"\n## auto\n\n{verdict(found)}\n\nAll three met: {most_often_met(found)}")
    print(f"\n## Over seeds: uncalibrated, and changes\n\n{over_seeds(found)}")


def _root() -> str:
    return os.environ.get("DETECTRON2_DATASETS", "datasets")


if __name__ == "__main__":
    main()
