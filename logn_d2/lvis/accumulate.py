"""Precision and recall from matches, once or for many weights of the images.

Precision falls at every false positive and jumps at true positives, so the largest precision at or
beyond a recall is that of a true positive: detections that match nothing are only counted.

With integer weights the result is that of a data set in which each image occurs as often as its
weight says, the copies of a detection one after another in the ranking. That is what a bootstrap
over images needs: the matches stay, the weights change.

Shapes: D detections, Dk of class k, M of D with a candidate object, N images, B sets of weights, K
foreground classes, A area ranges, T thresholds of IoU, E outcomes that matter in a class, S
segments: (area, threshold) with an outcome. Where there is one set of weights, B is left out.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from .matching import MATCHED

__all__ = ["Accumulator"]

_RECALLS = np.linspace(0.0, 1.0, 101)
_NEXT_RECALL = np.append(_RECALLS[1:], np.inf)


class Accumulator:
    """Sorts outcomes once; then each call is a few passes over arrays.

    Args:
        category (ndarray): (D,) ascending, of detections in the order of their scores.
        counted (ndarray): (D, A) bool, whether a detection is a false positive if unmatched.
        rows (ndarray): (M,) the detections with a candidate, ascending.
        outcome (ndarray): (M, A, T) int8 from `match`.
        image (ndarray | None): (D,) index into the weights; None where none will be given.
    """

    def __init__(
        self,
        category: np.ndarray,
        counted: np.ndarray,
        rows: np.ndarray,
        outcome: np.ndarray,
        image: np.ndarray | None = None,
    ) -> None:
        self._shape = outcome.shape[1:]
        self._classes = {}
        # All bounds at once: each search of a few values may convert the whole array first.
        classes = np.unique(category[rows])
        firsts, lasts = (np.searchsorted(category, classes, side) for side in ("left", "right"))
        mine_firsts, mine_lasts = (np.searchsorted(rows, bound) for bound in (firsts, lasts))
        bounds = np.stack([firsts, lasts, mine_firsts, mine_lasts], axis=1)
        for k, (first, last, start, stop) in zip(classes.tolist(), bounds.tolist(), strict=True):
            mine = slice(start, stop)
            self._classes[k] = _ClassOutcomes(
                counted[first:last],
                rows[mine] - first,
                outcome[mine],
                None if image is None else image[first:last],
            )

    def __call__(
        self, num_gt: np.ndarray, weights: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Compute precision and recall.

        Args:
            num_gt (ndarray): (B, K, A) objects to be found, each as often as its image counts.
            weights (ndarray | None): (B, N) float64, how often each image counts, integers of at
                least 0; None counts each once.

        Returns:
            tuple[ndarray, ndarray]: mean precision over 101 recalls and recall, (B, A, T, K) each;
            NaN where no object is to be found.
        """
        return self._collect(num_gt, num_gt.shape[:-2], lambda k: (num_gt[..., k, :], weights))

    def of_first(self, num_gt: np.ndarray, number: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Compute precision and recall of the first detections of each class alone.

        Args:
            num_gt (ndarray): (K, A) objects to be found.
            number (ndarray): (B, K) how many detections of each class count.

        Returns:
            tuple[ndarray, ndarray]: (B, A, T, K) each, as from a call.
        """
        return self._collect(num_gt, (len(number),), lambda k: (num_gt[k], None, number[:, k]))

    def _collect(
        self,
        num_gt: np.ndarray,
        sets: tuple[int, ...],
        arguments: Callable[[int], tuple[np.ndarray | None, ...]],
    ) -> tuple[np.ndarray, np.ndarray]:
        """Put the rates of all classes together; `arguments` gives those of one class."""
        found = np.zeros((2, *sets, *self._shape, num_gt.shape[-2]))
        for k, outcomes in self._classes.items():
            area, threshold = outcomes.segments
            if len(area):
                found[..., area, threshold, k] = outcomes.rates(*arguments(k))
        absent = (num_gt == 0).swapaxes(-1, -2)[..., None, :]
        found[:, np.broadcast_to(absent, found.shape[1:])] = np.nan
        return found[0], found[1]


class _ClassOutcomes:
    """What matters of the outcomes of one class.

    Args:
        counted (ndarray): (Dk, A) bool.
        rows (ndarray): (m,) of these detections.
        outcome (ndarray): (m, A, T).
        image (ndarray | None): (Dk,).
    """

    def __init__(
        self, counted: np.ndarray, rows: np.ndarray, outcome: np.ndarray, image: np.ndarray | None
    ) -> None:
        # Nothing is read after the last detection with a candidate.
        length = rows[-1] + 1
        self._image = None if image is None else image[:length]
        self._counted = np.ascontiguousarray(counted[:length].T)
        hit = outcome == MATCHED
        # A detection that found an ignored object, and is ignored itself, changes nothing.
        relevant = hit | ((outcome != 0) & counted[rows][:, :, None])
        # By segment, and within one the best score first.
        area, threshold, entry = np.nonzero(relevant.transpose(1, 2, 0))
        self._row = rows[entry]
        self._hit = hit[entry, area, threshold]
        self._spared = counted[self._row, area]
        self._seen = area * length + self._row
        new = np.diff(area * outcome.shape[2] + threshold, prepend=-1) != 0
        self._start = np.flatnonzero(new)
        self._end = np.append(self._start[1:], len(new))[: len(self._start)] - 1
        self._segment = np.cumsum(new) - 1
        # Added to precisions, so that one pass goes over all segments, the last first.
        self._floor = 2.0 * (len(self._start) - self._segment)
        self.segments = area[self._start], threshold[self._start]

    def rates(
        self, num_gt: np.ndarray, weights: np.ndarray | None, number: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Mean precision and recall of each segment (at least one), (B, S) each.

        Args:
            num_gt (ndarray): (B, A) objects to be found.
            weights (ndarray | None): (B, N) how often each image counts.
            number (ndarray | None): (B,) only so many detections count; without B elsewhere.
        """
        hits, false = self._hits_and_false(weights)
        # The summand is lvis-api's guard against 0 / 0; it moves the last digit, so it stays.
        precision = hits / (false + hits + np.spacing(1)) * self._hit
        recall = hits / _take(np.maximum(num_gt, 1), self.segments[0][self._segment])
        # At how many of the 101 recalls precision is read up to and with each entry, then at each.
        reached = np.where(hits > 0, _recalls_reached(recall), 0)
        reads = np.diff(reached, prepend=0)
        reads[..., self._start] = reached[..., self._start]
        if number is None:
            last = recall[..., self._end]
        else:
            # What comes later has no say: it is as if it had found nothing.
            counts = self._row < number[:, None]
            precision, recall = precision * counts, recall * counts
            last = np.maximum.reduceat(recall, self._start, axis=-1)
        level = precision + self._floor
        best = np.maximum.accumulate(level[..., ::-1], axis=-1)[..., ::-1] - self._floor
        mean = np.add.reduceat(reads * best, self._start, axis=-1) / len(_RECALLS)
        return mean, last

    def _hits_and_false(self, weights: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        """True and false positives of the segment up to and with each entry, (B, E) each."""
        if weights is None:
            weights = np.ones(self._counted.shape[1])
        else:
            weights = _take(weights, self._image)
        seen = np.cumsum(weights[..., None, :] * self._counted, axis=-1)
        seen = _take(seen.reshape(*weights.shape[:-1], -1), self._seen)
        of_entry = _take(weights, self._row)
        hits = self._running_sum(of_entry * self._hit)
        return hits, seen - self._running_sum(of_entry * self._spared)

    def _running_sum(self, values: np.ndarray) -> np.ndarray:
        """Sum of the segment's values up to and with each entry, (B, E)."""
        total = np.cumsum(values, axis=-1)
        return total - _take(total[..., self._start] - values[..., self._start], self._segment)


def _recalls_reached(recall: np.ndarray) -> np.ndarray:
    """How many of the 101 recalls are not above each (B, E) recall: a search, but quicker."""
    place = (recall * (len(_RECALLS) - 1)).astype(np.intp)
    # A product may be rounded to the next recall, or a recall to the product.
    place += np.take(_NEXT_RECALL, place) <= recall
    place -= np.take(_RECALLS, place) > recall
    return place + 1


def _take(values: np.ndarray, index: np.ndarray) -> np.ndarray:
    """Values at some positions of the last axis."""
    return np.take(values, index, axis=-1)
