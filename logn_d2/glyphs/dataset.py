"""Draw a whole LT-Glyphs set: plan, draw in parallel, resume, assemble, verify, register."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..frequency import count_classes
from .lvis_form import lvis_json
from .plan import SPLITS
from .shards import draw_shards, make_shards
from .sizes import GlyphSize, get_size
from .store import (
    CHECKSUM_FILE,
    PARTS_FOLDER,
    SETTINGS_FILE,
    annotation_file,
    folder_lock,
    read_checksums,
    sha256_of,
    write_checksums,
    write_json,
)

# Increased whenever the same size and seed would give other images than before.
DRAWING_VERSION = 1


def glyphs_folder(root: str | os.PathLike, size_name: str) -> Path:
    """The folder of a size below a datasets root."""
    return Path(root) / "lt_glyphs" / size_name


def _settings(size: GlyphSize, seed: int) -> dict[str, Any]:
    fields = dataclasses.asdict(size)
    if size.names_per_character == 1:
        del fields["names_per_character"]  # sets drawn before this field existed are the same
    settings = {"version": DRAWING_VERSION, "seed": seed, "size": fields}
    return json.loads(json.dumps(settings))  # tuples become lists, as read from a file


def draw_glyphs(
    root: str | os.PathLike,
    size: str | GlyphSize = "demo",
    seed: int = 0,
    num_workers: int | None = None,
    overwrite: bool = False,
) -> Path:
    """Draw LT-Glyphs below a datasets root, or verify and re-use an existing set.

    The images depend only on size and seed, not on the number of processes. An interrupted drawing
    resumes where it stopped.

    Args:
        root (path): datasets root; the set lies in ``root/lt_glyphs/<size>``.
        size (str or GlyphSize): a name in ``SIZES``, or a size of your own.
        seed (int): >= 0.
        num_workers (int or None): processes; None uses all processors. 1 starts none.
        overwrite (bool): replace a set drawn with another seed or other settings.

    Returns:
        Path: the folder of the set.

    Raises:
        ValueError: the folder contains a set with another seed or other settings, or the files of a
            finished set have changed.
        OSError: the disk is full or the folder is not writable.

    Example:
        >>> folder = draw_glyphs("datasets", size="tiny")  # doctest: +SKIP
    """
    size = get_size(size)
    if seed < 0:
        raise UserError(f"seed={seed}: expected a number >= 0.")
    folder = glyphs_folder(root, size.name)
    settings = _settings(size, seed)
    if _is_finished(folder, settings) and not overwrite:
        # At each call, since a changed image would show only as an unexplained difference in AP.
        problems = verify_glyphs(folder)
        if problems:
            raise UserError(
                f"{folder} has changed since it was drawn: {'; '.join(problems[:3])}"
                f"{' ...' if len(problems) > 3 else ''}. Draw it again with overwrite=True."
            )
        return folder
    with folder_lock(folder):
        _prepare_folder(folder, settings, overwrite)
        if not _is_finished(folder, settings):  # unless another process has just drawn it
            _draw_set(folder, size, settings, num_workers or os.cpu_count() or 1)
    return folder


def _read_settings(folder: Path) -> dict[str, Any] | None:
    try:
        return json.loads((folder / SETTINGS_FILE).read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):
        return None  # a damaged file is written again, as if there were none


def _is_finished(folder: Path, settings: dict[str, Any]) -> bool:
    return (folder / CHECKSUM_FILE).is_file() and _read_settings(folder) == settings


def _prepare_folder(folder: Path, settings: dict[str, Any], overwrite: bool) -> None:
    """Prepare the folder for drawing; refuse to mix two sets in it."""
    found = _read_settings(folder)
    if found is not None and found != settings and not overwrite:
        raise UserError(
            f"{folder} holds LT-Glyphs with other settings ({_difference(found, settings)}). "
            "Choose another root, or replace it with overwrite=True (--overwrite)."
        )
    if found is not None and overwrite:
        for name in (CHECKSUM_FILE, SETTINGS_FILE):  # first the files that mark the set as present
            (folder / name).unlink(missing_ok=True)
        for name in (PARTS_FOLDER, "annotations", *SPLITS):
            shutil.rmtree(folder / name, ignore_errors=True)
    write_json(folder / SETTINGS_FILE, settings)


def _difference(found: dict[str, Any], asked: dict[str, Any]) -> str:
    """The first differing settings of two sets, for an error message."""
    # Flat, so that the message names the field of the size that differs, not the whole size.
    flat = [{**s, **s.get("size", {}), "size": None} for s in (found, asked)]
    keys = [k for k in {**flat[0], **flat[1]} if flat[0].get(k) != flat[1].get(k)]
    parts = [f"{k}={flat[0].get(k)}, asked for {k}={flat[1].get(k)}" for k in keys[:3]]
    return "; ".join(parts) + (f"; {len(keys) - 3} more" if len(keys) > 3 else "")


def _draw_set(folder: Path, size: GlyphSize, settings: Mapping[str, Any], num_workers: int) -> None:
    """Draw missing images, then write annotations and, last of all, checksums."""
    shards = make_shards(folder, size, settings["seed"])
    draw_shards(shards, num_workers)
    images: dict[str, list[dict[str, Any]]] = {split: [] for split in SPLITS}
    checksums = {}
    for shard in shards:
        part = shard.read_part()
        images[shard.split] += part["images"]
        checksums.update(part["checksums"])
    classes = ([each["class"] for each in image["annotations"]] for image in images["train"])
    counts = count_classes(classes, size.num_classes)
    for split in SPLITS:
        path = annotation_file(folder, size.name, split)
        content = lvis_json(images[split], shards[0].characters, counts, size, split, settings)
        checksums[path.relative_to(folder).as_posix()] = write_json(path, content)
    checksums[SETTINGS_FILE] = sha256_of(folder / SETTINGS_FILE)
    write_checksums(folder, checksums)
    shutil.rmtree(folder / PARTS_FOLDER, ignore_errors=True)
    for leftover in folder.glob("**/.*.tmp"):  # from a killed process
        leftover.unlink(missing_ok=True)


def verify_glyphs(folder: str | os.PathLike) -> list[str]:
    """Compare a finished set with its checksums.

    Args:
        folder (path): the result of :func:`draw_glyphs`.

    Returns:
        list[str]: one line for each missing or changed file; empty if there is none.

    Raises:
        FileNotFoundError: the set is unfinished.

    Example:
        >>> verify_glyphs("datasets/lt_glyphs/tiny")  # doctest: +SKIP
        []
    """
    folder = Path(folder)
    problems = []
    for name, digest in read_checksums(folder).items():
        path = folder / name
        if not path.is_file():
            problems.append(f"{name} is missing")
        elif sha256_of(path) != digest:
            problems.append(f"{name} has changed")
    return problems
