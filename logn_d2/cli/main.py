"""The entry point, which imports only the module of the given command.

A module of this package holds only a command's arguments, without heavy imports, so that `--help`
answers at once; the work is in the module of the same name in `logn_d2.commands`.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import sys
from collections.abc import Iterator, Sequence

from .. import __version__
from ..commands import INTERRUPTED

COMMANDS = {
    "train": "train a detector, collect its statistics, evaluate with and without calibration",
    "collect": "collect the statistics of a trained detector",
    "evaluate": "evaluate a detector, calibrated or not",
    "sweep": "compare many calibrations from one inference pass",
    "choose": "choose among the calibrations of a sweep, and estimate the value of the choice",
    "report": "compare runs in one HTML page, with intervals",
    "fold": "write a checkpoint with the calibration folded into its weights",
    "show": "draw detections before and after calibration for images, videos or a camera",
    "stats": "show, compare, merge, check and import statistics files",
    "data": "draw LT-Glyphs; check, convert or filter data sets",
    "demo": "run all phases on LT-Glyphs, from drawing to the report",
    "ablate": "run the ablations of the LogN paper",
    "average": "print mean and standard deviation over runs of several seeds",
    "trends": "print how a detector's logits depend on the training images of each class",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Returns:
        int: 0 on success, 1 for a mistake in data, files or settings, 2 for a wrong command line,
        130 after Ctrl-C.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    # By hand instead of subparsers, which would import every command's module for its arguments.
    name = argv[0] if argv else "--help"
    if name in ("-h", "--help"):
        print(usage())
        return 0
    if name == "--version":
        print(f"logn_d2 {__version__}")
        return 0
    if name not in COMMANDS:
        print(f"logn: there is no command '{name}'. Known: {', '.join(COMMANDS)}.", file=sys.stderr)
        return 2
    try:
        with loggers_as_before():
            return run(name, argv[1:])
    except KeyboardInterrupt:
        print(
            "\nInterrupted. Repeat the command, with --resume if it has that option.",
            file=sys.stderr,
        )
        return INTERRUPTED


def run(name: str, argv: Sequence[str]) -> int:
    """Run a command with its arguments; its modules are imported after they are read."""
    args = importlib.import_module(f".{name}", __package__).parse_args(argv)
    work = "run" if name in ("train", "collect", "evaluate") else name
    return importlib.import_module(f"..commands.{work}", __package__).run(args)


@contextlib.contextmanager
def loggers_as_before() -> Iterator[None]:
    """Restore the loggers afterwards: otherwise the next command in this process logs twice."""
    loggers = [logging.getLogger(name) for name in ("detectron2", "fvcore", "logn_d2")]
    before = [(each, each.handlers[:], each.propagate, each.level) for each in loggers]
    try:
        yield
    finally:
        for logger, handlers, propagate, level in before:
            logger.handlers, logger.propagate = handlers, propagate
            logger.setLevel(level)
        # Detectron2 remembers which loggers it has set up; here nothing may import it.
        if utilities := sys.modules.get("detectron2.utils.logger"):
            utilities.setup_logger.cache_clear()


def usage() -> str:
    """The text of `logn --help`."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:{width}}  {what}" for name, what in COMMANDS.items()]
    return "\n".join(
        [
            "usage: logn COMMAND [options] [KEY VALUE ...]",
            "",
            "LogN for Detectron2: make a trained long-tail detector fair to its rare classes.",
            "",
            *lines,
            "",
            "logn COMMAND --help lists the options. Exit status: 0 success, 1 a mistake in data,",
            "files or settings, 2 a wrong command line, 130 after Ctrl-C.",
        ]
    )
