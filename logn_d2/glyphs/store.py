"""The folder of a drawn set: files written completely or not at all, and their checksums.

<root>/lt_glyphs/<size>/::

  settings.json                             size, seed and version, which determine all other files
  train/000000000001.jpg ...  val/...       images
  annotations/lt_glyphs_<size>_train.json   LVIS v1 format; _val.json likewise
  SHA256SUMS                                written last; ``sha256sum -c SHA256SUMS`` checks it
  .parts/                                   during drawing: annotations of finished images
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..errors import MissingFileError
from ..files import atomic_write

CHECKSUM_FILE = "SHA256SUMS"
SETTINGS_FILE = "settings.json"
PARTS_FOLDER = ".parts"


def annotation_file(folder: Path, size_name: str, split: str) -> Path:
    """Path of the annotations of a split."""
    return Path(folder) / "annotations" / f"lt_glyphs_{size_name}_{split}.json"


def write_file(path: Path, content: bytes) -> str:
    """Write a file under a temporary name, then rename it.

    Args:
        path (Path): final name; missing folders are created.
        content (bytes): the complete content.

    Returns:
        str: SHA-256 of the content, hexadecimal.

    Raises:
        OSError: the write failed; no file is left under the final or temporary name.
    """
    try:
        with atomic_write(path, sync=False) as temporary:
            temporary.write_bytes(content)
    except OSError as error:
        # Of the same kind: callers still tell a full disk from a folder that is not writable.
        raise type(error)(
            error.errno,
            f"can't write {path} ({error.strerror}). Free space or choose a writable folder; the "
            "same command then resumes where it stopped",
        ) from error
    return hashlib.sha256(content).hexdigest()


def write_json(path: Path, content: Any) -> str:
    """Write compact JSON like :func:`write_file`; return its SHA-256."""
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":")) + "\n"
    return write_file(path, text.encode("utf-8"))


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def write_checksums(folder: Path, checksums: dict[str, str]) -> None:
    """Write ``SHA256SUMS`` from {relative path: digest}."""
    lines = [f"{digest}  {name}\n" for name, digest in sorted(checksums.items())]
    write_file(folder / CHECKSUM_FILE, "".join(lines).encode("utf-8"))


def read_checksums(folder: Path) -> dict[str, str]:
    """{relative path: digest} of a finished set.

    Raises:
        FileNotFoundError: the set is unfinished.
    """
    path = Path(folder) / CHECKSUM_FILE
    if not path.is_file():
        raise MissingFileError(
            f"{path} is missing: the set was not drawn, or is unfinished. Draw it with `logn data "
            "draw`, which resumes an interrupted drawing."
        )
    pairs = (line.split("  ", 1) for line in path.read_text(encoding="utf-8").splitlines())
    return {name: digest for digest, name in pairs}


@contextlib.contextmanager
def folder_lock(folder: Path) -> Iterator[None]:
    """Let one process at a time draw into a folder; others wait.

    The lock is released when the process ends, even if it is killed. Without ``flock`` on the
    system, nothing is locked.
    """
    try:
        import fcntl
    except ImportError:
        yield
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = open(folder / ".lock", "w")
    except OSError as error:
        raise type(error)(
            error.errno,
            f"can't write into {folder} ({error.strerror}); choose a writable folder",
        ) from error
    with handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
