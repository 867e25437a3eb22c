"""Stores of an evaluator's detections during inference: in memory, on disk, or only the best.

On disk a process writes a *shard* every few hundred images, so its memory does not grow with the
data set and a killed evaluation resumes from the last one, see `logn_d2.passes.shards`.

Shapes: D detections, K foreground classes.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial
from typing import Protocol

import numpy as np

from ..errors import UserError
from ..lvis.detections import Detections, image_id_array
from ..lvis.order import best_of_each
from ..passes.shards import ShardFolder, ShardKind, read_npz, write_npz

ImageIds = Sequence[int] | Sequence[str]


_DETECTIONS = ShardKind("evaluation", ".npz", partial(read_npz, what="evaluation"))


class DetectionStore(Protocol):
    """The interface of a store for `LVISFormEvaluator`: one process's part of a pass."""

    @property
    def num_batches(self) -> int:
        """Number of batches whose detections are saved, which a resumed pass skips."""

    def add(self, image_ids: ImageIds, detections: Detections) -> None:
        """Keep the detections of one batch; a repeated image counts once."""

    def load(self) -> tuple[Detections, np.ndarray]:
        """Return all detections, and the ids of all images, including those without detections."""

    def clear(self) -> None:
        """Remove the state of an interrupted pass; called after the evaluation."""


class MemoryStore:
    """Keeps all detections in memory."""

    num_batches = 0

    def __init__(self) -> None:
        # A dict as an ordered set: ids keep the order of the pass.
        self._seen: dict[int | str, None] = {}
        self._parts: list[Detections] = []

    def add(self, image_ids: ImageIds, detections: Detections) -> None:
        """See `DetectionStore`."""
        self._parts.append(_new_images(image_ids, detections, self._seen))

    def load(self) -> tuple[Detections, np.ndarray]:
        """See `DetectionStore`."""
        return Detections.concatenate(self._parts), image_id_array(list(self._seen))

    def clear(self) -> None:
        """See `DetectionStore`; there is nothing to remove."""


class BestOfEachClass(MemoryStore):
    """Keeps the best detections of each class over all images, in bounded memory.

    The result does not depend on the order of images and detections, see `best_of_each`.

    Args:
        max_dets (int): number kept per class.
        spare (int): detections beyond K * `max_dets` that accumulate before the worst are dropped;
            a larger number takes more memory and less time.

    Example:
        >>> store = BestOfEachClass(max_dets=2)
        >>> store.add([7], Detections([7] * 3, [0] * 3, [0.9, 0.2, 0.5], [[0, 0, 1, 1]] * 3))
        >>> store.load()[0].score.tolist()
        [0.9, 0.5]
    """

    def __init__(self, max_dets: int = 10_000, spare: int = 1_000_000) -> None:
        super().__init__()
        if max_dets < 1:
            raise UserError(f"max_dets is {max_dets}, expected at least 1 detection of a class.")
        self._max_dets = max_dets
        self._spare = spare
        self._waiting = 0
        self._worst_kept = np.zeros(0)

    def add(self, image_ids: ImageIds, detections: Detections) -> None:
        """See `DetectionStore`."""
        detections = _new_images(image_ids, detections, self._seen)
        # Once a class is full, nearly all of its new detections are dropped here, before they take
        # memory.
        detections = detections.take(self._may_be_kept(detections))
        self._parts.append(detections)
        self._waiting += len(detections)
        if self._waiting > self._spare:
            self._drop_worst()

    def load(self) -> tuple[Detections, np.ndarray]:
        """See `DetectionStore`."""
        self._drop_worst()
        return super().load()

    def _may_be_kept(self, detections: Detections) -> np.ndarray:
        """Mark detections that are not worse than all kept ones of a full class, (D,) bool."""
        worst = np.full(
            max(detections.category.max(initial=-1) + 1, len(self._worst_kept)), -np.inf
        )
        worst[: len(self._worst_kept)] = self._worst_kept
        # Equal scores stay: among these, image and box decide. NaN stays too, and is reported
        # later.
        return ~(detections.score < worst[detections.category])

    def _drop_worst(self) -> None:
        joined = Detections.concatenate(self._parts)
        kept = joined.take(best_of_each(joined, "category", self._max_dets))
        self._parts, self._waiting = [kept], 0
        full = np.bincount(kept.category, minlength=1) >= self._max_dets
        self._worst_kept = np.full(len(full), np.inf)
        # fmin ignores NaN; with minimum, a single NaN would keep every later detection of its
        # class.
        np.fmin.at(self._worst_kept, kept.category, kept.score)
        self._worst_kept[~full] = -np.inf


class ShardStore:
    """Keeps detections in files; detections not yet written are lost if the process dies.

    Args:
        folder (str or PathLike): folder for this pass alone.
        digest (str): digest of everything that determines the detections.
        shard_size (int): images per shard.
        resume (bool): keep the shards of an interrupted pass, see `ShardFolder`.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        digest: str = "pass",
        shard_size: int = 500,
        resume: bool = False,
    ) -> None:
        self._shards = ShardFolder(folder, _DETECTIONS, digest, resume=resume)
        self._shard_size = max(shard_size, 1)
        self._pending: list[Detections] = []
        self._pending_images: list[int | str] = []
        self._pending_batches = 0
        self._seen: dict[int | str, None] = {}
        for path in self._shards.paths:
            self._seen.update(dict.fromkeys(_DETECTIONS.read(path)["seen"].tolist()))

    @property
    def num_batches(self) -> int:
        """See `DetectionStore`."""
        return self._shards.num_batches

    def add(self, image_ids: ImageIds, detections: Detections) -> None:
        """See `DetectionStore`."""
        # Before `_new_images`, which marks them as seen.
        self._pending_images += [each for each in image_ids if each not in self._seen]
        self._pending.append(_new_images(image_ids, detections, self._seen))
        self._pending_batches += 1
        if len(self._pending_images) >= self._shard_size:
            self.flush()

    def flush(self) -> None:
        """Write the detections added since the last shard."""
        # Batches and not detections: images without any must not be processed again.
        if not self._pending_batches:
            return
        arrays = Detections.concatenate(self._pending).to_arrays()
        arrays["seen"] = image_id_array(self._pending_images)
        self._shards.write(self._pending_batches, partial(write_npz, arrays=arrays))
        self._pending, self._pending_images, self._pending_batches = [], [], 0

    def load(self) -> tuple[Detections, np.ndarray]:
        """See `DetectionStore`."""
        self.flush()
        shards = [dict(_DETECTIONS.read(path)) for path in self._shards.paths]
        return (
            Detections.concatenate([Detections.from_arrays(shard) for shard in shards]),
            image_id_array([i for shard in shards for i in shard["seen"].tolist()]),
        )

    def clear(self) -> None:
        """Remove the shards of all processes, and the folder if nothing else is in it."""
        self._shards.clear()
        folder = self._shards.folder
        # There is no folder if no shard was written.
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()


def _new_images(
    image_ids: ImageIds, detections: Detections, seen: dict[int | str, None]
) -> Detections:
    """Drop the detections of images seen before, and mark all images as seen."""
    again = [image_id for image_id in image_ids if image_id in seen]
    seen.update(dict.fromkeys(image_ids))
    return detections.take(~np.isin(detections.image_id, again)) if again else detections
