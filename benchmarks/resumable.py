"""Shared by benchmarks that train: they can be resumed, and write a Markdown file."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from logn_d2.commands import INTERRUPTED
from logn_d2.engine import short_errors
from logn_d2.files import atomic_write

__all__ = ["run_to_exit_status", "write_markdown"]


def run_to_exit_status(work: Callable[[], Any]) -> int:
    """Run the work; a mistake ends the program with one sentence, Ctrl-C returns 130."""
    try:
        with short_errors():
            work()
    except KeyboardInterrupt:
        print("\nInterrupted; repeat the command to resume.", file=sys.stderr)
        return INTERRUPTED
    return 0


def write_markdown(path: Path, parts: Sequence[str]) -> str:
    """Write titles, paragraphs and tables, completely or not at all, and return the text."""
    text = "\n\n".join(parts) + "\n"
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return text
