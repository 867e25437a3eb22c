"""Files that are complete or absent, and their names."""

from __future__ import annotations

import contextlib
import functools
import json
import math
import os
import re
import secrets
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

IMAGE_SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")


def images_in(path: str | os.PathLike[str], pattern: str = "*") -> list[Path]:
    """The image files in a folder, by suffix, or a file itself; "**/*" also finds those below."""
    if not os.path.isdir(path):
        return [Path(path)]
    # Sorted, or the order of the file system would decide which images a subset takes.
    found = (each for each in Path(path).glob(pattern) if each.suffix.lower() in IMAGE_SUFFIXES)
    return sorted(found, key=str)


def as_file_name(text: str) -> str:
    """A calibration's text as a file name, with "_" for special characters.

    Example:
        >>> as_file_name("lws(checkpoint='output/lws.pth')")
        'lws(checkpoint=_output_lws.pth_)'
    """
    return re.sub(r"[^\w.=,()+-]", "_", text)


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike[str], *, sync: bool = True) -> Iterator[Path]:
    """Context manager that yields a temporary path and renames it to ``path`` on success.

    Missing parent folders are created. After an exception (a full disk, Ctrl-C) an existing file at
    ``path`` is intact, and the temporary file is removed.

    Args:
        path (str or PathLike): the file.
        sync (bool): False for many files that can be made again: a power failure may empty them.

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
        if sync:
            with open(temporary, "rb+") as file:
                os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write a text file in UTF-8, whole or not at all."""
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | os.PathLike[str], content: Any, *, indent: int | None = 1) -> None:
    """Write a json file, whole or not at all; NaN becomes null, arrays and tuples become lists."""
    dump = functools.partial(json.dumps, ensure_ascii=False, allow_nan=False, indent=indent)
    try:
        text = dump(content)
    except (TypeError, ValueError):  # only then: a copy of LVIS's annotations takes a minute
        text = dump(plain(content))
    write_text(path, text + "\n")


def plain(value: Any) -> Any:
    """The value as JSON has it: lists for arrays and tuples, None for NaN, keys as texts."""
    if isinstance(value, Mapping):
        return {str(key): plain(entry) for key, entry in value.items()}
    if hasattr(value, "tolist"):  # arrays and numbers of numpy
        value = value.tolist()
    if isinstance(value, list | tuple):
        return [plain(entry) for entry in value]
    return None if isinstance(value, float) and math.isnan(value) else value
