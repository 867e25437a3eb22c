"""The LVIS matching rule on arrays: assigning detections to objects.

lvis-api walks over images, classes, area ranges, thresholds, detections and objects in nested
Python loops. Here all (image, class) pairs advance together: step r assigns an object to the r-th
best detection of every pair, for all thresholds and area ranges at once. Only pairs of detection
and object whose overlap reaches the lowest threshold are considered.

The rule (Gupta, Dollar, Girshick, CVPR 2019; code lvis-dataset/lvis-api): detections choose in the
order of their scores. Each takes the free object of its class with the largest overlap, if that
reaches the threshold; among equal overlaps, the later object in the file. An object to be ignored
(outside the area range) is taken only if no other object qualifies.

Shapes: D detections, G objects, P candidate pairs, M detections with a candidate, A = 4 area
ranges, T = 10 thresholds.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pycocotools.mask as mask_util

from .masks import RleMasks

# (A, 2) square pixels: all, small, medium, large. Both ends belong to the range.
AREA_RANGES = np.array([[0, 1e5**2], [0, 32**2], [32**2, 96**2], [96**2, 1e5**2]])
# (T,) the same call as in lvis-api: arange would differ by a rounding error.
IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)
# Outcomes of a detection; 0 is unmatched.
MATCHED, IGNORED = 1, 2

# Pairs of detection and object in one block; bounds the memory (about 100 bytes per pair).
_CHUNK = 1 << 20
# (image, class) pairs whose masks exist as dictionaries, the input of pycocotools, at one time.
_KEYS = 256
_NONE = np.iinfo(np.int32).max
# Added to the preference of ignored objects: larger than any number of objects in an image, so that
# every other object is preferred.
_LAST = 1 << 30


def box_candidates(
    det_key: np.ndarray,
    det_box: np.ndarray,
    gt_key: np.ndarray,
    gt_box: np.ndarray,
    gt_crowd: np.ndarray,
    min_iou: float = IOU_THRESHOLDS[0],
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Find pairs with equal keys whose box IoU reaches the lowest threshold.

    Args:
        det_key (ndarray): (D,) int64, image and class of each detection.
        det_box (ndarray): (D, 4) XYWH.
        gt_key (ndarray): (G,) int64, ascending.
        gt_box (ndarray): (G, 4) XYWH.
        gt_crowd (ndarray): (G,) bool; the overlap with a crowd region is relative to the
            detection's area.
        min_iou (float): the lowest threshold, above 0.

    Returns:
        tuple[ndarray, ndarray, ndarray]: detection index ascending, object index ascending within
        a detection, IoU in float64; (P,) each.
    """
    # pycocotools computes in float64; float32 overlaps would land on the other side of a threshold.
    # (4, D) and (4, G), contiguous along boxes: numpy is slow in steps over rows of four.
    det_box, gt_box = (np.ascontiguousarray(each.T, dtype=np.float64) for each in (det_box, gt_box))
    found = []
    for det, gt in _pairs(det_key, gt_key):
        # Few pairs reach the threshold; keeping only these bounds the memory of all later steps.
        iou = _box_iou(det_box.take(det, axis=1), gt_box.take(gt, axis=1), gt_crowd[gt])
        near = iou >= min_iou
        found.append((det[near], gt[near], iou[near]))
    return _join(found)


def mask_candidates(
    det_key: np.ndarray,
    det_masks: RleMasks,
    gt_key: np.ndarray,
    gt_masks: RleMasks,
    gt_crowd: np.ndarray,
    min_iou: float = IOU_THRESHOLDS[0],
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Find pairs with equal keys and enough mask IoU; see `box_candidates`."""
    found = []
    for det, gt in _pairs(det_key, gt_key):
        # IoU is at most the ratio of the areas. pycocotools skips masks whose boxes are apart, so
        # boxes need no test here. The margin covers rounding. Crowd overlaps are relative to the
        # detection, which the bound does not cover.
        areas = det_masks.areas[det], gt_masks.areas[gt]
        near = (np.minimum(*areas) >= (min_iou - 1e-3) * np.maximum(*areas)) | gt_crowd[gt]
        det, gt = det[near], gt[near]
        iou = _mask_iou(det, gt, det_key, det_masks, gt_masks, gt_crowd)
        near = iou >= min_iou
        found.append((det[near], gt[near], iou[near]))
    return _join(found)


def match(
    det: np.ndarray,
    gt: np.ndarray,
    iou: np.ndarray,
    det_key: np.ndarray,
    gt_ignored: np.ndarray,
    gt_crowd: np.ndarray,
    thresholds: np.ndarray = IOU_THRESHOLDS,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Assign objects to detections, greedily in the order of scores.

    Args:
        det (ndarray): (P,) int64, ascending; within an image and class the lower index chooses
            first.
        gt (ndarray): (P,) int64.
        iou (ndarray): (P,) float64, at least the lowest threshold.
        det_key (ndarray): (D,) int64, image and class of each detection.
        gt_ignored (ndarray): (G, A) bool.
        gt_crowd (ndarray): (G,) bool; crowd regions can be matched any number of times.
        thresholds (ndarray): (T,) ascending.

    Returns:
        tuple[ndarray, ndarray, ndarray]: the M detections with a candidate, ascending; their (M, A,
        T) int8 outcome: 0 unmatched, `MATCHED`, or `IGNORED` (matched to an ignored object); and
        the matched objects, (G, A, T) bool, never crowd regions.
    """
    # `det` is ascending, so the candidates of a detection are one slice: first index and count
    # describe it.
    first = np.flatnonzero(np.diff(det, prepend=-1))
    count = np.diff(first, append=len(det))
    candidates = det[first]
    gt, iou = _best_first(det, gt, iou, np.repeat(count, count) > 1)
    outcome = np.zeros((len(candidates), gt_ignored.shape[1], len(thresholds)), dtype=np.int8)
    # Area ranges and thresholds are independent matchings that differ in which objects are free, so
    # each has its own copy of this state.
    taken = np.zeros((len(gt_ignored), *outcome.shape[1:]), dtype=bool)
    # The r-th detection of a pair must wait for its r - 1 predecessors, and for no other pair.
    turn = _rank_in_group(det_key[candidates])
    state = taken, gt_ignored, gt_crowd
    for rows in np.split(np.argsort(turn, kind="stable"), np.cumsum(np.bincount(turn))[:-1]):
        # Most detections have one candidate, which needs no comparison of preferences.
        single = count[rows] == 1
        alone, others = rows[single], rows[~single]
        pair = first[alone]
        outcome[alone] = _take_or_leave(gt[pair], iou[pair, None] >= thresholds, *state)
        if len(others):
            pair = _ranges(first[others], count[others])
            near = iou[pair, None] >= thresholds
            outcome[others] = _take_turn(gt[pair], near, count[others], *state)
    return candidates, outcome, taken


def _best_first(
    det: np.ndarray, gt: np.ndarray, iou: np.ndarray, several: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Objects and overlaps, (P,) each, the largest overlap of a detection first.

    Among equal overlaps the later object comes first: lvis-api compares with >=, so that a later
    equal one wins. `several` marks the pairs of detections with more than one candidate.
    """
    pairs = np.flatnonzero(several)
    order = pairs[np.lexsort((-gt[pairs], -iou[pairs], det[pairs]))]
    gt, iou = gt.copy(), iou.copy()
    gt[pairs], iou[pairs] = gt[order], iou[order]
    return gt, iou


def _take_or_leave(
    gt: np.ndarray,
    near: np.ndarray,
    taken: np.ndarray,
    gt_ignored: np.ndarray,
    gt_crowd: np.ndarray,
) -> np.ndarray:
    """`_take_turn` for m detections with one candidate each, (m,) objects."""
    mine = ~taken[gt] & near[:, None, :]
    # No two rows of a turn share an object, see `_take_turn`.
    taken[gt] |= mine & ~gt_crowd[gt, None, None]
    kind = np.where(gt_ignored[gt], np.int8(IGNORED), np.int8(MATCHED))
    return kind[:, :, None] * mine


def _take_turn(
    gt: np.ndarray,
    near: np.ndarray,
    count: np.ndarray,
    taken: np.ndarray,
    gt_ignored: np.ndarray,
    gt_crowd: np.ndarray,
) -> np.ndarray:
    """Let detections of different (image, class) pairs choose; marks objects in `taken`.

    Args:
        gt (ndarray): (p,) objects, the candidates of each detection adjacent, best first.
        near (ndarray): (p, T) bool, whether the overlap reaches the threshold.
        count (ndarray): (m,) candidates of each detection; sums to p.
        taken (ndarray): (G, A, T) bool, changed in place.
        gt_ignored (ndarray): (G, A) bool.
        gt_crowd (ndarray): (G,) bool.

    Returns:
        ndarray: (m, A, T) int8 outcome.
    """
    start = np.cumsum(count) - count
    position = np.arange(len(gt)) - np.repeat(start, count)
    # int32 halves the memory of the largest array here, (p, A, T).
    preference = (position[:, None] + _LAST * gt_ignored[gt]).astype(np.int32)
    free = ~taken[gt] & near[:, None, :]
    choice = np.where(free, preference[:, :, None], np.int32(_NONE))
    # Every detection here has at least one candidate, so no segment is empty (reduceat would
    # misread one).
    choice = np.minimum.reduceat(choice, start, axis=0)
    row, area, threshold = np.nonzero(choice < _NONE)
    chosen = choice[row, area, threshold]
    # The remainder undoes the penalty of ignored objects and gives back the position.
    target = gt[start[row] + chosen % _LAST]
    # No two rows of a turn share an object: they belong to different (image, class) pairs. So this
    # assignment has no conflicts.
    taken[target, area, threshold] = ~gt_crowd[target]
    outcome = np.zeros(choice.shape, dtype=np.int8)
    outcome[row, area, threshold] = np.where(chosen < _LAST, MATCHED, IGNORED)
    return outcome


def _pairs(det_key: np.ndarray, gt_key: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield all pairs of detection and object with equal keys, in blocks."""
    # Most detections have a class that their image does not show; searching for all of them would
    # take longer than all later steps.
    rows = np.flatnonzero(np.isin(det_key, gt_key))
    key, first, size = np.unique(gt_key, return_index=True, return_counts=True)
    # One search in the distinct keys; first and size then give the range of objects.
    place = np.searchsorted(key, det_key[rows])
    begin, count = first[place], size[place]
    ends = np.cumsum(count)
    start = 0
    while start < len(rows):
        done = ends[start] - count[start]
        # At least one detection per block, even if its objects alone exceed the block size.
        stop = max(start + 1, int(np.searchsorted(ends, done + _CHUNK, side="right")))
        number = count[start:stop]
        yield np.repeat(rows[start:stop], number), _ranges(begin[start:stop], number)
        start = stop


def _ranges(first: np.ndarray, count: np.ndarray) -> np.ndarray:
    """All of first[0], first[0] + 1, ..., first[0] + count[0] - 1, first[1], ...; sum(count)."""
    before = np.cumsum(count) - count
    return np.repeat(first - before, count) + np.arange(count.sum())


def _join(
    found: list[tuple[np.ndarray, np.ndarray, np.ndarray]],
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    found = [(np.zeros(0, dtype=np.int64),) * 2 + (np.zeros(0),), *found]
    det, gt, iou = (np.concatenate(column) for column in zip(*found, strict=True))
    return det, gt, iou


def _box_iou(det: np.ndarray, gt: np.ndarray, crowd: np.ndarray) -> np.ndarray:
    """IoU of (4, P) with (4, P) boxes, (P,), in pycocotools' order of operations."""
    # Without the overlap in the numerator there is nothing to divide: `where` avoids 0 / 0 for
    # empty boxes.
    overlap = _box_overlap(det, gt)
    det_area, gt_area = det[2] * det[3], gt[2] * gt[3]
    union = np.where(crowd, det_area, det_area + gt_area - overlap)
    return np.divide(overlap, union, out=np.zeros(len(overlap)), where=overlap > 0)


def _box_overlap(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Intersection area of (4, P) and (4, P) boxes, (P,)."""
    low = np.maximum(one[:2], other[:2])
    width, height = np.maximum(np.minimum(one[:2] + one[2:], other[:2] + other[2:]) - low, 0)
    return width * height


def _mask_iou(
    det: np.ndarray,
    gt: np.ndarray,
    det_key: np.ndarray,
    det_masks: RleMasks,
    gt_masks: RleMasks,
    gt_crowd: np.ndarray,
) -> np.ndarray:
    """IoU of (P,) pairs of masks, a block of keys at a time."""
    # Detections are sorted by class, then score; pycocotools is called per image and class. Stable,
    # so that pairs of a detection stay adjacent.
    order = np.argsort(det_key[det], kind="stable")
    det, gt = det[order], gt[order]
    bounds = np.append(np.flatnonzero(np.diff(det_key[det], prepend=-1)), len(det))
    iou = np.zeros(len(det))
    for first in range(0, len(bounds) - 1, _KEYS):
        # One more bound than keys: the end of the last key is the start of the next block.
        some = bounds[first : first + _KEYS + 1]
        pairs = order[some[0] : some[-1]]
        part = slice(some[0], some[-1])
        masks = det_masks, gt_masks, gt_crowd
        iou[pairs] = _mask_iou_of_keys(det[part], gt[part], some[:-1] - some[0], *masks)
    return iou


def _mask_iou_of_keys(
    det: np.ndarray,
    gt: np.ndarray,
    start: np.ndarray,
    det_masks: RleMasks,
    gt_masks: RleMasks,
    gt_crowd: np.ndarray,
) -> np.ndarray:
    """IoU of (p,) pairs sorted by key, with one call of pycocotools per key.

    Args:
        det (ndarray): (p,), the pairs of each detection adjacent.
        gt (ndarray): (p,).
        start (ndarray): first pair of each key.
        det_masks (RleMasks): masks of all detections.
        gt_masks (RleMasks): masks of all objects, sorted by key.
        gt_crowd (ndarray): (G,) bool.
    """
    new = np.diff(det, prepend=-1) != 0
    row, base, stop = np.cumsum(new) - 1, gt.min(), gt.max() + 1
    rows, columns = det_masks.to_dicts(det[new]), gt_masks.to_dicts(slice(base, stop))
    crowd = gt_crowd[base:stop].astype(np.uint8)
    # The detections of a key are adjacent in `rows`, and its objects in `columns`.
    size = np.diff(start, append=len(det))
    top, bottom = row[start], row[start + size - 1] + 1
    left, right = np.minimum.reduceat(gt, start) - base, np.maximum.reduceat(gt, start) - base + 1
    corners = zip(*(each.tolist() for each in (top, bottom, left, right)), strict=True)
    found = [mask_util.iou(rows[t:b], columns[s:e], crowd[s:e]).ravel() for t, b, s, e in corners]
    width, number = right - left, (bottom - top) * (right - left)
    # The results of all calls are concatenated, row by row: this is the position that row 0 and
    # column 0 of a key's matrix would have.
    corner = np.cumsum(number) - number - top * width - left
    place = np.repeat(corner, size) + row * np.repeat(width, size) + gt - base
    return np.concatenate(found)[place]


def _rank_in_group(group: np.ndarray) -> np.ndarray:
    """Number of earlier entries with the same value for each entry, (len(group),) int64."""
    order = np.argsort(group, kind="stable")
    size = np.unique(group, return_counts=True)[1]
    rank = np.empty(len(group), dtype=np.int64)
    rank[order] = np.arange(len(group)) - np.repeat(np.cumsum(size) - size, size)
    return rank
