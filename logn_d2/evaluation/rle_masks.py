"""Masks in COCO's compressed run-length form as arrays.

Shapes: D masks, B bytes of all of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pycocotools.mask as mask_util

if TYPE_CHECKING:
    import torch

__all__ = ["RleMasks"]

# Masks are encoded this many at a time: enough to amortise the call, few enough to stay in memory.
_ENCODE_BATCH = 64


@dataclass(frozen=True, eq=False)
class RleMasks:
    """Masks in COCO's compressed run-length form, back to back in one buffer.

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
        rles = list(rles)
        counts = [_as_bytes(rle["counts"]) for rle in rles]
        lengths = np.fromiter(map(len, counts), dtype=np.int64, count=len(counts))
        return cls(
            counts=np.frombuffer(b"".join(counts), dtype=np.uint8),
            offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
            size=np.array([rle["size"] for rle in rles], dtype=np.int32).reshape(-1, 2),
        )

    @classmethod
    def from_bitmasks(cls, bitmasks: torch.Tensor) -> RleMasks:
        """Encode bitmaps that all have the same size, such as one image's.

        Args:
            bitmasks (torch.Tensor): (D, height, width), bool or 0/1, on any device.

        Returns:
            RleMasks: D masks.
        """
        rles: list[dict[str, Any]] = []
        for start in range(0, len(bitmasks), _ENCODE_BATCH):
            batch = bitmasks[start : start + _ENCODE_BATCH].bool().cpu().numpy().view(np.uint8)
            # pycocotools wants columns one after another: one copy for the whole batch.
            rles.extend(mask_util.encode(np.asfortranarray(batch.transpose(1, 2, 0))))
        return cls.from_dicts(rles)

    def __len__(self) -> int:
        return len(self.size)

    def to_dicts(self, index: np.ndarray | None = None) -> list[dict[str, Any]]:
        """Return the masks as pycocotools takes them ("size" list, "counts" bytes).

        Args:
            index (ndarray | None): integers or a boolean mask; None for all.

        Returns:
            list[dict]: in the order of `index`.
        """
        index = np.arange(len(self)) if index is None else np.arange(len(self))[index]
        buffer = memoryview(self.counts)
        columns = (self.offsets[index], self.offsets[1:][index], self.size[index])
        return [
            {"size": size, "counts": bytes(buffer[start:end])}
            for start, end, size in zip(*(c.tolist() for c in columns), strict=True)
        ]

    def take(self, index: np.ndarray) -> RleMasks:
        """Return the masks at `index` (integers or a boolean mask), in that order."""
        index = np.arange(len(self))[index]
        starts, lengths = self.offsets[index], np.diff(self.offsets)[index]
        buffer = memoryview(self.counts)
        pieces = [buffer[s : s + n] for s, n in zip(starts.tolist(), lengths.tolist(), strict=True)]
        return RleMasks(
            counts=np.frombuffer(b"".join(pieces), dtype=np.uint8),
            offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
            size=self.size[index],
        )

    @staticmethod
    def concatenate(parts: Sequence[RleMasks]) -> RleMasks:
        """Join masks in the order of `parts` (at least one)."""
        lengths = np.concatenate([np.diff(part.offsets) for part in parts])
        return RleMasks(
            counts=np.concatenate([part.counts for part in parts]),
            offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
            size=np.concatenate([part.size for part in parts]),
        )


def _as_bytes(counts: str | bytes) -> bytes:
    return counts.encode("ascii") if isinstance(counts, str) else counts
