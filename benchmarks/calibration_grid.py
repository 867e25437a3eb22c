#!/usr/bin/env python
"""Which calibration is best, and how close is one without hyper-parameters?

Every block is a training of `benchmarks/methods.py` (sampler, seed, classifier, length). One pass
over the training set collects its statistics, and one pass over the validation set evaluates the
boxes of the whole grid: LogN and its parts, NorCal, P2P and FRACAL over their strengths and common
shifts. The table of a block has the best point of each family. Then come the criteria for `auto`:
its distance to the best point of the grid, its gain over LogN and NorCal 0.6, and the largest loss
of a group against the uncalibrated detector, with `--intervals` from a paired bootstrap over
images; then how often other candidates meet them. The last table has the spread over seeds.
Finished blocks are kept. `--runs` takes finished trainings of any detector instead.

Example:
    python benchmarks/calibration_grid.py \\
        --blocks rfs/seed0/cross_entropy random/seed0/cross_entropy rfs/seed0/cross_entropy_linear
    python benchmarks/calibration_grid.py --runs output/demo --dataset lt_glyphs_demo_val
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

from compared_methods import SIZES
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from methods import make_job, make_pretraining, train
from tabulate import tabulate

from logn_d2 import UNCALIBRATED
from logn_d2.analysis import bootstrap_difference
from logn_d2.core import expand_grid
from logn_d2.engine import short_errors
from logn_d2.engine.experiments import Row, measure, run_config
from logn_d2.files import atomic_write
from logn_d2.glyphs import draw_glyphs
from logn_d2.lvis import LvisGroundTruth, match_lvis
from logn_d2.sweeps import SweepDetections

METRICS = ("AP", "APr", "APc", "APf")
MARGIN = 0.3  # AP that a calibration may miss to the best point, or cost a group
PLAIN, LOGN, NORCAL, AUTO = UNCALIBRATED, "logn", "norcal(gamma=0.6)", "auto"
# The point of the grid equal to `auto`: a grid.json may have figures of an older rule under its
# name.
AUTO_POINT = "p2p(alpha=1.0, offset=0)"
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
}
GEOMETRIC = "logn(std_reference=geometric, beta=none)"
NEGATIVES = tuple(
    f"p2p(source=negatives, alpha={strength})"
    for strength in ("1.0, offset=0", "1.0, offset=-1", "0.65, offset=-1")
)
# Rows of the table over seeds.
SHOWN = (PLAIN, LOGN, GEOMETRIC, NORCAL, "fracal", *NEGATIVES[1:], AUTO)
# Rows of the table of criteria: what a user may take without labels.
CANDIDATES = (
    *(LOGN, "logn_mean", "logn_std", "logn_beta", "logn_no_beta", GEOMETRIC, NORCAL),
    *("norcal(gamma=auto, centre=mean, offset=0)", "fracal", AUTO, *NEGATIVES),
)
GRID = {name: [t for each in texts for t in expand_grid(each)] for name, texts in FAMILIES.items()}
POINTS = [text for family in GRID.values() for text in family]

Scores = Mapping[str, float]
Interval = tuple[float, float]


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
    return [text for text in POINTS if text not in known]


def stored_scores(run: Path) -> dict[str, Scores]:
    """Figures that a run has already; empty before its first evaluation."""
    path = run / "grid.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def box_config(run: Path, opts: Sequence[str] = ()) -> CfgNode:
    """The config of a run without masks, which no figure of the grid needs."""
    return run_config(run, ["MODEL.MASK_ON", "False", *opts])


def evaluate(run: Path, opts: Sequence[str] = ()) -> dict[str, Scores]:
    """Box AP of every point of the grid for a finished training; `opts` are KEY VALUE pairs."""
    scores, path = stored_scores(run), run / "grid.json"
    rows = [Row(text, text) for text in missing_points(run)]
    if rows:
        found = measure(box_config(run, opts), rows, run / "grid")
        scores |= {name: {m: tasks["bbox"][m] for m in METRICS} for name, tasks in found.items()}
        with atomic_write(path) as temporary:
            temporary.write_text(json.dumps(scores, indent=1) + "\n", encoding="utf-8")
    return {text: scores[text] for text in POINTS} | {AUTO: scores[AUTO_POINT]}


def intervals(run: Path, opts: Sequence[str] = ()) -> dict[str, Interval]:
    """95 % intervals of the changes by `auto` over the validation images, in percent."""
    cfg = box_config(run, opts)
    folder = run / "grid" / f"sweep_{cfg.MODEL.LOGN.CASCADE_AVERAGE}"
    names = SweepDetections.load(folder).names if folder.is_dir() else ()
    if not {PLAIN, AUTO_POINT} <= set(names):  # those of other points replaced them
        measure(cfg, [Row(text, text) for text in (PLAIN, AUTO_POINT)], run / "grid")
    swept = SweepDetections.load(folder)
    truth = LvisGroundTruth.from_json(MetadataCatalog.get(cfg.DATASETS.TEST[0]).json_file)
    matches = (match_lvis(truth, swept.detections(text)) for text in (PLAIN, AUTO_POINT))
    found = bootstrap_difference(*matches).intervals
    return {m: tuple(100 * end for end in found[m]) for m in METRICS}


def table(scores: Mapping[str, Scores]) -> str:
    """The best point of each family, with its change of AP and of each group."""
    lines = []
    for family, texts in {**GRID, AUTO: [AUTO]}.items():
        best = max(texts, key=lambda text: scores[text]["AP"])
        base = {m: 0.0 if family == PLAIN else scores[PLAIN][m] for m in METRICS}
        sign = "" if family == PLAIN else "+"
        change = [_figure(scores[best][m] - base[m], sign) for m in METRICS]
        lines.append([family, best if len(texts) > 1 else "", *change])
    return tabulate(lines, ["family", "best point", *METRICS], "pipe", disable_numparse=True)


def asked(scores: Mapping[str, Scores], text: str) -> tuple[float, float, float, float]:
    """The criteria: AP less the best point's, LogN's, NorCal 0.6's; change of the worst group."""
    best = max(values["AP"] for values in scores.values())
    gaps = (scores[text]["AP"] - each for each in (best, scores[LOGN]["AP"], scores[NORCAL]["AP"]))
    group = worst_group(scores, text)
    return (*gaps, scores[text][group] - scores[PLAIN][group])


def worst_group(scores: Mapping[str, Scores], text: str) -> str:
    """The group whose AP changes least, or falls most; "AP" for a set without groups."""
    known = [m for m in METRICS[1:] if not math.isnan(scores[PLAIN][m])]  # groups with classes
    return min(known or METRICS[:1], key=lambda m: scores[text][m] - scores[PLAIN][m])


def is_met(scores: Mapping[str, Scores], text: str) -> bool:
    """Close to the best point, above LogN and NorCal 0.6, no group much lower."""
    gap, logn, norcal, group = asked(scores, text)
    return gap >= -MARGIN and logn > 0 and norcal > 0 and group >= -MARGIN


def criteria(blocks: Mapping[str, Mapping[str, Scores]]) -> str:
    """How often, and how far, each candidate meets the criteria over all blocks."""
    lines = []
    for text in CANDIDATES:
        gains = [scores[text]["AP"] - scores[PLAIN]["AP"] for scores in blocks.values()]
        found = [asked(scores, text) for scores in blocks.values()]
        gaps, groups = [each[0] for each in found], [each[-1] for each in found]
        met = [is_met(scores, text) for scores in blocks.values()]
        lines.append(
            [
                *(text, f"{statistics.fmean(gains):+.1f}", f"{min(gains):+.1f}"),
                *(f"{sum(gap >= -MARGIN for gap in gaps)}, {min(gaps):+.1f}",),
                *(f"{sum(group >= -MARGIN for group in groups)}, {min(groups):+.1f}", sum(met)),
            ]
        )
    head = ["", "mean AP", "smallest", "near the best, farthest", "groups kept, worst", "all met"]
    return tabulate(lines, head, "pipe", disable_numparse=True)


def verdict(
    blocks: Mapping[str, Mapping[str, Scores]],
    ends: Mapping[str, Mapping[str, Interval]] | None = None,
) -> str:
    """Distances of `auto` in each block, and its worst group with its interval, if known."""
    lines = []
    for block, scores in blocks.items():
        *gaps, change = (f"{value:+.2f}" for value in asked(scores, AUTO))
        group = worst_group(scores, AUTO)
        cell = f"{group} {change}"
        if ends and block in ends:
            cell += " [{:+.1f}, {:+.1f}]".format(*ends[block][group])
        lines.append([block, *gaps, cell, "yes" if is_met(scores, AUTO) else "no"])
    head = ["block", "auto - best of the grid", "- LogN", "- NorCal 0.6", "worst group", "all met"]
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
        for text in SHOWN:
            changes = [
                [each[text][m] - (each[PLAIN][m] if text != PLAIN else 0) for each in seeds]
                for m in METRICS
            ]
            sign = "" if text == PLAIN else "+"
            lines.append([f"{kind} ({len(seeds)})", text, *(_spread(c, sign) for c in changes)])
    return tabulate(lines, ["training (seeds)", "", *METRICS], "pipe", disable_numparse=True)


def _spread(values: list[float], sign: str) -> str:
    mean = statistics.fmean(values)
    known = len(values) > 1 and not math.isnan(mean)
    return _figure(mean, sign) + (f" ± {statistics.stdev(values):.1f}" if known else "")


def _figure(value: float, sign: str) -> str:
    return "-" if math.isnan(value) else f"{value:{sign}.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--blocks", nargs="+", default=[], metavar="SAMPLER/seedN/METHOD")
    source.add_argument("--runs", nargs="+", default=[], type=Path, metavar="FOLDER")
    parser.add_argument("--dataset", metavar="NAME", help="data set of --runs (default: their own)")
    parser.add_argument("--intervals", action="store_true", help="of the worst groups' changes")
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
        found, ends = {}, {}
        for name in [*args.blocks, *(runs := _named(args.runs))]:
            run = runs.get(name) or trained_block(args, name)
            found[name] = evaluate(run, opts)
            if args.intervals:
                ends[name] = intervals(run, opts)
            print(f"\n## {name}\n\n{table(found[name])}", flush=True)
    print(f"\n## auto\n\n{verdict(found, ends)}")
    print(f"\n## Criteria, {len(found)} trainings\n\n{criteria(found)}")
    print(f"\n## Over seeds: uncalibrated, and changes\n\n{over_seeds(found)}")


def _named(runs: Sequence[Path]) -> dict[str, Path]:
    """Runs by the part of their path that tells them apart."""
    common = os.path.commonpath([os.path.abspath(run.parent) for run in runs]) if runs else ""
    return {os.path.relpath(run, common): run for run in runs}


def _root() -> str:
    return os.environ.get("DETECTRON2_DATASETS", "datasets")


if __name__ == "__main__":
    main()
