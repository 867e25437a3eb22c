"""An order of detections that does not depend on their input order.

AP depends on the order of detections with equal scores, and equal scores are not rare: saturated
ones are 1, and low-precision ones repeat. lvis-api and pycocotools follow the input order, so that
the same detections in another order have another AP. Here image, class, box and mask break ties;
detections that agree in all of these are identical.

Shapes: D detections, n of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:  # it imports this module
    from .detections import Detections

# The column that breaks ties within an image, and within a class.
_OTHER = {"image_id": "category", "category": "image_id"}


def sort_positions(
    detections: Detections, columns: Sequence[np.ndarray], index: np.ndarray | None = None
) -> np.ndarray:
    """Sort detections by some columns, then by box, then by mask.

    Args:
        detections (Detections): D of them.
        columns (Sequence[ndarray]): (n,) each, the last one decides first, as in `numpy.lexsort`.
        index (ndarray | None): (n,) the detections described by the columns; None for all.

    Returns:
        ndarray: (n,) int64 positions in the columns.

    Example:
        >>> from logn_d2.lvis import Detections
        >>> equal = Detections([7, 7], [0, 0], [0.5, 0.5], [[3, 0, 4, 4], [1, 0, 4, 4]])
        >>> sort_positions(equal, [-equal.score])
        array([1, 0])
    """
    index = np.arange(len(detections)) if index is None else index
    # lexsort is stable and ascending; callers pass negative scores for descending order.
    order = np.lexsort(columns)
    first = _changes([column[order] for column in columns])
    for more in (_boxes, _masks):
        # Compare boxes and masks only where all columns tie, which is rare: masks are costly to
        # sort.
        place = np.flatnonzero(~first | ~np.append(first[1:], True))
        if not len(place):
            break
        values = more(detections, index[order[place]])
        # The running number of the tie is the first key, so ties are reordered only within
        # themselves.
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
        max_dets (int): number to keep of each; negative keeps all. Among equal scores the lower
            class (image id) ranks higher, then box and mask decide. NaN scores count as best, so
            that a later check finds them.
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
    # Most detectors apply the limit themselves: only groups that exceed it need sorting.
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
    """Mark the first entry and all that differ from the previous one in a column, (n,) bool."""
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
    # Ranks of the run lengths: any fixed order of masks will do, if it depends on the masks alone.
    return [np.unique(np.array(counts, dtype=bytes), return_inverse=True)[1]]
