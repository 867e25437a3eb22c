"""One clear message for a mistake that the user can correct."""

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

DEBUG_VARIABLE = "LOGN_D2_DEBUG"
"""Environment variable; when set, errors come with their traceback."""

# Packages that check the config with exceptions of their own.
_CHECKING = {"detectron2", "fvcore", "yacs"}


@contextmanager
def short_errors(log_file: str | None = None) -> Iterator[None]:
    """Turn the exception for a user's mistake into one message and exit status 1.

    Around `launch` it does the same when a process fails. That process has already printed the
    reason, unless a signal ended it.

    Args:
        log_file (str): file to append the traceback to; None writes it nowhere.

    Raises:
        SystemExit: in place of a UserError, an OSError (a full disk, a folder that can't be
            written), a ValueError or KeyError from Detectron2's, fvcore's or yacs's checks of a
            config, and a ProcessExitedException. All other exceptions are bugs, and pass through.
    """
    try:
        yield
    except (ValueError, KeyError, OSError) as error:
        if os.environ.get(DEBUG_VARIABLE) or not _is_of_the_user(error):
            raise
        where = _write_traceback(log_file)
        if not comm.is_main_process():
            # All processes meet the same mistake. The wait leaves the message to the first one:
            # when it ends, `launch` ends the others.
            time.sleep(20)
        # The text of a plain KeyError is the repr of its argument.
        plain = type(error) is KeyError and error.args
        text = error.args[0] if plain else error
        print(f"error: {text}\n({type(error).__name__}; {where})", file=sys.stderr, flush=True)
        raise SystemExit(1) from None
    except ProcessExitedException as error:
        if error.exit_code != 1:  # with 1 the process has printed its reason here
            print(f"error: {error}{_memory_hint(error)}", file=sys.stderr, flush=True)
        raise SystemExit(1) from None


def _is_of_the_user(error: BaseException) -> bool:
    # A missing folder or a full disk is no bug, wherever it is met.
    if isinstance(error, UserError | OSError):
        return True
    # The innermost frame: a ValueError raised by torch below Detectron2 is a bug, not a mistake.
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    return bool(frames) and frames[-1].f_globals.get("__name__", "").split(".")[0] in _CHECKING


def _memory_hint(error: ProcessExitedException) -> str:
    if error.signal_name != "SIGKILL":
        return ""
    return ". Systems do this when memory runs out: use fewer processes or a smaller batch."


def _write_traceback(log_file: str | None) -> str:
    """Append the current traceback to the log; return where to find it."""
    hint = f"set {DEBUG_VARIABLE}=1 for the traceback"
    if log_file is None:
        return hint
    try:
        with open(log_file, "a", encoding="utf-8") as file:
            file.write(traceback.format_exc())
    except OSError:
        return hint
    return f"traceback in {log_file}"
