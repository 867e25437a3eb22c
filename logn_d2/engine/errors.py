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

__all__ = ["DEBUG_VARIABLE", "short_errors"]

DEBUG_VARIABLE = "LOGN_D2_DEBUG"
"""Environment variable; when set, errors come with their traceback."""

USER_ERRORS = (ValueError, KeyError, OSError)


@contextmanager
def short_errors(log_file: str | None = None) -> Iterator[None]:
    """Ends the program with exit code 1 and one message where a user's mistake raises.

    So it does around `launch` when one of its processes ends, which says why where it can: not when
    a signal ends it.

    Args:
        log_file (str): gets the traceback; None writes it nowhere.

    Raises:
        SystemExit: instead of ValueError, KeyError and OSError (FileNotFoundError, a full disk),
            and of a ProcessExitedException.
    """
    try:
        yield
    except USER_ERRORS as error:
        if os.environ.get(DEBUG_VARIABLE):
            raise
        where = _write_traceback(log_file)
        if not comm.is_main_process():
            # All processes meet the same mistake; when the first ends, the others are ended before
            # they can repeat its message.
            time.sleep(20)
        # A KeyError's text is the repr of its argument.
        text = error.args[0] if isinstance(error, KeyError) and error.args else error
        print(f"error: {text}\n({type(error).__name__}; {where})", file=sys.stderr, flush=True)
        raise SystemExit(1) from None
    except ProcessExitedException as error:
        if error.exit_code != 1:  # with 1 the process has come through here and has said why
            print(f"error: {error}{_memory_hint(error)}", file=sys.stderr, flush=True)
        raise SystemExit(1) from None


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
