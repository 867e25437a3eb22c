"""The detections of a sweep: each detection is stored once, for any number of calibrations.

A *chunk* contains some images: the union of all calibrations' detections with their boxes and
masks, and for each calibration the positions of its own detections in the union, with their
scores. On disk, a chunk is an npz file without pickle. A folder with ``sweep.json``, which names
the calibrations, and the chunk files is a finished or interrupted sweep.

Shapes: U detections in the union of a chunk, D detections of one calibration.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from detectron2.utils import comm

from ..errors import check_known
from ..lvis.detections import Detections, image_id_array
from ..passes.shards import ShardFolder, ShardKind, find_shards, read_npz, write_npz

logger = logging.getLogger(__name__)

SWEEP = ShardKind(
    "sweep",
    ".npz",
    partial(read_npz, what="sweep"),
    manifest="sweep.json",
    format="logn_d2 sweep",
    command="logn sweep --config-file CONFIG --weights WEIGHTS --output",
)

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class ImageDetections:
    """All calibrations' detections in some images.

    Attributes:
        image_ids (tuple[int or str, ...]): the images, including those without detections.
        union (Detections): U distinct detections; their scores are unused.
        index (tuple[ndarray, ...]): for each calibration, (D,) int32 positions in the union.
        score (tuple[ndarray, ...]): for each calibration, (D,) float32.
        missing (ndarray): (U,) bool, detections whose mask is empty because it is unknown; None if
            all are known.
    """

    image_ids: tuple[int | str, ...]
    union: Detections
    index: tuple[np.ndarray, ...]
    score: tuple[np.ndarray, ...]
    missing: np.ndarray | None = None

    @classmethod
    def concatenate(cls, parts: Sequence[ImageDetections]) -> ImageDetections:
        """Join parts of one sweep (at least one) in order."""
        # Each part numbers its union from 0; the offsets make the numbers those of the joined
        # union.
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
        """The complete content as named arrays."""
        arrays = {f"union_{name}": array for name, array in self.union.to_arrays().items()}
        arrays["image_ids"] = image_id_array(self.image_ids)
        for number, (index, score) in enumerate(zip(self.index, self.score, strict=True)):
            # int32 and float32: positions and scores are the largest arrays of a chunk with many
            # calibrations, and detectors compute scores in float32.
            arrays[f"index{number}"] = index.astype(np.int32)
            arrays[f"score{number}"] = score.astype(np.float32)
        if self.missing is not None:
            arrays["missing"] = self.missing
        return arrays


def _joined(parts: Sequence[np.ndarray | None]) -> np.ndarray | None:
    """Join the parts of one sweep, which are all None or all arrays."""
    return None if parts[0] is None else np.concatenate(parts)


class SweepDetections:
    """The detections of every calibration of a sweep.

    Args:
        names (Sequence[str]): names of the calibrations.
        chunks (Sequence): chunk files, or chunks as arrays.
        finished (bool): whether the sweep covers all images.
    """

    def __init__(
        self, names: Sequence[str], chunks: Sequence[Path | Arrays], finished: bool = True
    ) -> None:
        self.names = tuple(names)
        self.finished = finished
        self._chunks = list(chunks)

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> SweepDetections:
        """Read the ``output_dir`` of a sweep, without a network.

        Raises:
            FileNotFoundError: there is no sweep.
            ValueError: the sweep has a newer format.
        """
        manifest, files, finished = find_shards(folder, SWEEP)
        if not finished:
            logger.warning(
                "The sweep in %s was interrupted: some images are missing. Repeat its command with "
                "--resume to finish it.",
                folder,
            )
        return cls(manifest["names"], files, finished)

    @property
    def image_ids(self) -> np.ndarray:
        """(N,) int64 or strings, the images of the sweep, ascending."""
        ids = [chunk["image_ids"] for chunk in self._open_chunks()]
        # A sampler that pads the last batch gives some images to two processes.
        return np.unique(np.concatenate(ids)) if ids else np.zeros(0, dtype=np.int64)

    @property
    def num_union(self) -> int:
        """Number of distinct detections over all calibrations, for which the mask head was run."""
        return sum(len(chunk["union_image_id"]) for chunk in self._open_chunks())

    @property
    def has_masks(self) -> bool:
        """Whether there are masks; False without detections."""
        return any("union_mask_counts" in chunk for chunk in self._open_chunks())

    def detections(self, name: str) -> Detections:
        """The detections of one calibration in all images.

        Raises:
            KeyError: no calibration has that name; the message lists the existing ones.
        """
        number = self._number(name)
        return Detections.concatenate(
            [_detections_of(chunk, number) for chunk in self._open_chunks()]
        )

    def missing_masks(self, name: str) -> int:
        """Number of a calibration's detections whose mask is empty because it is unknown.

        It is 0 in a sweep with the network; see `sweep_stored` for the other kind.

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
        check_known("calibration", name, self.names, " in this sweep")
        return self.names.index(name)

    def _open_chunks(self) -> Iterator[Mapping[str, np.ndarray]]:
        for chunk in self._chunks:
            if isinstance(chunk, Path):
                yield SWEEP.read(chunk)
            else:
                yield chunk


class SweepWriter:
    """Keeps the part of one process: in memory, or in chunk files from which a sweep resumes.

    Args:
        names (Sequence[str]): names of the calibrations.
        folder (PathLike): folder of the chunk files; None keeps everything in memory.
        digest (str): digest of everything that determines the result.
        chunk_size (int): images per chunk.
        resume (bool): keep the files of an interrupted sweep with this digest.
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
        self._chunk_size = max(chunk_size, 1)
        self._pending: list[ImageDetections] = []
        self._in_memory: list[Arrays] = []
        self._shards: ShardFolder | None = None
        if folder is not None:
            header = {"names": self._names}
            self._shards = ShardFolder(folder, SWEEP, digest, resume=resume, header=header)

    @property
    def num_batches(self) -> int:
        """Number of this process's batches in files, which a resumed sweep skips."""
        return self._shards.num_batches if self._shards is not None else 0

    def add(self, batch: ImageDetections) -> None:
        """Add one batch of images."""
        self._pending.append(batch)
        # Images, not batches: their number bounds the memory and the loss when a sweep is killed.
        if sum(len(each.image_ids) for each in self._pending) >= self._chunk_size:
            self.flush()

    def flush(self) -> None:
        """Write everything added since the last chunk."""
        if not self._pending:
            return
        # Before the chunk exists: a chunk marks its images as done, so whatever belongs to them
        # must be on disk already.
        self._before_chunk()
        arrays: Arrays = ImageDetections.concatenate(self._pending).to_arrays()
        if self._shards is None:
            self._in_memory.append(arrays)
        else:
            self._shards.write(len(self._pending), partial(write_npz, arrays=arrays))
        self._pending = []

    def finish(self) -> SweepDetections:
        """Write the rest and join the parts of all processes.

        Returns:
            SweepDetections: of all images. A sweep in memory is complete only on process 0; the
                others have their own part.
        """
        self.flush()
        if self._shards is None:
            # Only process 0 evaluates; sending the detections to all would multiply the memory.
            parts = comm.gather(self._in_memory, dst=0)
            mine = [self._in_memory] if not comm.is_main_process() else parts
            return SweepDetections(self._names, [chunk for part in mine for chunk in part])
        self._shards.finish()
        return SweepDetections.load(self._shards.folder)


def _detections_of(chunk: Mapping[str, np.ndarray], number: int) -> Detections:
    """One calibration's detections in a chunk."""
    # Only the arrays of the union and of this calibration are read: those of an npz file load one
    # by one.
    union = {k.removeprefix("union_"): chunk[k] for k in chunk if k.startswith("union_")}
    own = Detections.from_arrays(union).take(chunk[f"index{number}"])
    return replace(own, score=chunk[f"score{number}"])
