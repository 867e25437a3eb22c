"""A command of `logn`, for tests that need no process of its own."""

from __future__ import annotations

import importlib
from types import ModuleType


def command(name: str) -> ModuleType:
    """The module of a command's work, with `main` and `parse_args` of its arguments beside it.

    Args:
        name (str): such as "sweep".
    """
    arguments = importlib.import_module(f"logn_d2.cli.{name}")
    work = importlib.import_module(f"logn_d2.commands.{name}")
    work.main = arguments.main
    if hasattr(arguments, "parse_args"):
        work.parse_args = arguments.parse_args
    return work
