"""The predictions of a sweep: each detection stored once, however many calibrations have it.

A *chunk* holds some images: the union of all calibrations' detections with their boxes and masks,
and for each calibration the positions of its own detections in the union, with their scores. On
disk a chunk is an npz file without pickle. A folder with ``sweep.json``, which names the
calibrations, and the chunk files is a finished or interrupted sweep.

Shapes: U detections in the union of a chunk, D detections of one calibration.
"""

from __future__ import annotations

import json
import logging
import os
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.utils import comm

from ..errors import MissingFileError, UnknownNameError, UserError
from ..files import atomic_write
from ..lvis.detections import Detections, image_id_array

__all__ = ["ImagePredictions", "SweepPredictions", "SweepWriter"]

logger = logging.getLogger(__name__)

_MANIFEST = "sweep.json"
_FORMAT = "logn_d2 sweep"
_VERSION = 1

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class ImagePredictions:
    """All calibrations' detections in some images.

    Attributes:
        image_ids (tuple[int or str, ...]): the images, with those in which nothing was found.
        union (Detections): U different detections; their scores mean nothing.
        index (tuple[ndarray, ...]): for each calibration, (D,) int32 positions in the union.
        score (tuple[ndarray, ...]): for each calibration, (D,) float32.
        missing (ndarray): (U,) bool, detections that have an empty mask because theirs is not
            known; None where all are known.
    """

    image_ids: tuple[int | str, ...]
    union: Detections
    index: tuple[np.ndarray, ...]
    score: tuple[np.ndarray, ...]
    missing: np.ndarray | None = None

    @classmethod
    def concatenate(cls, parts: Sequence[ImagePredictions]) -> ImagePredictions:
        """Joins parts of one sweep (at least one), in their order."""
        starts = np.cumsum([0, *(len(part.union) for part in parts[:-1])])
        calibrations = range(len(parts[0].index))
        return cls(
            image_ids=tuple(image_id for part in parts for image_id in part.image_ids),
            union=Detections.concatenate([part.union for part in parts]),
            index=tuple(
                np.concatenate([p.index[c] + s for p, s in zip(parts, starts, strict=True)])
                for c in calibrations
            ),
            score=tuple(np.concatenate([p.score[c] for p in parts]) for c in calibrations),
            missing=_joined([part.missing for part in parts]),
        )

    def to_arrays(self) -> Arrays:
        """Everything, as named arrays."""
        arrays = {f"union_{name}": array for name, array in self.union.to_arrays().items()}
        arrays["image_ids"] = image_id_array(self.image_ids)
        for number, (index, score) in enumerate(zip(self.index, self.score, strict=True)):
            arrays[f"index{number}"] = index.astype(np.int32)
            arrays[f"score{number}"] = score.astype(np.float32)
        if self.missing is not None:
            arrays["missing"] = self.missing
        return arrays


def _joined(parts: Sequence[np.ndarray | None]) -> np.ndarray | None:
    """All parts of one sweep, which are all None or all arrays."""
    return None if parts[0] is None else np.concatenate(parts)


class SweepPredictions:
    """The detections of every calibration of a sweep.

    Args:
        names (Sequence[str]): of the calibrations.
        chunks (Sequence): chunk files, or chunks as arrays.
        finished (bool): whether all images are there.
    """

    def __init__(
        self, names: Sequence[str], chunks: Sequence[Path | Arrays], finished: bool = True
    ) -> None:
        self.names = tuple(names)
        self.finished = finished
        self._chunks = list(chunks)

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> SweepPredictions:
        """Reads what a sweep has written to its ``output_dir``; no network is needed.

        Raises:
            FileNotFoundError: there is no sweep.
            ValueError: the folder's sweep is of a newer format.
        """
        folder = Path(folder)
        manifest = _read_manifest(folder)
        if manifest is None:
            raise MissingFileError(
                f"There is no sweep in '{folder}'. Make one with: logn sweep "
                f"--config-file CONFIG --weights WEIGHTS --output {folder}"
            )
        if manifest["version"] > _VERSION:
            raise UserError(
                f"The sweep in '{folder}' has format version {manifest['version']}, this logn_d2 "
                f"reads up to {_VERSION}. Update logn_d2."
            )
        if not manifest["finished"]:
            logger.warning(
                "The sweep in %s was interrupted: some images are missing. Repeat its command with "
                "--resume to finish it.",
                folder,
            )
        files = sorted(folder.glob(f"{manifest['digest']}-*.npz"))
        # Sweeps of earlier versions, and unfinished ones, have no list.
        if manifest["finished"] and manifest.get("chunks") is not None:
            files = [folder / Path(name).name for name in manifest["chunks"]]
            missing = [path.name for path in files if not path.is_file()]
            if missing:
                raise UserError(
                    f"{len(missing)} of {len(files)} files of the sweep in '{folder}' are missing, "
                    f"the first is {missing[0]}. Copy the whole folder, or repeat the sweep "
                    "without --resume."
                )
        return cls(manifest["names"], files, manifest["finished"])

    @property
    def image_ids(self) -> np.ndarray:
        """(N,) int64 or strings, the images of the sweep, ascending."""
        ids = [chunk["image_ids"] for chunk in self._open_chunks()]
        return np.unique(np.concatenate(ids)) if ids else np.zeros(0, dtype=np.int64)

    @property
    def num_union(self) -> int:
        """Different detections over all calibrations: what the mask head was run for."""
        return sum(len(chunk["union_image_id"]) for chunk in self._open_chunks())

    @property
    def has_masks(self) -> bool:
        """Whether there are masks; not where nothing was found."""
        return any("union_mask_counts" in chunk for chunk in self._open_chunks())

    def detections(self, name: str) -> Detections:
        """The detections of one calibration, in all images.

        Raises:
            KeyError: no calibration has that name; the message lists those that there are.
        """
        number = self._number(name)
        return Detections.concatenate(
            [_detections_of(chunk, number) for chunk in self._open_chunks()]
        )

    def missing_masks(self, name: str) -> int:
        """How many of a calibration's detections have an empty mask because theirs is not known.

        None in a sweep with the network; see `sweep_stored` for the other kind.

        Raises:
            KeyError: no calibration has that name.
        """
        number = self._number(name)
        return sum(
            int(chunk["missing"][chunk[f"index{number}"]].sum())
            for chunk in self._open_chunks()
            if "missing" in chunk
        )

    def _number(self, name: str) -> int:
        if name not in self.names:
            known = ", ".join(self.names)
            raise UnknownNameError(
                f"There is no calibration '{name}' in this sweep. It has: {known}."
            )
        return self.names.index(name)

    def _open_chunks(self) -> Iterator[Mapping[str, np.ndarray]]:
        for chunk in self._chunks:
            if isinstance(chunk, Path):
                yield _read_chunk(chunk)
            else:
                yield chunk


def keep_others(folder: str | os.PathLike[str] | None, digest: str) -> None:
    """Refuses a folder that holds a finished sweep of something else.

    Args:
        folder (PathLike): where a sweep is to be written; None is always free.
        digest (str): of everything that decides the result of the new one.

    Raises:
        ValueError: what would be lost; on every process.
    """
    manifest = (_read_manifest(Path(folder)) or {}) if folder is not None else {}
    if manifest.get("finished") and manifest["digest"] != digest:
        raise UserError(
            f"'{folder}' holds a finished sweep of other weights, images, calibrations or settings "
            f"({', '.join(manifest['names'])}). Choose another folder, or replace it with "
            "--overwrite."
        )


class SweepWriter:
    """Keeps one process's part of a sweep: in memory, or in chunk files from which it resumes.

    Args:
        names (Sequence[str]): of the calibrations.
        folder (PathLike): where chunk files go; None keeps everything in memory.
        digest (str): of everything that decides the result; part of the files' names.
        chunk_size (int): images in a chunk.
        resume (bool): keep what an interrupted sweep with this digest has written.
        before_chunk (Callable): called before each chunk is written.
    """

    def __init__(
        self,
        names: Sequence[str],
        folder: str | os.PathLike[str] | None,
        digest: str,
        *,
        chunk_size: int = 200,
        resume: bool = False,
        before_chunk: Callable[[], None] = lambda: None,
    ) -> None:
        self._names = tuple(names)
        self._before_chunk = before_chunk
        self._folder = None if folder is None else Path(folder)
        self._digest = digest
        self._share = f"{comm.get_rank()}of{comm.get_world_size()}"
        self._chunk_size = max(chunk_size, 1)
        self._pending: list[ImagePredictions] = []
        self._in_memory: list[Arrays] = []
        self._num_chunks = self.num_batches = self._pending_batches = self._pending_images = 0
        if self._folder is not None:
            self._open(self._folder, resume)

    def add(self, batch: ImagePredictions) -> None:
        """Adds one batch of images."""
        self._pending.append(batch)
        self._pending_batches += 1
        self._pending_images += len(batch.image_ids)
        if self._pending_images >= self._chunk_size:
            self.flush()

    def flush(self) -> None:
        """Writes what has been added since the last chunk."""
        if not self._pending:
            return
        self._before_chunk()
        arrays: Arrays = ImagePredictions.concatenate(self._pending).to_arrays()
        if self._folder is None:
            self._in_memory.append(arrays)
        else:
            path = self._chunk_path(self._num_chunks)
            with atomic_write(path) as temporary, open(temporary, "wb") as file:
                np.savez(file, batches=np.int64(self._pending_batches), **arrays)
        self._num_chunks += 1
        self.num_batches += self._pending_batches
        self._pending, self._pending_batches, self._pending_images = [], 0, 0

    def finish(self) -> SweepPredictions:
        """Writes the rest and joins all processes' parts.

        Returns:
            SweepPredictions: of all images. A sweep in memory is whole on process 0 only; the
            others have their own part.
        """
        self.flush()
        if self._folder is None:
            parts = comm.gather(self._in_memory, dst=0)
            mine = [self._in_memory] if not comm.is_main_process() else parts
            return SweepPredictions(self._names, [chunk for part in mine for chunk in part])
        # Each process names its own: on a network file system a listing may lack a new file.
        parts = comm.gather([self._chunk_path(number).name for number in range(self._num_chunks)])
        if comm.is_main_process():
            self._write_manifest(chunks=[name for part in parts for name in part])
        comm.synchronize()
        return SweepPredictions.load(self._folder)

    def _open(self, folder: Path, resume: bool) -> None:
        """Makes the folder ready, and finds what this process has done already."""
        if comm.is_main_process():
            folder.mkdir(parents=True, exist_ok=True)
            self._remove_others(folder, resume)
            self._write_manifest(chunks=None)
        comm.synchronize()
        while (path := self._chunk_path(self._num_chunks)).exists():
            self.num_batches += int(_read_chunk(path)["batches"])
            self._num_chunks += 1
        if self.num_batches:
            logger.info("Resuming after %d batches of this process", self.num_batches)

    def _remove_others(self, folder: Path, resume: bool) -> None:
        """Removes the chunks of a sweep that is not to be gone on with."""
        found = (_read_manifest(folder) or {}).get("digest")
        if resume and found == self._digest:
            return
        if resume and found is not None:
            logger.warning(
                "The sweep starts anew: %s holds one of other calibrations, other weights, other "
                "images or another number of processes. To keep that, choose another folder.",
                folder,
            )
        for digest in {self._digest, found} - {None}:
            for path in folder.glob(f"{digest}-*.npz"):
                path.unlink()

    def _chunk_path(self, number: int) -> Path:
        """Of a chunk of this process."""
        assert self._folder is not None
        return self._folder / f"{self._digest}-{self._share}-{number:05d}.npz"

    def _write_manifest(self, chunks: list[str] | None) -> None:
        """Writes sweep.json; ``chunks`` of all processes once the sweep is finished."""
        content: dict[str, Any] = {
            "format": _FORMAT,
            "version": _VERSION,
            "names": self._names,
            "digest": self._digest,
            "finished": chunks is not None,
        }
        assert self._folder is not None
        if chunks is not None:
            content["chunks"] = chunks
        with atomic_write(self._folder / _MANIFEST) as temporary:
            temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


class _Chunk(Mapping):
    """The arrays of a chunk file, each read when it is asked for."""

    def __init__(self, path: Path, file: Any) -> None:
        self._path, self._file = path, file

    def __iter__(self) -> Iterator[str]:
        return iter(self._file.files)

    def __len__(self) -> int:
        return len(self._file.files)

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self._file.files:
            raise KeyError(name)
        try:
            return self._file[name]
        except _DAMAGE as error:
            raise _damaged(self._path, error) from error


_DAMAGE = (ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error)


def _read_chunk(path: Path) -> Mapping[str, np.ndarray]:
    """The arrays of a chunk file.

    Raises:
        ValueError: the file is missing, cut off or changed; the message names it.
    """
    try:
        return _Chunk(path, np.load(path, allow_pickle=False))
    except _DAMAGE as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> ValueError:
    return ValueError(
        f"'{path}' is not a whole file of a sweep ({error}). Copy it again, or delete it and those "
        "with higher numbers and repeat the sweep's command with --resume."
    )


def _detections_of(chunk: Mapping[str, np.ndarray], number: int) -> Detections:
    """One calibration's detections in a chunk."""
    union = {k.removeprefix("union_"): chunk[k] for k in chunk if k.startswith("union_")}
    own = Detections.from_arrays(union).take(chunk[f"index{number}"])
    return replace(own, score=chunk[f"score{number}"])


def _read_manifest(folder: Path) -> dict[str, Any] | None:
    """The content of sweep.json; None where there is none, or another program's."""
    try:
        content = json.loads((folder / _MANIFEST).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, json.JSONDecodeError):
        return None
    return content if isinstance(content, dict) and content.get("format") == _FORMAT else None
