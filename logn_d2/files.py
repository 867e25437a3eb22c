"""Files that are complete or absent, and their names."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
from collections.abc import Iterator
from pathlib import Path

__all__ = ["as_file_name", "atomic_write"]


def as_file_name(text: str) -> str:
    """A calibration's text as a file name, with "_" for special characters.

    Example:
        >>> as_file_name("lws(checkpoint='output/lws.pth')")
        'lws(checkpoint=_output_lws.pth_)'
    """
    return re.sub(r"[^\w.=,()+-]", "_", text)


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Context manager that yields a temporary path and renames it to ``path`` on success.

    Missing parent folders are created. After an exception (a full disk, Ctrl-C) an existing file at
    ``path`` is intact, and the temporary file is removed.

    Args:
        path (str or PathLike): the file.

    Raises:
        OSError: the folder is not writable, or the disk is full.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with atomic_write(Path(folder, "numbers.txt")) as temporary:
        ...         _ = temporary.write_text("1 2 3")
        ...     Path(folder, "numbers.txt").read_text()
        '1 2 3'
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # In the same folder: a rename is atomic only within one file system. The caller creates the
    # file, not `tempfile`, whose files only their owner can read.
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
