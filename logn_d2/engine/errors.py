"""One clear message for a mistake that the user can put right."""

from __future__ import annotations

import os
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

from detectron2.utils import comm
from torch.multiprocessing import ProcessExitedException

from ..errors import UserError

__all__ = ["DEBUG_VARIABLE", "short_errors"]

DEBUG_VARIABLE = "LOGN_D2_DEBUG"
"""Environment variable; when set, errors come with their traceback."""

# Packages that check what a config says, and know no UserError.
_CHECKING = {"detectron2", "fvcore", "yacs"}


@contextmanager
def short_errors(log_file: str | None = None) -> Iterator[None]:
    """Ends the program with exit code 1 and one message where a user's mistake raises.

    So it does around `launch` when one of its processes ends, which says why where it can: not when
    a signal ends it.

    Args:
        log_file (str): gets the traceback; None writes it nowhere.

    Raises:
        SystemExit: instead of UserError, of OSError (a full disk, a folder that can't be written),
            of ValueError and KeyError that Detectron2, fvcore or yacs raise where they check a
            config, and of a ProcessExitedException. All else is a mistake of ours, and passes.
    """
    try:
        yield
    except (ValueError, KeyError, OSError) as error:
        if os.environ.get(DEBUG_VARIABLE) or not _is_of_the_user(error):
            raise
        where = _write_traceback(log_file)
        if not comm.is_main_process():
            # All processes meet the same mistake; when the first ends, the others are ended before
            # they can repeat its message.
            time.sleep(20)
        # The text of a plain KeyError is the repr of its argument.
        plain = type(error) is KeyError and error.args
        text = error.args[0] if plain else error
        print(f"error: {text}\n({type(error).__name__}; {where})", file=sys.stderr, flush=True)
        raise SystemExit(1) from None
    except ProcessExitedException as error:
        if error.exit_code != 1:  # with 1 the process has come through here and has said why
            print(f"error: {error}{_memory_hint(error)}", file=sys.stderr, flush=True)
        raise SystemExit(1) from None


def _is_of_the_user(error: BaseException) -> bool:
    if isinstance(error, UserError | OSError):
        return True
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    return bool(frames) and frames[-1].f_globals.get("__name__", "").split(".")[0] in _CHECKING


def _memory_hint(error: ProcessExitedException) -> str:
    if error.signal_name != "SIGKILL":
        return ""
    return ". Systems do that when memory runs out: use fewer processes, or a smaller batch."


def _write_traceback(log_file: str | None) -> str:
    """Appends the current traceback to the log; returns where to find it."""
    hint = f"set {DEBUG_VARIABLE}=1 for the traceback"
    if log_file is None:
        return hint
    try:
        with open(log_file, "a", encoding="utf-8") as file:
            file.write(traceback.format_exc())
    except OSError:
        return hint
    return f"traceback in {log_file}"
