"""Precision and recall from matches, for one or many weightings of the images.

Precision falls at every false positive and jumps at true positives, so the largest precision at or
beyond a recall is always attained at a true positive. Detections without a match only need to be
counted.

With integer weights the result is that of a data set in which each image occurs as often as its
weight says, with the copies of a detection adjacent in the ranking. A bootstrap over images needs
exactly this: the matches stay, the weights change.

Shapes: D detections, Dk of class k, M of D with a candidate object, N images, B sets of weights, K
foreground classes, A area ranges, T thresholds of IoU, E relevant outcomes of a class, S segments:
(area, threshold) pairs with an outcome. With a single set of weights, the axis B is missing.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from .matching import MATCHED

RECALLS = np.linspace(0.0, 1.0, 101)
_NEXT_RECALL = np.append(RECALLS[1:], np.inf)


class Accumulator:
    """Sorts outcomes once, so that each call takes only a few passes over arrays.

    Args:
        category (ndarray): (D,) ascending; within a class, detections are in descending order of
            score.
        counted (ndarray): (D, A) bool, whether a detection is a false positive if unmatched.
        rows (ndarray): (M,) the detections with a candidate, ascending.
        outcome (ndarray): (M, A, T) int8 from `match`.
        image (ndarray | None): (D,) index into the weights; None if no call has weights.
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
        # All bounds in one search: each search for a few values may convert the whole array first.
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
            num_gt (ndarray): (B, K, A) number of objects, weighted by their images.
            weights (ndarray | None): (B, N) float64, multiplicity of each image, integers of at
                least 0; None is 1 for all.

        Returns:
            tuple[ndarray, ndarray]: mean precision over 101 recalls and recall, (B, A, T, K) each;
            NaN without objects.
        """
        return self._collect(num_gt, num_gt.shape[:-2], lambda k: (num_gt[..., k, :], weights))

    def of_first(self, num_gt: np.ndarray, number: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Compute precision and recall of only the first detections of each class.

        Args:
            num_gt (ndarray): (K, A) number of objects.
            number (ndarray): (B, K) number of first detections of each class that count.

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
        """Join the rates of all classes; `arguments` maps a class to the arguments of `rates`."""
        found = np.zeros((2, *sets, *self._shape, num_gt.shape[-2]))
        for k, outcomes in self._classes.items():
            area, threshold = outcomes.segments
            if len(area):
                found[..., area, threshold, k] = outcomes.rates(*arguments(k))
        # Classes without any candidate were never visited: their precision is 0 if they have
        # objects, NaN if not.
        absent = (num_gt == 0).swapaxes(-1, -2)[..., None, :]
        found[:, np.broadcast_to(absent, found.shape[1:])] = np.nan
        return found[0], found[1]


class _ClassOutcomes:
    """The outcomes of one class that affect precision and recall.

    Args:
        counted (ndarray): (Dk, A) bool.
        rows (ndarray): (m,) detections of the class with a candidate.
        outcome (ndarray): (m, A, T).
        image (ndarray | None): (Dk,).
    """

    def __init__(
        self, counted: np.ndarray, rows: np.ndarray, outcome: np.ndarray, image: np.ndarray | None
    ) -> None:
        # Later detections can't match, so no precision is read after them.
        length = rows[-1] + 1
        self._image = None if image is None else image[:length]
        # (A, Dk), contiguous along detections: the running sums go along that axis in every call.
        self._counted = np.ascontiguousarray(counted[:length].T)
        hit = outcome == MATCHED
        # A detection that matched an ignored object and does not count itself changes nothing.
        relevant = hit | ((outcome != 0) & counted[rows][:, :, None])
        # nonzero walks the last axis fastest: entries are grouped by segment and, within one, in
        # order of score.
        area, threshold, entry = np.nonzero(relevant.transpose(1, 2, 0))
        self._row = rows[entry]
        self._hit = hit[entry, area, threshold]
        self._spared = counted[self._row, area]
        # Flat positions in (A, Dk), so that one gather reads the running count of every entry.
        self._seen = area * length + self._row
        new = np.diff(area * outcome.shape[2] + threshold, prepend=-1) != 0
        self._start = np.flatnonzero(new)
        self._end = np.append(self._start[1:], len(new))[: len(self._start)] - 1
        self._segment = np.cumsum(new) - 1
        # Added to precisions, so that one running maximum from the end covers all segments: earlier
        # segments lie higher by 2, and precision is at most 1, so no maximum crosses a boundary.
        self._floor = 2.0 * (len(self._start) - self._segment)
        self.segments = area[self._start], threshold[self._start]

    def rates(
        self, num_gt: np.ndarray, weights: np.ndarray | None, number: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Mean precision, and recall, of each segment (at least one), (B, S) each.

        Args:
            num_gt (ndarray): (B, A) number of objects.
            weights (ndarray | None): (B, N) multiplicity of each image.
            number (ndarray | None): (B,) number of first detections that count; the other arguments
                have no axis B then.
        """
        hits, false = self._hits_and_false(weights)
        # The last summand is lvis-api's guard against 0 / 0. It changes the last digit, so we keep
        # it.
        precision = hits / (false + hits + np.spacing(1)) * self._hit
        # The 1 avoids a division by 0 in resamples without objects; `_collect` sets these to NaN.
        recall = hits / _take(np.maximum(num_gt, 1), self.segments[0][self._segment])
        # The number of the 101 recalls that each entry has reached; their differences say how often
        # the precision at each entry is read, which replaces lvis-api's search per recall.
        reached = np.where(hits > 0, _recalls_reached(recall), 0)
        reads = np.diff(reached, prepend=0)
        # The first entry of a segment has no predecessor: undo the difference across the boundary.
        reads[..., self._start] = reached[..., self._start]
        if number is None:
            last = recall[..., self._end]
        else:
            # Zeros remove later entries from the maximum and from the mean.
            counts = self._row < number[:, None]
            precision, recall = precision * counts, recall * counts
            last = np.maximum.reduceat(recall, self._start, axis=-1)
        level = precision + self._floor
        best = np.maximum.accumulate(level[..., ::-1], axis=-1)[..., ::-1] - self._floor
        mean = np.add.reduceat(reads * best, self._start, axis=-1) / len(RECALLS)
        return mean, last

    def _hits_and_false(self, weights: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        """True and false positives of the segment up to and including each entry, (B, E) each."""
        if weights is None:
            weights = np.ones(self._counted.shape[1])
        else:
            weights = _take(weights, self._image)
        # Sums of integers in float64 are exact, so their differences are too.
        seen = np.cumsum(weights[..., None, :] * self._counted, axis=-1)
        seen = _take(seen.reshape(*weights.shape[:-1], -1), self._seen)
        of_entry = _take(weights, self._row)
        hits = self._running_sum(of_entry * self._hit)
        # `seen` counts every detection as false; those that matched, and would have counted, are
        # taken off.
        return hits, seen - self._running_sum(of_entry * self._spared)

    def _running_sum(self, values: np.ndarray) -> np.ndarray:
        """Sum of the segment's values up to and including each entry, (B, E)."""
        total = np.cumsum(values, axis=-1)
        # One cumulative sum over all segments, less its value before each segment's start.
        return total - _take(total[..., self._start] - values[..., self._start], self._segment)


def _recalls_reached(recall: np.ndarray) -> np.ndarray:
    """Number of the 101 recalls at or below each (B, E) recall: searchsorted, but quicker."""
    place = (recall * (len(RECALLS) - 1)).astype(np.intp)
    # The product may round up to the next recall, or the stored recall may lie above it: one step
    # in either direction corrects both.
    place += np.take(_NEXT_RECALL, place) <= recall
    place -= np.take(RECALLS, place) > recall
    return place + 1


def _take(values: np.ndarray, index: np.ndarray) -> np.ndarray:
    """Values at positions of the last axis; np.take is faster than fancy indexing here."""
    return np.take(values, index, axis=-1)
