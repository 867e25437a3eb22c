"""Draw LT-Glyphs, a long-tail benchmark without download; check, convert or filter data sets.

Without names, `logn data check` checks every LVIS and LT-Glyphs set whose annotations exist. With a
config it also runs the checks of a training with that config.

Example:
    logn data draw --size demo
    logn data check lvis_v1_train lvis_v1_val
    logn data check --config-file configs/my.yaml
    logn data muscima muscima-pp --output datasets/muscima
    logn data without instances_val2017.json --classes-of voc_test.json --output unknown_val.json
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from .arguments import Parser


def parse_args(argv: Sequence[str]) -> argparse.Namespace:
    parser = Parser("data", __doc__)
    # Plain parsers: argparse makes them with other arguments than `Parser` takes.
    actions = parser.add_subparsers(
        dest="action", required=True, metavar="ACTION", parser_class=argparse.ArgumentParser
    )
    draw = actions.add_parser("draw", help="draw a size of LT-Glyphs")
    draw.add_argument("--size", default="demo", metavar="SIZE", help="default: demo")
    draw.add_argument(
        "--root",
        metavar="DIR",
        help="root of the data sets (default: $DETECTRON2_DATASETS, ./datasets)",
    )
    draw.add_argument("--seed", type=int, default=0, metavar="N", help="random seed (default: 0)")
    draw.add_argument(
        "--num-workers", type=int, metavar="N", help="processes (default: all processors)"
    )
    draw.add_argument(
        "--overwrite", action="store_true", help="replace a set drawn with other settings"
    )
    draw.add_argument("--check", action="store_true", help="only verify existing files")
    check = actions.add_parser("check", help="check annotations, image files, boxes")
    check.add_argument("names", nargs="*", metavar="NAME", help="registered names")
    check.add_argument(
        "--config-file", metavar="FILE", help="check the training and test sets of this config"
    )
    muscima = actions.add_parser("muscima", help="convert MUSCIMA++ 2.0 to LVIS format")
    muscima.add_argument("source", metavar="DIR", help="the release, or its data/annotations")
    muscima.add_argument(
        "--output", default="datasets/muscima", metavar="DIR", help="default: datasets/muscima"
    )
    muscima.add_argument(
        "--val-writers",
        type=int,
        nargs="+",
        metavar="N",
        help="writers for validation (default: 16 fixed ones, which keep figures comparable)",
    )
    without = actions.add_parser(
        "without", help="write the annotations of images that contain none of the given classes"
    )
    without.add_argument("annotations", metavar="FILE", help="json in COCO or LVIS format")
    which = without.add_mutually_exclusive_group(required=True)
    which.add_argument("--classes", nargs="+", metavar="NAME", help="names as in the file")
    which.add_argument(
        "--classes-of",
        metavar="FILE",
        help="the classes of another json; those missing in the first file are ignored",
    )
    without.add_argument("--output", required=True, metavar="FILE", help="the json to write")
    return parser.parse_args(argv)
