#!/usr/bin/env python
"""The share of a calibration's gain that comes from the choice of detections per image.

AP uses the best detections of each image, 300 in LVIS. A calibration changes this choice, and the
order within each class. The same detections under several limits, and fixed AP (the best 10,000 of
each class over all images, so classes do not compete for places), separate the two effects. The
sweep must keep more detections than the largest limit.

Example:
    logn sweep --config-file C.yaml --weights W.pth --stats logn_stats.safetensors \\
        --calibrations logn auto --output output/sweep \\
        TEST.DETECTIONS_PER_IMAGE 3000 MODEL.ROI_HEADS.SCORE_THRESH_TEST 0.0
    python benchmarks/detection_limit.py output/sweep --annotations val.json --limits 30 100 300
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from tabulate import tabulate

from logn_d2.engine import short_errors
from logn_d2.lvis import Detections, LvisGroundTruth, evaluate_fixed_ap, evaluate_lvis
from logn_d2.sweeps import SweepDetections

METRICS = ("AP", "APr", "APc", "APf")


def evaluations(
    truth: LvisGroundTruth, detections: Detections, limits: Sequence[int]
) -> Iterator[tuple[str, Mapping[str, float]]]:
    """Box AP in percent under each limit, then fixed AP."""
    for limit in limits:
        yield f"AP of {limit} an image", evaluate_lvis(truth, detections, max_dets=limit).as_dict()
    yield "fixed AP", evaluate_fixed_ap(truth, detections).as_dict()


def table(truth: LvisGroundTruth, sweep: SweepDetections, limits: Sequence[int]) -> str:
    """The first calibration's figures, and the changes from them."""
    base: dict[str, Mapping[str, float]] = {}
    lines = []
    for name in sweep.names:
        for how, found in evaluations(truth, sweep.detections(name), limits):
            first = how not in base
            base.setdefault(how, found)
            values = [found[m] - (0 if first else base[how][m]) for m in METRICS]
            lines.append([how, name, *(f"{v:.1f}" if first else f"{v:+.1f}" for v in values)])
    lines.sort(key=lambda line: list(base).index(line[0]))
    return tabulate(lines, ["", "calibration", *METRICS], "pipe", disable_numparse=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("sweep", type=Path, metavar="DIR", help="output of `logn sweep`")
    parser.add_argument("--annotations", type=Path, required=True, metavar="FILE")
    parser.add_argument("--limits", type=int, nargs="+", default=[30, 100, 300])
    args = parser.parse_args()
    with short_errors():
        truth = LvisGroundTruth.from_json(args.annotations, masks=False)
        print(table(truth, SweepDetections.load(args.sweep / "sweep"), args.limits))


if __name__ == "__main__":
    main()
