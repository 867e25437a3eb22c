"""Write a checkpoint with the calibration folded into the classifier's weights.

The command also writes OUTPUT.yaml beside OUTPUT.pth. With a linear classifier both are plain
Detectron2: the model runs without logn_d2, at its original speed. Nothing is written unless the
folded and the calibrated model agree on a few images.

Example:
    logn fold --config-file configs/lvis_v1_mask_rcnn_R_50_FPN_rfs.yaml \\
        --stats logn_stats.safetensors --weights model_final.pth --output model_folded.pth
    logn fold --config-file C.yaml --weights W.pth --output W2.pth \\
        --calibration "norcal(gamma=0.6)" --images photographs/ MODEL.DEVICE cpu
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from .arguments import Parser


def parse_args(argv: Sequence[str]) -> argparse.Namespace:
    parser = Parser("fold", __doc__)
    parser.add_config()
    parser.add_calibration()
    parser.add_argument("--output", required=True, metavar="FILE", help="checkpoint to write, .pth")
    parser.add_argument(
        "--images",
        metavar="DIR",
        help="folder or registered data set for the comparison (default: DATASETS.TEST)",
    )
    parser.add_argument(
        "--num-images", type=int, default=4, metavar="N", help="number of images (default: 4)"
    )
    parser.add_argument(
        "--tolerance",
        type=float,
        default=1e-4,
        metavar="SCORE",
        help="largest difference in a score, in [0, 1] (default: 1e-4)",
    )
    args = parser.parse_config(argv)
    # Here, before anything heavy is imported.
    if Path(args.output).suffix != ".pth":
        parser.error(f"--output is {args.output}, expected a name ending in .pth")
    if args.weights and Path(args.output).resolve() == Path(args.weights).resolve():
        parser.error("--output equals --weights; keep the unfolded weights, they are needed again")
    if Path(args.output).with_suffix(".yaml").resolve() == Path(args.config_file).resolve():
        parser.error("the folded model's config would replace --config-file; change --output")
    return args
