"""Precision and recall from matches, once or for many weights of the images.

Precision falls at every false positive and jumps at true positives, so the largest precision at or
beyond a recall is that of a true positive: detections that match nothing are only counted.

With integer weights the result is that of a data set in which each image occurs as often as its
weight says, the copies of a detection one after another in the ranking. That is what a bootstrap
over images needs: the matches stay, the weights change.

Shapes: D detections, M of them with a candidate object, K foreground classes, A area ranges, T
thresholds of IoU, E non-zero outcomes, S segments: (class, area, threshold) with an outcome.
"""

from __future__ import annotations

import numpy as np

from .lvis_matching import MATCHED

__all__ = ["Accumulator", "accumulate"]

_RECALLS = np.linspace(0.0, 1.0, 101)


def accumulate(
    category: np.ndarray,
    counted: np.ndarray,
    rows: np.ndarray,
    outcome: np.ndarray,
    num_gt: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Precision and recall of each class; see `Accumulator` for the first four arguments.

    Args:
        category (ndarray): (D,).
        counted (ndarray): (D, A).
        rows (ndarray): (M,).
        outcome (ndarray): (M, A, T).
        num_gt (ndarray): (K, A) objects to be found.

    Returns:
        tuple[ndarray, ndarray]: precision and recall, (A, T, K) each.
    """
    return Accumulator(category, counted, rows, outcome)(num_gt)


class Accumulator:
    """Sorts outcomes once; then each call is a few passes over arrays.

    Args:
        category (ndarray): (D,) ascending, of detections in the order of their scores.
        counted (ndarray): (D, A) bool, whether a detection is a false positive if unmatched.
        rows (ndarray): (M,) the detections with a candidate, ascending.
        outcome (ndarray): (M, A, T) int8 from `match`.
    """

    def __init__(
        self, category: np.ndarray, counted: np.ndarray, rows: np.ndarray, outcome: np.ndarray
    ) -> None:
        self._shape = num_areas, num_thresholds = outcome.shape[1:]
        self._counted = np.ascontiguousarray(counted.T)
        entry, area, threshold = np.nonzero(outcome)
        hit = outcome[entry, area, threshold] == MATCHED
        row = rows[entry]
        segment = (category[row].astype(np.int64) * num_areas + area) * num_thresholds + threshold
        # Stable: within a segment the best score stays first.
        order = np.argsort(segment, kind="stable")
        row, area, segment = row[order], area[order], segment[order]
        self._row, self._hit = row, hit[order]
        # Counted, and neither a true nor a false positive, or the other way round.
        self._spared = counted[row, area].astype(np.int8) - self._hit
        self._start = np.flatnonzero(np.diff(segment, prepend=-1))
        self._size = np.diff(self._start, append=len(segment))
        self._segment = segment[self._start]
        length = len(category) + 1
        first = np.searchsorted(category, self._segment // (num_areas * num_thresholds))
        self._before = area[self._start] * length + first
        self._after = area * length + row + 1

    def __call__(
        self, num_gt: np.ndarray, weights: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Compute precision and recall.

        Args:
            num_gt (ndarray): (K, A) objects to be found, each as often as its image counts.
            weights (ndarray | None): (D,) how often the image of each detection counts, integers
                of at least 0; None counts each once.

        Returns:
            tuple[ndarray, ndarray]: mean precision over 101 recalls and recall, (A, T, K) each;
            NaN where no object is to be found.
        """
        found = np.zeros((2, len(num_gt), *self._shape))
        if len(self._start):
            values = self._segments(num_gt.ravel(), weights)
            found.reshape(2, -1)[:, self._segment] = values
        found[:, num_gt == 0] = np.nan
        precision, recall = found.transpose(0, 2, 3, 1)
        return precision, recall

    def _segments(
        self, num_gt: np.ndarray, weights: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Precision and recall of each segment, (S,) each, from (K * A,) numbers of objects."""
        start, size = self._start, self._size
        hits, false = self._hits_and_false(weights)
        # The summand is lvis-api's guard against 0 / 0; it moves the last digit, so it stays.
        precision = np.where(self._hit, hits / (false + hits + np.spacing(1)), 0)
        objects = np.maximum(num_gt[self._segment // self._shape[1]], 1)
        recall = hits / np.repeat(objects, size)
        # At how many of the 101 recalls precision is read up to and with each entry.
        reached = np.searchsorted(_RECALLS, recall, side="right")
        reached[hits == 0] = 0
        previous = np.concatenate([[0], reached[:-1]])
        previous[start] = 0
        best = self._best_from_here_on(precision)
        mean = np.add.reduceat((reached - previous) * best, start) / len(_RECALLS)
        return mean, recall[start + size - 1]

    def _hits_and_false(self, weights: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        """True and false positives of the segment up to and with each entry, (E,) each."""
        total, hits, spared = self._counted, self._hit, self._spared
        if weights is not None:
            of_entry = weights[self._row]
            total, hits, spared = total * weights, hits * of_entry, spared * of_entry
        seen = np.zeros((self._shape[0], self._counted.shape[1] + 1))
        np.cumsum(total, axis=1, out=seen[:, 1:])
        seen = seen.ravel()
        seen = seen[self._after] - np.repeat(seen[self._before], self._size)
        hits, spared = self._running_sum(hits), self._running_sum(spared)
        return hits, seen - spared - hits

    def _running_sum(self, values: np.ndarray) -> np.ndarray:
        """Sum of the segment's values up to and with each entry, (E,) float64."""
        total = np.cumsum(values, dtype=np.float64)
        base = total[self._start] - values[self._start]
        return total - np.repeat(base, self._size)

    def _best_from_here_on(self, precision: np.ndarray) -> np.ndarray:
        """Largest precision of the segment from each entry to its end, (E,)."""
        # One pass over all segments, the last first: each starts above all that came before it.
        floor = np.repeat(2.0 * np.arange(len(self._start), 0, -1), self._size)
        level = (precision + floor)[::-1]
        # The sum is rounded, so it only tells where the largest is.
        place = np.where(np.maximum.accumulate(level) == level, np.arange(len(level)), 0)
        return precision[::-1][np.maximum.accumulate(place)][::-1]
