"""Arguments with the same meaning in every command."""

from __future__ import annotations

import argparse
import contextlib
import functools
import math
import re
import sys
from collections.abc import Sequence

# Options that stand for a config key -> that key.
_KEYS = {
    "weights": "MODEL.WEIGHTS",
    "output_dir": "OUTPUT_DIR",
    "stats": "MODEL.LOGN.STATISTICS",
    "calibration": "MODEL.LOGN.CALIBRATION",
    "dataset": "DATASETS.TEST",
    "stop_at": "MODEL.LOGN.COLLECT.STOP_AT",
}
# Only Detectron2's config nodes, so that no file name is mistaken for a key.
_KEY = re.compile(
    r"(MODEL|INPUT|DATASETS|DATALOADER|SOLVER|TEST|GLOBAL)(\.[A-Z0-9_]+)+$"
    r"|(OUTPUT_DIR|SEED|CUDNN_BENCHMARK|VIS_PERIOD)$"
    r"|\+?[a-z_]\w*(\.\w+)+="  # of a LazyConfig
)


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
        self.set_defaults(verb=command)

    def add_config(self) -> None:
        """Add --config-file, --weights, --import, and KEY VALUE at the end; see `parse_config`."""
        self.add_argument(
            "--config-file",
            required=True,
            metavar="FILE",
            help="config of the model: YAML, or a LazyConfig (.py)",
        )
        self.add_argument("--weights", metavar="FILE", help="checkpoint (config key MODEL.WEIGHTS)")
        self.add_imports()
        self.add_argument(
            "opts",
            nargs="*",
            metavar="KEY VALUE",
            help="config keys, at the end; of a LazyConfig also key.of.config=VALUE",
        )

    def add_imports(self) -> None:
        """Add --import, which `add_config` does too."""
        self.add_argument(
            "--import",
            dest="imports",
            action="append",
            default=[],
            metavar="MODULE",
            help="module to import first, which registers your own heads or data sets; repeatable",
        )

    def add_statistics(self) -> None:
        """Add --stats."""
        self.add_argument(
            "--stats", metavar="FILE", help="statistics file, for calibrations that need one"
        )

    def add_calibration(self) -> None:
        """Add --stats and --calibration."""
        self.add_statistics()
        self.add_argument(
            "--calibration",
            metavar="NAME",
            help='such as "norcal(gamma=0.6)"; default with a statistics file: logn',
        )

    def parse_config(self, argv: Sequence[str]) -> argparse.Namespace:
        """Parse the arguments of a command with `add_config`.

        Returns:
            Namespace: ``opts`` has all KEY VALUE pairs: those at the end, then those that options
            stand for, which take precedence.
        """
        # Intermixed, because argparse otherwise takes a positional list only in one place.
        args = self.parse_intermixed_args(argv)
        pairs = []
        # An option with several values also takes the KEY VALUE pairs that follow it.
        for name, value in vars(args).items():
            if isinstance(value, list) and name != "opts":
                own, taken = without_overrides(value)
                setattr(args, name, own)
                pairs += taken
        args.opts = [*pairs, *args.opts, *option_pairs(args)]
        return args

    def add_processes(self, machines: bool = True) -> None:
        """Add the processes of a command; torchrun and srun set them without these options."""
        group = self.add_argument_group("processes (not with torchrun and srun, which start them)")
        group.add_argument(
            "--num-gpus", type=int, default=1, metavar="N", help="GPUs of this machine"
        )
        group.add_argument(
            "--num-processes", type=int, default=1, metavar="N", help="processes on the CPU"
        )
        self.set_defaults(num_machines=1, machine_rank=0, dist_url="auto")
        if machines:
            group.add_argument("--num-machines", type=int, metavar="N")
            group.add_argument("--machine-rank", type=int, metavar="N", help="rank of this one")
            group.add_argument("--dist-url", metavar="URL", help="tcp://HOST:PORT of machine 0")

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


def option_pairs(args: argparse.Namespace) -> list[str]:
    """KEY VALUE pairs of the given options that stand for a config key."""
    pairs = []
    for name, key in _KEYS.items():
        value = getattr(args, name, None)
        if value not in (None, ""):
            # As a literal, or a folder called 2024 would become a number.
            pairs += [key, repr((value,) if name == "dataset" else value)]
    return pairs


def sampling_error(text: str) -> float:
    """The type of --stop-at.

    Raises:
        ArgumentTypeError: not a finite number, or below 0.
    """
    with contextlib.suppress(ValueError):
        value = float(text)
        if math.isfinite(value) and value >= 0:
            return value
    raise argparse.ArgumentTypeError(
        f"'{text}', expected a number such as 0.1, or 0 for all images"
    )


def without_overrides(values: Sequence[str]) -> tuple[list[str], list[str]]:
    """Separate a list of names from the KEY VALUE pairs that argparse has appended to it.

    Example:
        >>> without_overrides(["logn", "norcal(gamma=0.6)", "MODEL.DEVICE", "cpu"])
        (['logn', 'norcal(gamma=0.6)'], ['MODEL.DEVICE', 'cpu'])
    """
    first = next((i for i, text in enumerate(values) if _KEY.match(text)), len(values))
    return list(values[:first]), list(values[first:])
