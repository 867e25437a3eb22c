"""Compare calibrations of one detector or image classifier: one inference pass, one table.

Writes OUTPUT/results.json and config.yaml, the input of the report, and the detections of every
calibration to OUTPUT/sweep, with the masks that the LVIS rule evaluates. The same command with
--resume resumes an interrupted sweep. --save-outputs also keeps the network's raw logits and
boxes: a later sweep with --from-outputs needs neither the weights nor a network.

Example:
    logn sweep --config-file C.yaml --weights model_final.pth --stats logn_stats.safetensors \\
        --calibrations uncalibrated logn "logn(beta=mean)" "norcal(gamma=0.6)" \\
        --output output/sweep

Grids (a range includes its stop; several lists form all products), and a calibration per group:
    --calibrations "norcal(gamma=0.2:1:0.2)" "logn(beta=[min, mean], std_power=[1, 2])" \\
        "groups(rare=logn, common=norcal(gamma=0.4), frequent=none)"

An image classifier gets top-1, Many, Medium, Few and the expected calibration error; with --ood,
the separation of images of unknown classes by scores; with --choose-on, also a temperature. The
logits of each set are kept in OUTPUT, and --resume reuses them:
    logn sweep --config-file classification/glyphs_lt_cosine.yaml --weights model_final.pth \\
        --stats logn_stats.safetensors --calibrations logn "logit_adjustment(tau=0.5:1.5:0.5)" \\
        --choose-on glyphs_lt_val --ood glyphs_lt_unknown --output output/sweep

A detector's --ood compares boxes in known images with boxes in images of other classes, by the
protocol of VOS (docs/ood.md), and writes OUTPUT/unknown_SET.json.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from .. import UNCALIBRATED
from .arguments import Parser

# The parts of LogN (paper Table 2), which need only statistics.
DEFAULT = (UNCALIBRATED, "logn_mean", "logn_std", "logn_no_beta", "logn")


def parse_args(argv: Sequence[str]) -> argparse.Namespace:
    parser = Parser("sweep", __doc__)
    parser.add_config()
    parser.add_statistics()
    parser.add_argument(
        "--calibrations",
        nargs="+",
        metavar="NAME",
        default=DEFAULT,
        help=f"names, calls with keywords, or grids of them; {UNCALIBRATED} is always included "
        f"(default: {' '.join(DEFAULT)})",
    )
    parser.add_argument("--output", required=True, metavar="DIR", help="folder of the results")
    parser.add_argument(
        "--dataset",
        metavar="NAME",
        help="registered data set (default: the first of DATASETS.TEST)",
    )
    parser.add_argument(
        "--choose-on",
        metavar="NAME",
        help="choose the best of each grid on this registered data set, not on the evaluated one",
    )
    parser.add_argument(
        "--ood",
        nargs="+",
        metavar="NAME",
        default=[],
        help="registered data sets whose images contain none of the classes",
    )
    # Two options, because one with an optional value would take a KEY that follows it. The default
    # is that of ODIN's paper; the module that has it as a constant imports torch.
    parser.add_argument(
        "--odin",
        action="store_const",
        const=0.0014,
        help="image classifiers with --ood: also ODIN's score, from another pass over each set",
    )
    parser.add_argument(
        "--odin-noise",
        dest="odin",
        type=float,
        metavar="SHARE",
        help="the same, with another perturbation, as a share of the pixel range (default: 0.0014)",
    )
    parser.add_argument(
        "--ood-threshold",
        type=float,
        metavar="SCORE",
        help="detectors: smallest score of a box (default: the best F1 of each calibration)",
    )
    parser.add_argument(
        "--save-outputs", metavar="DIR", help="keep raw logits and boxes for later sweeps"
    )
    parser.add_argument(
        "--max-boxes",
        type=int,
        default=0,
        metavar="N",
        help="with --save-outputs: keep only the boxes of the N best candidates of an image "
        "under each calibration, which suffices for similar calibrations (default: all)",
    )
    parser.add_argument(
        "--from-outputs",
        metavar="DIR",
        help="sweep over the outputs kept by --save-outputs",
    )
    parser.add_old_spelling("--save-predictions", "--save-outputs")
    parser.add_old_spelling("--predictions", "--from-outputs")
    parser.add_argument("--resume", action="store_true", help="resume an interrupted sweep")
    parser.add_argument(
        "--overwrite", action="store_true", help="replace the finished results of another sweep"
    )
    parser.add_processes()
    args = parser.parse_config(argv)
    # Refused here: the work would ignore them without a word.
    processes = max(args.num_processes, args.num_gpus, args.num_machines)
    if args.from_outputs and (args.save_outputs or args.choose_on or processes > 1):
        parser.error(
            "--from-outputs runs no network and excludes --save-outputs, --choose-on and more than "
            "one process"
        )
    return args
