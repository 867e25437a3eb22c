"""Show, compare, merge, check and import statistics files.

Tables are Markdown.

Example:
    logn stats show logn_stats.safetensors --all
    logn stats compare early_stop.safetensors full_pass.safetensors
    logn stats merge shard0.safetensors shard1.safetensors --output all.safetensors
    logn stats check logn_stats.safetensors
    logn stats import epoch_1.pth --output logn_stats.safetensors

The last command extracts the statistics from a checkpoint of the released LogN code.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from .arguments import Parser


def parse_args(argv: Sequence[str]) -> argparse.Namespace:
    parser = Parser("stats", __doc__)
    # Plain parsers: argparse makes them with other arguments than `Parser` takes.
    actions = parser.add_subparsers(
        dest="action", required=True, metavar="ACTION", parser_class=argparse.ArgumentParser
    )
    for name, what in (
        ("show", "print the origin, and mean and deviation of each class"),
        ("compare", "compare two files, largest differences first"),
        ("merge", "merge the statistics of several files"),
        ("check", "check whether files are valid"),
    ):
        action = actions.add_parser(name, help=what, description=what)
        action.add_argument("paths", nargs="+", metavar="FILE", help="statistics files")
        action.add_argument(
            "--all", action="store_true", help="every class, not only the first and last"
        )
        action.add_argument(
            "--rows", type=int, default=10, metavar="N", help="classes at each end (default: 10)"
        )
        if name == "merge":
            action.add_argument("--output", required=True, metavar="FILE")
    _add_import(actions)
    args = parser.parse_args(argv)
    number = len(getattr(args, "paths", ()))  # an import has none
    if args.action == "compare" and number != 2:
        parser.error(f"compare takes two files, {number} were given")
    if args.action == "merge" and number < 2:
        parser.error("merge takes two files or more")
    return args


def _add_import(actions: argparse._SubParsersAction) -> None:
    what = "extract the statistics from a checkpoint of the released LogN code"
    action = actions.add_parser("import", help=what, description=what)
    action.add_argument(
        "checkpoint", metavar="FILE", help="checkpoint of the released code's fine-tuning"
    )
    action.add_argument("--output", required=True, metavar="FILE", help="the statistics file")
    action.add_argument(
        "--class-names-from",
        metavar="NAME",
        help="registered data set with these classes (default: the checkpoint's names)",
    )
    action.add_argument(
        "--momentum", type=float, default=5e-5, help="momentum of the layer (default: 5e-5)"
    )
    action.add_argument(
        "--debias", action="store_true", help="remove the remaining share of the initial values"
    )
    action.add_argument(
        "--images-per-batch",
        type=int,
        default=1,
        metavar="N",
        help="batch size per process (default: 1)",
    )
    action.add_argument(
        "--rois-per-image", type=int, default=512, metavar="N", help="sampled RoIs (default: 512)"
    )
