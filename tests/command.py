"""A command of `logn`, for tests that need no process of its own."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from types import ModuleType

import pytest

from logn_d2.cli.main import run


def command(name: str) -> ModuleType:
    """The module of a command's work, with `main` and `parse_args` of its arguments beside it.

    Args:
        name (str): such as "sweep".
    """
    arguments = importlib.import_module(f"logn_d2.cli.{name}")
    work = importlib.import_module(f"logn_d2.commands.{name}")
    work.main = functools.partial(run, name)
    work.parse_args = arguments.parse_args
    return work


def refusal(capsys: pytest.CaptureFixture, run: Callable[..., int], *arguments: str) -> str:
    """The message of a command that a user's mistake ends, without a traceback."""
    with pytest.raises(SystemExit) as ending:
        run(*arguments)
    text = str(ending.value.code) + capsys.readouterr().err
    assert "Traceback" not in text
    return text
