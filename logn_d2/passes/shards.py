"""Shards of a pass on disk, from which an interrupted pass resumes.

Each process writes *shards*, files with the results of some batches. A shard is complete or does
not exist. Its name states its pass, process and batches:

    {prefix}{digest}-{process}of{processes}-{first batch}-{end}{suffix}

A pass with other weights, images or settings has another digest, so that two passes never mix. If
the shards are a result to keep, a manifest (JSON) lists them as soon as all processes have
finished.
"""

from __future__ import annotations

import functools
import json
import logging
import os
import re
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.utils import comm

from ..errors import MissingFileError, UserError
from ..files import atomic_write, write_json

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ShardKind:
    """The kind of a pass, for file names and messages.

    Attributes:
        what (str): name of the pass in messages, for example "sweep" or "evaluation".
        suffix (str): suffix of the files.
        read (Callable): function from a path to named content; raises a UserError for a damaged
            file.
        manifest (str): file name of the manifest; "" if shards are removed once the result exists.
        format (str): name of the manifest's format.
        version (int): version of that format.
        command (str): the command that makes such a folder.
        others (tuple[str, ...]): further files that a complete folder has.
    """

    what: str
    suffix: str
    read: Callable[[Path], Mapping[str, Any]]
    manifest: str = ""
    format: str = ""
    version: int = 1
    command: str = ""
    others: tuple[str, ...] = ()


class ShardFolder:
    """This process's shards of one pass.

    Shards of other passes stay until this pass writes its first shard.

    Args:
        folder (PathLike): the folder, created when needed.
        kind (ShardKind): the kind of the pass.
        digest (str): a hash of everything that determines the result.
        resume (bool): keep the shards of an interrupted pass with this digest and as many
            processes; False removes them.
        end (int): keep only shards that end at or before this number of batches; None keeps all.
        header (Mapping): further content of the manifest, JSON-serialisable.
        prefix (str): prefix of the files' names.

    Attributes:
        paths (list[Path]): shards of this process, in order.
        num_batches (int): number of batches in them; a resumed pass skips these.

    Raises:
        ValueError: a shard to resume from is damaged; the message names it.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        kind: ShardKind,
        digest: str,
        *,
        resume: bool = False,
        end: int | None = None,
        header: Mapping[str, Any] | None = None,
        prefix: str = "",
    ) -> None:
        self.folder = Path(folder)
        self.paths: list[Path] = []
        self.num_batches = 0
        self._kind = kind
        self._digest = digest
        self._header = header or {}
        self._world = f"of{comm.get_world_size()}"
        self._stem = f"{prefix}{digest}-{comm.get_rank()}{self._world}"
        self._pattern = re.compile(
            rf"\.?(?P<stem>{re.escape(prefix)}(?P<digest>\w+)-\d+(?P<world>of\d+))"
            # Also matches temporary files of a killed process, which nobody else would remove, and
            # the merely numbered files of early versions.
            rf"(-(?P<first>\d+))?(-(?P<end>\d+))?{re.escape(kind.suffix)}(?P<temporary>\..*\.tmp)?"
        )
        self._alone = False  # whether other passes' shards have been removed
        if kind.manifest:
            # Unfinished from the start: a result that is being replaced must not pass for whole in
            # between.
            self._write_manifest(None)
        self._find_own(resume, end)
        if resume and not self.paths:
            self._tell_what_there_is()

    def write(self, batches: int, save: Callable[[Path], None], *, replace: bool = False) -> None:
        """Write the shard of the next batches.

        Args:
            batches (int): number of batches, at least 1.
            save (Callable): writes a file to a path, completely or not at all.
            replace (bool): the file also has all earlier batches, and their shards are removed.
        """
        assert batches > 0
        # Only now, when there is something new: a command with a typing error must not cost an
        # earlier pass.
        self._remove_others()
        earlier = self.paths if replace else []
        end = self.num_batches + batches
        path = self._path(0 if replace else self.num_batches, end)
        # Earlier shards are removed after the new one exists, so that a kill in between loses
        # nothing.
        save(path)
        for each in earlier:
            each.unlink(missing_ok=True)
        self.paths = [path] if replace else [*self.paths, path]
        self.num_batches = end

    def finish(self) -> None:
        """List the shards of all processes in the manifest, once all have finished."""
        self._remove_others()
        # Not from a listing of the folder, which may lack a new file on a network file system.
        parts = comm.gather([path.name for path in self.paths])
        self._write_manifest([name for part in parts for name in part])

    def clear(self) -> None:
        """Remove all shards, also those of other processes and passes."""
        for path, _ in self._named():
            path.unlink(missing_ok=True)

    def _named(self) -> list[tuple[Path, re.Match[str]]]:
        """All files with the name of a shard, also unfinished ones."""
        # Not by glob: brackets in a name would be read as a pattern.
        paths = sorted(self.folder.iterdir()) if self.folder.is_dir() else []
        matches = ((path, self._pattern.fullmatch(path.name)) for path in paths)
        return [(path, name) for path, name in matches if name is not None]

    def _path(self, first: int, end: int) -> Path:
        return self.folder / f"{self._stem}-{first:07d}-{end:07d}{self._kind.suffix}"

    def _find_own(self, resume: bool, limit: int | None) -> None:
        """Find this process's shards from the first batch on, and remove those after a gap."""
        if resume:
            self._rename_earlier_versions()
        own = [(path, name) for path, name in self._named() if name["stem"] == self._stem]
        following: dict[int, tuple[int, Path]] = {}
        for path, name in own:
            if resume and name["end"] and not name["temporary"]:
                first, end = int(name["first"]), int(name["end"])
                if limit is None or end <= limit:
                    # A process that was killed while it replaced a shard leaves both; the longer
                    # one counts.
                    following[first] = max((end, path), following.get(first, (0, path)))
        # A chain from batch 0: what lies behind a gap can't be used, since a loader can skip only a
        # beginning.
        while self.num_batches in following:
            self.num_batches, path = following.pop(self.num_batches)
            # Read once to find damage before hours of work depend on it.
            self._kind.read(path)
            self.paths.append(path)
        for path, _ in own:
            if path not in self.paths:
                path.unlink(missing_ok=True)
        if self.num_batches:
            logger.info("Resuming the %s after %d batches", self._kind.what, self.num_batches)

    def _rename_earlier_versions(self) -> None:
        """Rename shards of earlier versions, which were merely numbered."""
        first = 0
        for path, name in self._named():
            if name["stem"] == self._stem and not name["end"] and not name["temporary"]:
                end = first + int(self._kind.read(path)["batches"])
                path.rename(self._path(first, end))
                first = end

    def _others(self) -> list[Path]:
        """Shards with other digests or numbers of processes."""
        mine = (self._digest, self._world)
        return [path for path, name in self._named() if (name["digest"], name["world"]) != mine]

    def _tell_what_there_is(self) -> None:
        others = self._others()
        if not others:
            logger.info("There is no %s to resume in %s", self._kind.what, self.folder)
            return
        logger.warning(
            "The %s starts from the beginning: %s belongs to other weights, images, settings or "
            "calibrations, or to another number of processes, and the first new file replaces it. "
            "To resume it instead, end this command and repeat the earlier one.",
            *(self._kind.what, others[0]),
        )

    def _remove_others(self) -> None:
        # Files of other numbers of processes belong to no rank of this pass, so one process removes
        # them all.
        if not self._alone and comm.is_main_process():
            for path in self._others():
                path.unlink(missing_ok=True)
        self._alone = True

    def _write_manifest(self, shards: list[str] | None) -> None:
        """Write the manifest; None marks a folder whose pass has not finished."""
        kind = self._kind
        content = {"format": kind.format, "version": kind.version, **self._header}
        content |= {"digest": self._digest, "shards": shards}
        if comm.is_main_process():
            write_json(self.folder / kind.manifest, content)
        # No process may read or write shards before the manifest says what the folder is.
        comm.synchronize()


def read_manifest(folder: str | os.PathLike[str], kind: ShardKind) -> dict[str, Any]:
    """The content of a folder's manifest; empty if it has none, or one of another program."""
    try:
        content = json.loads(Path(folder, kind.manifest).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, json.JSONDecodeError, UnicodeDecodeError):
        return {}
    ours = isinstance(content, dict) and content.get("format") == kind.format
    return content if ours else {}


def _is_finished(manifest: Mapping[str, Any]) -> bool:
    # Early versions had a flag instead of the list.
    return manifest.get("finished", manifest.get("shards") is not None)


def find_shards(
    folder: str | os.PathLike[str], kind: ShardKind
) -> tuple[dict[str, Any], list[Path], bool]:
    """Find the files of a pass in a folder.

    Returns:
        tuple: the manifest, the shards of all processes, and whether the pass has finished.

    Raises:
        FileNotFoundError: the folder has no manifest.
        ValueError: the manifest is damaged or has a newer format, or files of a finished pass are
            missing.
    """
    folder = Path(folder)
    manifest = read_manifest(folder, kind)
    if not manifest:
        raise MissingFileError(
            f"There is no {kind.what} in '{folder}' (no {kind.manifest} of logn_d2). Make one "
            f"with: {kind.command} {folder}"
        )
    version, digest = manifest.get("version"), manifest.get("digest")
    if not isinstance(version, int) or not isinstance(digest, str):
        raise UserError(f"'{folder / kind.manifest}' is damaged: it has no version or no digest.")
    if version > kind.version:
        raise UserError(
            f"The {kind.what} in '{folder}' has format version {version}, this logn_d2 reads up to "
            f"{kind.version}. Update logn_d2."
        )
    finished = _is_finished(manifest)
    names = manifest.get("shards", manifest.get("chunks"))
    if not finished or names is None:  # earlier versions had no list
        return manifest, sorted(folder.glob(f"{digest}-*{kind.suffix}")), finished
    # Only the names: the folder may have been copied, and a manifest must not point outside of it.
    files = [folder / Path(name).name for name in names]
    expected = [*files, *(folder / name for name in kind.others)]
    missing = [path.name for path in expected if not path.is_file()]
    if missing:
        raise UserError(
            f"{len(missing)} of {len(expected)} files of the {kind.what} in '{folder}' are "
            f"missing, the first is {missing[0]}. Copy the whole folder, or make it again."
        )
    return manifest, files, finished


def refuse_others(folder: str | os.PathLike[str] | None, kind: ShardKind, digest: str) -> None:
    """Refuse a folder that has the finished result of another pass.

    Args:
        folder (PathLike): the output folder of a new pass; None is always free.
        kind (ShardKind): the kind of the new pass.
        digest (str): the digest of the new pass.

    Raises:
        ValueError: a result would be lost, and the message names it; on every process.
    """
    manifest = read_manifest(folder, kind) if folder is not None else {}
    if _is_finished(manifest) and manifest["digest"] != digest:
        # The notes of its maker, or else the calibrations, tell the user which result it is.
        held = manifest.get("info") or ", ".join(manifest.get("names", ()))
        raise UserError(
            f"'{folder}' contains a finished {kind.what} of other weights, images, calibrations or "
            f"settings ({held}). Choose another folder, or replace it with --overwrite."
        )


def damaged(path: Path, what: str, error: object) -> UserError:
    """The error for a shard that can't be read."""
    return UserError(
        f"'{path}' is not a complete file of the {what} ({error}). Copy it again, or delete it and "
        "repeat the command with --resume."
    )


# Whatever numpy and zipfile raise for a file that was cut off or changed.
_DAMAGE = (ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error)


class _NpzFile(Mapping[str, np.ndarray]):
    """The arrays of an npz file, each read at its first use."""

    def __init__(self, path: Path, what: str) -> None:
        self._error = functools.partial(damaged, path, what)
        try:
            self._file = np.load(path, allow_pickle=False)
        except _DAMAGE as error:
            raise self._error(error) from error

    def __iter__(self) -> Iterator[str]:
        return iter(self._file.files)

    def __len__(self) -> int:
        return len(self._file.files)

    def __getitem__(self, name: str) -> np.ndarray:
        # np.load's own KeyError would be caught below and called damage.
        if name not in self._file.files:
            raise KeyError(name)
        try:
            return self._file[name]
        except _DAMAGE as error:
            raise self._error(error) from error


def read_npz(path: Path, what: str = "pass") -> Mapping[str, np.ndarray]:
    """The arrays of a file of `write_npz`, each read at its first use.

    Raises:
        ValueError: the file is missing, truncated or changed; the message names it.
    """
    return _NpzFile(path, what)


def write_npz(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write named arrays without pickle, completely or not at all."""
    with atomic_write(path) as temporary, open(temporary, "wb") as file:
        # Into an open file, because numpy appends .npz to a name, also to a temporary one.
        np.savez(file, **arrays)
