"""Arguments that mean the same in every command."""

from __future__ import annotations

import argparse
import functools
import re
import sys
from collections.abc import Sequence

__all__ = ["Parser", "add_placement", "overrides", "without_overrides"]


class Parser(argparse.ArgumentParser):
    """A command's parser; its examples keep their lines.

    Args:
        command (str): such as "sweep".
        text (str): docstring of the command's module.
    """

    def __init__(self, command: str, text: str | None) -> None:
        super().__init__(
            prog=f"logn {command}",
            description=text,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )

    def add_config(self, required: bool = True) -> None:
        """--config-file, --weights, --import, and KEY VALUE at the end."""
        self.add_argument("--config-file", required=required, metavar="FILE", help="the model's")
        self.add_argument(
            "--weights", metavar="FILE", default="", help="checkpoint (config key MODEL.WEIGHTS)"
        )
        self.add_argument(
            "--import",
            dest="imports",
            action="append",
            default=[],
            metavar="MODULE",
            help="import it first: it registers heads or data sets of your own; may be repeated",
        )
        self.add_argument("opts", nargs="*", metavar="KEY VALUE", help="config keys, at the end")

    def add_old_spelling(self, old: str, new: str) -> None:
        """An option's former name, which works for one release, with a warning."""
        action = functools.partial(_OldSpelling, new=new)
        destination = new.lstrip("-").replace("-", "_")
        self.add_argument(old, dest=destination, action=action, help=argparse.SUPPRESS)


class _OldSpelling(argparse.Action):
    """Stores what an option of a former name is given."""

    def __init__(self, *args: object, new: str, **kwargs: object) -> None:
        super().__init__(*args, **kwargs)
        self._new = new

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: object,
        option: str | None = None,
    ) -> None:
        print(f"{parser.prog}: {option} is {self._new} now", file=sys.stderr)
        setattr(namespace, self.dest, values)


def add_placement(parser: argparse.ArgumentParser, machines: bool = False) -> None:
    """Where a command runs; torchrun and srun tell it without these."""
    group = parser.add_argument_group("processes (not with torchrun and srun, which start them)")
    group.add_argument("--num-gpus", type=int, default=1, metavar="N", help="on this machine")
    group.add_argument("--num-processes", type=int, default=1, metavar="N", help="on the CPU")
    if machines:
        group.add_argument("--num-machines", type=int, default=1, metavar="N")
        group.add_argument("--machine-rank", type=int, default=0, metavar="N", help="of this one")
        group.add_argument(
            "--dist-url", default="auto", metavar="URL", help="tcp://HOST:PORT of machine 0"
        )


def overrides(args: argparse.Namespace) -> list[str]:
    """KEY VALUE pairs of a command line, those that options stand for included."""
    pairs = {"MODEL.WEIGHTS": getattr(args, "weights", ""), "OUTPUT_DIR": _folder(args)}
    return [*args.opts, *(text for pair in pairs.items() if pair[1] for text in pair)]


def _folder(args: argparse.Namespace) -> str:
    return getattr(args, "output_dir", "") or ""


# Detectron2's config nodes, so that no file name is taken for a key.
_KEY = re.compile(
    r"(MODEL|INPUT|DATASETS|DATALOADER|SOLVER|TEST|GLOBAL)(\.[A-Z0-9_]+)+$"
    r"|(OUTPUT_DIR|SEED|CUDNN_BENCHMARK|VIS_PERIOD)$"
)


def without_overrides(values: Sequence[str]) -> tuple[list[str], list[str]]:
    """Divides a list of names, behind which argparse has put KEY VALUE pairs too.

    Example:
        >>> without_overrides(["logn", "norcal(gamma=0.6)", "MODEL.DEVICE", "cpu"])
        (['logn', 'norcal(gamma=0.6)'], ['MODEL.DEVICE', 'cpu'])
    """
    first = next((i for i, text in enumerate(values) if _KEY.match(text)), len(values))
    return list(values[:first]), list(values[first:])
