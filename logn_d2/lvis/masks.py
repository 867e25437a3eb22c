"""Masks in COCO's compressed run-length encoding as arrays.

Shapes: D masks, B bytes of all of them.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pycocotools.mask as mask_util

if TYPE_CHECKING:
    import torch

# Masks are encoded this many at a time: enough to amortise the call, few enough to stay in memory.
_ENCODE_BATCH = 64
# Masks per call of pycocotools: beyond 255, its `area` (2.0.11) overflows a uint8 with numpy 2.
_BLOCK = 255


@dataclass(frozen=True, eq=False)
class RleMasks:
    """Masks in COCO's compressed run-length encoding, concatenated in one buffer.

    Args:
        counts (ndarray): (B,) uint8, the compressed run lengths of all masks.
        offsets (ndarray): (D + 1,) int64; mask i is `counts[offsets[i]:offsets[i + 1]]`.
        size (ndarray): (D, 2) int32, height and width in pixels.
    """

    counts: np.ndarray
    offsets: np.ndarray
    size: np.ndarray

    @classmethod
    def from_dicts(cls, rles: Iterable[Mapping[str, Any]]) -> RleMasks:
        """Collect pycocotools' dictionaries.

        Args:
            rles (Iterable[Mapping]): D dictionaries with "size" (height, width) and "counts"
                (compressed, bytes or str).

        Returns:
            RleMasks: D masks in the same order.
        """
        counts, size = [], []
        # A generator, not a list: many live dictionaries keep Python's garbage collector busy.
        for rle in rles:
            runs = rle["counts"]
            counts.append(runs.encode("ascii") if isinstance(runs, str) else runs)
            size.extend(rle["size"])
        return _joined(counts, np.array(size, dtype=np.int32).reshape(-1, 2))

    @classmethod
    def from_bitmasks(cls, bitmasks: torch.Tensor) -> RleMasks:
        """Encode bitmaps of equal size, such as those of one image.

        Args:
            bitmasks (torch.Tensor): (D, height, width), bool or 0/1, on any device.

        Returns:
            RleMasks: D masks.
        """
        rles: list[dict[str, Any]] = []
        for start in range(0, len(bitmasks), _ENCODE_BATCH):
            batch = bitmasks[start : start + _ENCODE_BATCH].bool().cpu().numpy().view(np.uint8)
            # pycocotools expects column-major (height, width, D): this makes one copy for the whole
            # batch.
            rles.extend(mask_util.encode(np.asfortranarray(batch.transpose(1, 2, 0))))
        return cls.from_dicts(rles)

    def __len__(self) -> int:
        return len(self.size)

    def to_dicts(self, index: np.ndarray | slice = slice(None)) -> list[dict[str, Any]]:
        """Return the masks in the form that pycocotools takes ("size" list, "counts" bytes).

        Args:
            index (ndarray | slice): integers or a boolean mask; by default all.

        Returns:
            list[dict]: in the order of `index`.
        """
        buffer = memoryview(self.counts)
        columns = (self.offsets[:-1][index], self.offsets[1:][index], self.size[index])
        return [
            {"size": size, "counts": bytes(buffer[start:end])}
            for start, end, size in zip(*(c.tolist() for c in columns), strict=True)
        ]

    @functools.cached_property
    def areas(self) -> np.ndarray:
        """Pixels of each mask, (D,) float64."""
        blocks = (slice(i, i + _BLOCK) for i in range(0, len(self), _BLOCK))
        return np.concatenate([np.zeros(0), *(mask_util.area(self.to_dicts(b)) for b in blocks)])

    def take(self, index: np.ndarray) -> RleMasks:
        """Return the masks at `index` (integers or a boolean mask), in that order."""
        ends = zip(self.offsets[:-1][index].tolist(), self.offsets[1:][index].tolist(), strict=True)
        buffer = memoryview(self.counts)
        return _joined([bytes(buffer[start:end]) for start, end in ends], self.size[index])

    @staticmethod
    def concatenate(parts: Sequence[RleMasks]) -> RleMasks:
        """Join masks in the order of `parts` (at least one)."""
        return RleMasks(
            counts=np.concatenate([part.counts for part in parts]),
            offsets=_offsets(np.concatenate([np.diff(part.offsets) for part in parts])),
            size=np.concatenate([part.size for part in parts]),
        )


def _joined(counts: list[bytes], size: np.ndarray) -> RleMasks:
    """Masks from their run lengths and (D, 2) sizes."""
    lengths = np.fromiter(map(len, counts), dtype=np.int64, count=len(counts))
    return RleMasks(np.frombuffer(b"".join(counts), dtype=np.uint8), _offsets(lengths), size)


def _offsets(lengths: np.ndarray) -> np.ndarray:
    return np.append(0, np.cumsum(lengths)).astype(np.int64)
