"""Show the detections of a Detectron2 model before and after calibration, side by side.

Needs only the model's config, its weights and the statistics file, no data set. The network runs
once for both sides.

Example:
    logn show --config-file C.yaml --weights model.pth --stats logn_stats.safetensors \\
        --input photo.jpg "more/*.png" --output output/pictures
    logn show --config-file C.yaml --weights model.pth --stats logn_stats.safetensors \\
        --video-input street.mp4 --output both.mp4

A calibration changes all scores, so one threshold for both sides would compare different numbers of
detections. --confidence-threshold is therefore the threshold before calibration, and the other side
shows the same number of best detections: a new detection there replaces another one.
--calibrated-threshold sets a separate threshold instead. Of overlapping detections of several
classes only the best is shown (see --overlapping).
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from .arguments import Parser


def parse_args(argv: Sequence[str]) -> argparse.Namespace:
    parser = Parser("show", __doc__)
    parser.add_config()
    parser.add_calibration()
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--input", nargs="+", metavar="PATH", help="images, patterns or folders")
    source.add_argument("--video-input", metavar="FILE", help="a video")
    source.add_argument("--webcam", action="store_true", help="the first camera; Ctrl-C ends")
    parser.add_argument(
        "--output", metavar="PATH", help="an image or mp4 file, or a folder for several images"
    )
    parser.add_argument("--show", action="store_true", help="show the pictures in a window")
    parser.add_argument(
        "--confidence-threshold",
        type=_score,
        default=0.5,
        metavar="SCORE",
        help="smallest score shown before calibration (default: 0.5)",
    )
    parser.add_argument(
        "--calibrated-threshold",
        type=_score,
        metavar="SCORE",
        help="smallest score shown after calibration (default: as many detections as before)",
    )
    parser.add_argument(
        "--overlapping",
        action="store_true",
        help="also show detections that overlap a better one of another class (IoU over 0.5)",
    )
    args = parser.parse_config(argv)
    if not args.output and not args.show:
        parser.error("give --output PATH, --show, or both")
    return args


def _score(text: str) -> float:
    score = float(text)
    if not 0 <= score <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not a score between 0 and 1")
    return score
