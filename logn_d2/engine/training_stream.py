"""The stream of training images, with a position from which a training resumes.

Detectron2 saves weights, optimizer, schedule and iteration. A resumed training then starts the
sampler and the random generators from the beginning, and ends with other weights than an
uninterrupted one.

With DATALOADER.NUM_WORKERS 0 the resumed training run equals the uninterrupted one bit for bit.
With worker processes it sees the same images in the same order, but with other augmentations,
because the workers' generators end with them.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
import torch.utils.data as torchdata
from detectron2.config import CfgNode
from detectron2.data import DatasetFromList, MapDataset, build_detection_train_loader
from detectron2.data.build import _train_loader_from_config
from detectron2.utils import comm

from ..data.loader import map_record
from ..data.rng import preserved_rng
from ..source import Mapper, source_of

logger = logging.getLogger(__name__)

_INDEX, _STATE = "training_index", "training_rng"

Record = dict[str, Any]
RngState = dict[str, Any]


class TrainingStream:
    """Detectron2's training loader, with a position that can be saved and restored.

    Args:
        cfg (CfgNode): its DATALOADER, INPUT and SOLVER.IMS_PER_BATCH apply, as in Detectron2.
        images (Sequence[dict]): the training images, in Detectron2's form.
        sampler (Sampler or None): an endless stream of their indices, determined by its seed; None
            for Detectron2's own, named by DATALOADER.SAMPLER_TRAIN.
    """

    def __init__(
        self, cfg: CfgNode, images: Sequence[Record], sampler: torchdata.Sampler[int] | None = None
    ) -> None:
        mapper = source_of(cfg).mapper(is_train=True)
        self._mapper = _Mapper(mapper, tells_states=cfg.DATALOADER.ASPECT_RATIO_GROUPING)
        # The arguments that `build_detection_train_loader` derives from a config, because the
        # sampler of a finished loader can't be wrapped any more.
        arguments = _train_loader_from_config(cfg, self._mapper, dataset=images, sampler=sampler)
        self._sampler = _Skipping(arguments["sampler"])
        # Mapped here, because newer Detectron2 hides what its loader draws from in an iterable.
        self._mapped = MapDataset(_Numbered(images), self._mapper)
        arguments.update(dataset=self._mapped, mapper=None, sampler=self._sampler)
        self._loader = build_detection_train_loader(**arguments)
        self._batch_size = cfg.SOLVER.IMS_PER_BATCH // comm.get_world_size()
        self._has_workers = cfg.DATALOADER.NUM_WORKERS > 0
        self._num_taken = 0  # indices of the sampler, in batches or waiting for one
        self._pending: RngState | None = None
        self._kept: dict[str, Any] = {}
        # A position is valid only for a stream with the same settings.
        self._settings = {
            "images": len(images),
            "batch": cfg.SOLVER.IMS_PER_BATCH,
            "processes": comm.get_world_size(),
            "sampler": type(self._sampler.sampler).__name__,
            "grouping": cfg.DATALOADER.ASPECT_RATIO_GROUPING,
        }

    def __iter__(self) -> Iterator[list[Record]]:
        for batch in self._loader:
            self._num_taken += len(batch)
            if self._has_workers and self._pending is not None:
                _set_rng(self._pending)
                self._pending = None
            yield batch

    def keep(self, iteration: int) -> None:
        """Record the position and the random states of all processes; call it on each of them.

        Args:
            iteration (int): the iteration that has just ended.
        """
        waiting = self._waiting()
        mine = {
            "consumed": self._sampler.skip + self._num_taken + len(waiting),
            "waiting": [{"index": each[_INDEX], "rng": each.get(_STATE)} for each in waiting],
            "rng": _get_rng(),
        }
        self._kept = {
            **self._settings,
            "iteration": iteration,
            "seed": getattr(self._sampler.sampler, "_seed", None),
            "ranks": comm.all_gather(mine),
        }

    def state_dict(self) -> dict[str, Any]:
        """The position recorded last by `keep`, for a checkpoint."""
        return self._kept

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Return to a position; call it before the first batch.

        A stream of other images, batches or processes starts at its beginning, with a warning.
        """
        if not state:  # saved manually, between two calls of keep
            return
        changed = [key for key, value in self._settings.items() if state.get(key) != value]
        if changed:
            logger.warning(
                "The checkpoint belongs to a training run with other %s: the sampler starts at its "
                "beginning.",
                ", ".join(changed),
            )
            return
        mine = state["ranks"][comm.get_rank()]
        # Without SEED in the config the sampler has drawn one, which is part of the position.
        if state["seed"] is not None:
            self._sampler.sampler._seed = state["seed"]
        self._sampler.skip = mine["consumed"]
        # Batches will count the waiting images, but "consumed" already has them.
        self._num_taken = -len(mine["waiting"])
        buckets = self._buckets()
        for each in mine["waiting"]:
            record = self._mapped_again(each["index"], each["rng"])
            # As AspectRatioGroupedDataset decides.
            buckets[0 if record["width"] > record["height"] else 1].append(record)
        self._pending = mine["rng"]
        if not self._has_workers:
            # Images are mapped in this process. The loader draws a seed when it starts, so the
            # states must be set after that, at the first image.
            self._mapper.pending, self._pending = self._pending, None

    def _mapped_again(self, index: int, rng: RngState | None) -> Record:
        with preserved_rng():
            if rng is not None:
                _set_rng(rng)
            return self._mapped[index]

    def _buckets(self) -> list[list[Record]]:
        """Images that wait for others of their aspect ratio, [wide, tall]."""
        return getattr(self._loader, "_buckets", [[], []])

    def _waiting(self) -> list[Record]:
        # Detectron2 empties a full bucket only when the next batch is requested: its images are
        # already in a batch.
        return [
            each for bucket in self._buckets() if len(bucket) < self._batch_size for each in bucket
        ]


class _Skipping(torchdata.Sampler):
    """A sampler without its first indices."""

    def __init__(self, sampler: torchdata.Sampler[int]) -> None:
        self.sampler = sampler
        self.skip = 0

    def __iter__(self) -> Iterator[int]:
        # Drawing them again is cheap, and needs no saved state of the sampler.
        stream = iter(self.sampler)
        for _ in range(self.skip):
            next(stream)
        yield from stream


class _Numbered(torchdata.Dataset):
    """Records that contain their index."""

    def __init__(self, records: Sequence[Record]) -> None:
        self._records = DatasetFromList(list(records), copy=False)

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> Record:
        return {**self._records[index], _INDEX: int(index)}


class _Mapper:
    """A mapper that adds the random states before each image to the mapped image.

    It does not do so in worker processes, whose states can't be restored.

    Args:
        mapper (Callable): the mapper that it calls.
        tells_states (bool): False if no image ever waits for others to fill a batch.
    """

    def __init__(self, mapper: Mapper, tells_states: bool) -> None:
        self._mapper, self._tells_states = mapper, tells_states
        self.pending: RngState | None = None

    def __call__(self, record: Record) -> Record | None:
        if torchdata.get_worker_info() is not None:
            return map_record(self._mapper, record)
        if self.pending is not None:
            _set_rng(self.pending)
            self.pending = None
        state = {_STATE: _get_rng(cuda=False)} if self._tells_states else {}
        mapped = map_record(self._mapper, record)
        return None if mapped is None else {**mapped, **state}


def _get_rng(cuda: bool = True) -> RngState:
    """The states of Python's, NumPy's and torch's generators, in types that are safe to load."""
    version, words, gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state()
    used = cuda and torch.cuda.is_initialized()
    return {
        "python": (version, torch.tensor(words, dtype=torch.int64), gauss),
        "numpy": (name, torch.from_numpy(keys.astype(np.int64)), position, has_gauss, cached),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if used else None,
    }


def _set_rng(state: RngState) -> None:
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words.tolist()), gauss))
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
