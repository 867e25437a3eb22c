"""The order of detections, which does not depend on the order in which they are given.

AP depends on which of two detections with equal scores is the better one, and equal scores are not
rare: saturated ones are 1, those of low precision repeat. lvis-api and pycocotools go by the given
order, so the same detections in another order have another AP. Here equal scores are told apart by
what is known of a detection: image, class, box, mask. Those that agree in all of it are the same.

Shapes: D detections, n of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from .detections import Detections

__all__ = ["best_of_each", "sort_positions"]

# What equal scores of an image are told apart by, and those of a class.
_OTHER = {"image_id": "category", "category": "image_id"}


def sort_positions(
    detections: Detections, columns: Sequence[np.ndarray], index: np.ndarray | None = None
) -> np.ndarray:
    """Sort detections by some columns, then by box, then by mask.

    Args:
        detections (Detections): D of them.
        columns (Sequence[ndarray]): (n,) each, the last one decides first, as in `numpy.lexsort`.
        index (ndarray | None): (n,) the detections that the columns are of; None for all.

    Returns:
        ndarray: (n,) int64 positions in the columns.

    Example:
        >>> from logn_d2.lvis import Detections
        >>> equal = Detections([7, 7], [0, 0], [0.5, 0.5], [[3, 0, 4, 4], [1, 0, 4, 4]])
        >>> sort_positions(equal, [-equal.score])
        array([1, 0])
    """
    index = np.arange(len(detections)) if index is None else index
    order = np.lexsort(columns)
    first = _changes([column[order] for column in columns])
    for more in (_boxes, _masks):
        # Only those that are still equal: mostly there are few.
        place = np.flatnonzero(~first | ~np.append(first[1:], True))
        if not len(place):
            break
        values = more(detections, index[order[place]])
        finer = np.lexsort([*values, np.cumsum(first)[place]])
        order[place] = order[place[finer]]
        first[place] |= _changes([column[finer] for column in values])
    return order


def best_of_each(
    detections: Detections, group: str, max_dets: int, index: np.ndarray | None = None
) -> np.ndarray:
    """Select the best detections of each image, or of each class over all images.

    Args:
        detections (Detections): D of them.
        group (str): "image_id" or "category".
        max_dets (int): how many to keep of each; negative keeps all. Of equal scores the lower
            class (image id) is better, then box and mask decide. Scores that are not a number count
            as best, so that they are not overlooked.
        index (ndarray | None): (n,) detections to select from; None for all.

    Returns:
        ndarray: int64 positions in `detections`, in the order of `index`.

    Example:
        >>> from logn_d2.lvis import Detections
        >>> found = Detections([7] * 3, [0, 0, 1], [0.2, 0.9, 0.1], [[0, 0, 4, 4]] * 3)
        >>> best_of_each(found, "category", 1)
        array([1, 2])
    """
    index = np.arange(len(detections)) if index is None else index
    if max_dets < 0:
        return index
    values = getattr(detections, group)[index]
    _, place, count = np.unique(values, return_inverse=True, return_counts=True)
    # Most detectors stop at the limit themselves: only what is beyond it is sorted.
    crowded = np.flatnonzero((count > max_dets)[place])
    mine = index[crowded]
    score = np.nan_to_num(detections.score[mine], nan=np.inf, posinf=np.inf, neginf=-np.inf)
    columns = (getattr(detections, _OTHER[group])[mine], -score, place[crowded])
    order = crowded[sort_positions(detections, columns, mine)]
    size = count[count > max_dets]
    rank = np.arange(len(order)) - np.repeat(np.cumsum(size) - size, size)
    keep = np.ones(len(index), dtype=bool)
    keep[order[rank >= max_dets]] = False
    return index[keep]


def _changes(columns: Sequence[np.ndarray]) -> np.ndarray:
    """Where (n,) columns differ from the entry before, (n,) bool; the first always does."""
    changes = np.zeros(len(columns[0]), dtype=bool)
    changes[:1] = True
    for column in columns:
        changes[1:] |= column[1:] != column[:-1]
    return changes


def _boxes(detections: Detections, index: np.ndarray) -> list[np.ndarray]:
    """Columns to sort by, from the height to the left edge, (n,) each."""
    return list(detections.box[index].T[::-1])


def _masks(detections: Detections, index: np.ndarray) -> list[np.ndarray]:
    """One column, the rank of each mask, (n,)."""
    if detections.masks is None:
        return [np.zeros(len(index), dtype=np.int64)]
    counts = [rle["counts"] for rle in detections.masks.to_dicts(index)]
    return [np.unique(np.array(counts, dtype=bytes), return_inverse=True)[1]]
