"""Arguments with the same meaning in every command."""

from __future__ import annotations

import argparse
import functools
import re
import sys
from collections.abc import Sequence


class Parser(argparse.ArgumentParser):
    """A command's parser, which keeps the line breaks of the examples.

    Args:
        command (str): name of the command, such as "sweep".
        text (str): docstring of the command's module.
    """

    def __init__(self, command: str, text: str | None) -> None:
        super().__init__(
            prog=f"logn {command}",
            description=text,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )

    def add_config(self, required: bool = True) -> None:
        """Add --config-file, --weights, --import, and KEY VALUE at the end.

        Commands with these call `parse_intermixed_args`, because argparse otherwise takes a
        positional list only in one place.
        """
        self.add_argument(
            "--config-file",
            required=required,
            metavar="FILE",
            help="config of the model: YAML, or a LazyConfig (.py)",
        )
        self.add_argument(
            "--weights", metavar="FILE", default="", help="checkpoint (config key MODEL.WEIGHTS)"
        )
        self.add_argument(
            "--import",
            dest="imports",
            action="append",
            default=[],
            metavar="MODULE",
            help="module to import first, which registers your own heads or data sets; repeatable",
        )
        self.add_argument(
            "opts",
            nargs="*",
            metavar="KEY VALUE",
            help="config keys, at the end; of a LazyConfig also key.of.config=VALUE",
        )

    def add_old_spelling(self, old: str, new: str) -> None:
        """Accept an option's former name for one release, with a warning."""
        action = functools.partial(_OldSpelling, new=new)
        destination = new.lstrip("-").replace("-", "_")
        self.add_argument(old, dest=destination, action=action, help=argparse.SUPPRESS)


class _OldSpelling(argparse.Action):
    """Stores the value of an option given by its former name."""

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
    """Add the processes of a command; torchrun and srun set them without these options."""
    group = parser.add_argument_group("processes (not with torchrun and srun, which start them)")
    group.add_argument("--num-gpus", type=int, default=1, metavar="N", help="GPUs of this machine")
    group.add_argument(
        "--num-processes", type=int, default=1, metavar="N", help="processes on the CPU"
    )
    if machines:
        group.add_argument("--num-machines", type=int, default=1, metavar="N")
        group.add_argument(
            "--machine-rank", type=int, default=0, metavar="N", help="rank of this one"
        )
        group.add_argument(
            "--dist-url", default="auto", metavar="URL", help="tcp://HOST:PORT of machine 0"
        )


def overrides(args: argparse.Namespace) -> list[str]:
    """KEY VALUE pairs of a command line, including those set by options."""
    pairs = {"MODEL.WEIGHTS": getattr(args, "weights", ""), "OUTPUT_DIR": _folder(args)}
    return [*args.opts, *(text for pair in pairs.items() if pair[1] for text in pair)]


def _folder(args: argparse.Namespace) -> str:
    return getattr(args, "output_dir", "") or ""


# Only Detectron2's config nodes, so that no file name is mistaken for a key.
_KEY = re.compile(
    r"(MODEL|INPUT|DATASETS|DATALOADER|SOLVER|TEST|GLOBAL)(\.[A-Z0-9_]+)+$"
    r"|(OUTPUT_DIR|SEED|CUDNN_BENCHMARK|VIS_PERIOD)$"
    r"|\+?[a-z_]\w*(\.\w+)+="  # of a LazyConfig
)


def without_overrides(values: Sequence[str]) -> tuple[list[str], list[str]]:
    """Separate a list of names from the KEY VALUE pairs that argparse has appended to it.

    Example:
        >>> without_overrides(["logn", "norcal(gamma=0.6)", "MODEL.DEVICE", "cpu"])
        (['logn', 'norcal(gamma=0.6)'], ['MODEL.DEVICE', 'cpu'])
    """
    first = next((i for i, text in enumerate(values) if _KEY.match(text)), len(values))
    return list(values[:first]), list(values[first:])
