"""Commands in separate processes, which do not import everything again.

A new interpreter takes seconds to import PyTorch, Detectron2 and the package. One server imports
them once, and each process is a fork of it: it has its own memory, environment and output, can be
killed, and runs the very script or module that a person starts.
"""

from __future__ import annotations

import functools
import multiprocessing
import os
import runpy
import socket
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import pytest
import torch.multiprocessing

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(
    ["logn_d2.commands.run", "logn_d2.engine.trainer", "logn_d2.report", "tests.small_detectors"]
)

# Seconds, against what would never end: a busy machine takes ten times as long as an idle one.
PATIENCE = 900

# What a launcher tells each of two processes on one machine, as torchrun does.
_TWO = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}


class Command:
    """A command that runs, or has run.

    Args:
        arguments (Sequence[object]): of ``python``: a script, or ``-m`` and a module, then its own.
        log (Path): takes standard output and standard error.
        environment (Mapping): variables to add to this process's.
        rank (int): among two that run together; each of them has the same ``port``. None: alone.
        port (int): see ``rank``.
    """

    def __init__(
        self,
        arguments: Sequence[object],
        log: Path,
        environment: Mapping[str, str] | None = None,
        rank: int | None = None,
        port: int | None = None,
    ) -> None:
        self.log = log
        variables = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", **(environment or {})}
        if rank is not None:
            variables |= {**_TWO, "RANK": str(rank), "LOCAL_RANK": str(rank)}
            variables["MASTER_PORT"] = str(port)
        log.parent.mkdir(parents=True, exist_ok=True)
        self._process: ForkServerProcess = CONTEXT.Process(
            target=_run, args=([str(each) for each in arguments], log, variables)
        )
        self._process.start()

    @property
    def output(self) -> str:
        """What it has printed so far."""
        return self.log.read_text() if self.log.exists() else ""

    def is_alive(self) -> bool:
        return self._process.is_alive()

    def wait(self, timeout: float = PATIENCE) -> int:
        """Its exit status, as `subprocess.Popen.wait`."""
        self._process.join(timeout)
        if self._process.exitcode is None:
            self._process.kill()
            raise TimeoutError(f"It runs for more than {timeout} s. {self.output[-3000:]}")
        return self._process.exitcode

    def kill(self) -> None:
        """Kills it with SIGKILL, as nobody can catch."""
        self._process.kill()
        self._process.join()

    def kill_when(self, folder: Path, glob: str, timeout: float = PATIENCE) -> None:
        """Kills it as soon as a file of this pattern is there."""
        deadline = time.monotonic() + timeout
        while not any(folder.glob(glob)):
            assert self.is_alive() and time.monotonic() < deadline, self.output[-3000:]
            time.sleep(0.01)
        self.kill()
        assert self.wait() < 0, "it has ended before it was killed"


def start_two(
    arguments: Sequence[object], log: Path, environment: Mapping[str, str] | None = None
) -> list[Command]:
    """Starts a command in two processes that talk to each other."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    logs = log, log.with_name(f"{log.name}.1")
    return [Command(arguments, logs[rank], environment, rank, port) for rank in range(2)]


def use_forks(monkeypatch: pytest.MonkeyPatch) -> None:
    """`logn_d2.engine.launch` forks the server too, in place of starting interpreters."""

    def spawn(function: Callable[..., None], args: tuple[Any, ...], nprocs: int) -> None:
        # The server's environment is that of its start; a test may have changed this process's.
        function = functools.partial(_in_environment, dict(os.environ), function)
        torch.multiprocessing.start_processes(function, args, nprocs, start_method="forkserver")

    monkeypatch.setattr(torch.multiprocessing, "spawn", spawn)


def _in_environment(
    environment: Mapping[str, str], function: Callable[..., None], *args: Any
) -> None:
    os.environ.clear()
    os.environ.update(environment)
    function(*args)


def _run(arguments: list[str], log: Path, environment: dict[str, str]) -> None:
    """The process: the interpreter's own way to run a script or a module."""
    with open(log, "wb", buffering=0) as output:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
            os.dup2(output.fileno(), stream.fileno())
    os.environ.update(environment)
    torch.set_num_threads(1)
    if arguments[0] == "-m":
        sys.argv = arguments[1:]
        runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = arguments
        sys.path.insert(0, str(Path(arguments[0]).parent))
        runpy.run_path(arguments[0], run_name="__main__")
