"""The ablations of the LogN paper, one command each.

A RUN is the folder of a finished training. Tables that need only statistics share one inference
pass; those that need another training start it, or reuse a finished one. Several runs, such as
seeds, give mean and standard deviation. After an interruption, repeat the command.

Ablations: components, beta, positives, squared_std, population, estimator, cascade_average,
sampler, classifier, or all.

Example:
    logn ablate components output/glyphs_demo_rfs
    logn ablate components beta squared_std output/seed0 output/seed1
    logn ablate classifier --config-file configs/lvis_v1_mask_rcnn_R_50_FPN.yaml
    logn ablate all output/lvis_v1_cascade_mask_rcnn_R_101_FPN --num-gpus 8
"""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence
from pathlib import Path

from .arguments import Parser, without_overrides


def parse_args(argv: Sequence[str]) -> argparse.Namespace:
    parser = Parser("ablate", __doc__)
    parser.add_argument(
        "names", nargs="*", metavar="NAME ... RUN ... [KEY VALUE ...]",
        help="ablations, runs, and config keys for trainings",
    )  # fmt: skip
    parser.add_argument(
        "--config-file", metavar="FILE", help="config to train (unless trained) and use as RUN"
    )
    parser.add_argument(
        "--output", type=Path, metavar="DIR", help="default: ablations in the first RUN"
    )
    parser.add_processes(machines=False)  # its own trainings run on this one
    # Names, runs and KEY VALUE share one list, which options may interrupt.
    args = parser.parse_intermixed_args(argv)
    args.names, args.opts = without_overrides(args.names)
    args.command = shlex.join(["logn", "ablate", *argv])
    return args
