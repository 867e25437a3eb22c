"""Box post-processing that processes only candidates that can become detections.

Detectron2 clips and gathers the boxes of all R x K candidates above the score threshold and runs
non-maximum suppression (NMS) on all of them, then keeps the best few hundred. NMS is greedy: a
candidate is suppressed only by ones with higher scores. So the survivors among the best M
candidates do not depend on the others, and if there are enough survivors, the others need no
processing. If too few survive, M grows until it includes all candidates. The result equals
Detectron2's bit for bit.

Shapes: R RoIs of an image, K foreground classes, P candidates above the threshold. Scores are in
[0, 1], boxes (x1, y1, x2, y2) in pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
import torchvision
from detectron2.modeling.roi_heads.fast_rcnn import fast_rcnn_inference
from detectron2.structures import Boxes, Instances
from torch import Tensor
from torchvision.ops import nms

# Candidates of the first attempt: per wanted detection, and the minimum. More would cost time in
# images where NMS suppresses little, fewer would need a second attempt.
CANDIDATES_PER_DETECTION = 3
MIN_CANDIDATES = 512
# Growth of the next attempt; if that covers all candidates, all are processed at once.
GROWTH = 4
# Neighbouring scores that are represented by their maximum, see _above_the_best.
CHUNK = 32


def fast_rcnn_inference_exact(
    boxes: Sequence[Tensor],
    scores: Sequence[Tensor],
    image_shapes: Sequence[tuple[int, int]],
    score_thresh: float,
    nms_thresh: float,
    topk_per_image: int,
) -> tuple[list[Instances], list[Tensor]]:
    """Detectron2's `fast_rcnn_inference`, faster for many candidates.

    Half-precision scores work too, which Detectron2 refuses outside of autocast.

    Args:
        boxes (Sequence[Tensor]): N images, each (R, K * 4), or (R, 4) for class-agnostic boxes.
        scores (Sequence[Tensor]): N images, each (R, K + 1), background last.
        image_shapes (Sequence[tuple[int, int]]): (height, width) of each image.
        score_thresh (float): candidates need a higher score.
        nms_thresh (float): IoU above which boxes of one class are suppressed.
        topk_per_image (int): detections to keep, best first; below 0 for all.

    Returns:
        tuple[list[Instances], list[Tensor]]: for each image the detections, and the row of each,
        counted without rows that have non-finite values.

    Example:
        >>> boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 9], [20, 20, 30, 30]])
        >>> scores = torch.tensor([[0.9, 0.1], [0.8, 0.2], [0.7, 0.3]])
        >>> (found,), (rows,) = fast_rcnn_inference_exact(
        ...     [boxes], [scores], [(40, 40)], 0.05, 0.5, 100
        ... )
        >>> rows.tolist()
        [0, 2]
    """
    limits = (score_thresh, nms_thresh, topk_per_image)
    if torch.jit.is_tracing():
        # The number of attempts depends on the scores, and a trace would freeze it.
        return fast_rcnn_inference(boxes, scores, image_shapes, *limits)
    found = [_inference_of_image(*image, *limits) for image in zip(boxes, scores, image_shapes)]
    return [instances for instances, _ in found], [rows for _, rows in found]


def _inference_of_image(
    boxes: Tensor,
    scores: Tensor,
    image_shape: tuple[int, int],
    score_thresh: float,
    nms_thresh: float,
    topk: int,
) -> tuple[Instances, Tensor]:
    boxes, scores = _finite_rows(boxes, scores)
    scores = scores[:, :-1]
    # Strictly above, as in Detectron2: a threshold of 0 drops scores that underflowed to 0.
    candidates = scores > score_thresh
    total = int(candidates.count_nonzero())
    few = spacing = None
    # Four coordinates per candidate: torchvision decides by the number of coordinates, not of
    # boxes.
    if 0 < total * 4 <= moving_limit(boxes.device.type):
        few = candidates.nonzero(as_tuple=True)
        spacing = _class_spacing(boxes, *few, image_shape)
    # Below 0 every survivor is wanted, so there is nothing to save.
    wanted = total if topk < 0 else max(CANDIDATES_PER_DETECTION * topk, MIN_CANDIDATES)
    while True:
        everything = wanted * GROWTH >= total
        if everything:
            rows, classes = few or candidates.nonzero(as_tuple=True)
        else:
            best = candidates & _above_the_best(scores, wanted)
            rows, classes = best.nonzero(as_tuple=True)
        some_boxes, some_scores = _clipped(boxes, rows, classes, image_shape), scores[rows, classes]
        # float32 as in Detectron2, which runs NMS in float32 even under autocast.
        keep = _class_wise_nms(some_boxes, some_scores.float(), classes, nms_thresh, spacing)
        enough = len(keep) >= topk
        # One NMS over shifted boxes sorts stably by score, so only the other mode depends on ties.
        settled = spacing is not None or _all_differ(some_scores[keep[: topk + 1]])
        if everything or (enough and settled):
            break
        # Enough survivors but a tie among them: only the complete set of candidates settles their
        # order.
        wanted = total if enough else wanted * GROWTH
    keep = keep[:topk] if topk >= 0 else keep
    result = Instances(image_shape)
    result.pred_boxes = Boxes(some_boxes[keep])
    result.scores = some_scores[keep]
    result.pred_classes = classes[keep]
    return result, rows[keep]


def _finite_rows(boxes: Tensor, scores: Tensor) -> tuple[Tensor, Tensor]:
    """Drop rows with values that are not finite."""
    # A sum reads the memory once and writes nothing. It is finite only if all values are; if it
    # overflows, the exact check below still gives the right answer.
    if bool(boxes.sum().isfinite() & scores.sum().isfinite()):
        return boxes, scores
    finite = boxes.isfinite().all(dim=1) & scores.isfinite().all(dim=1)
    return boxes[finite], scores[finite]


def _above_the_best(scores: Tensor, wanted: int) -> Tensor:
    """Mark at least the ``wanted`` best scores, and every score that ties with one of them, (R, K).

    The ``wanted``-th largest maximum over disjoint chunks is a bound that at least ``wanted``
    scores reach, and is much faster to find than the ``wanted``-th best score.
    """
    whole = scores.shape[1] // CHUNK * CHUNK
    maxima = [scores[:, :whole].unflatten(1, (-1, CHUNK)).amax(dim=2)] if whole else []
    maxima.append(scores[:, whole:])
    heads = torch.cat(maxima, dim=1).flatten()
    if len(heads) < wanted:
        # Too few chunks for a bound: exact, and cheap for so few scores.
        heads = scores.flatten()
    return scores >= heads.topk(wanted, sorted=False).values.min()


def _clipped(boxes: Tensor, rows: Tensor, classes: Tensor, image_shape: tuple[int, int]) -> Tensor:
    """(P, 4) float32 boxes of the candidates, inside the image."""
    per_class = boxes.reshape(len(boxes), boxes.shape[1] // 4, 4)
    # Gathering before clipping touches M boxes instead of all R x K.
    chosen = per_class[rows, 0 if per_class.shape[1] == 1 else classes]
    clipped = Boxes(chosen)
    clipped.clip(image_shape)
    return clipped.tensor


def _class_spacing(
    boxes: Tensor, rows: Tensor, classes: Tensor, image_shape: tuple[int, int]
) -> Tensor:
    """The distance by which torchvision's `batched_nms` separates classes, from *all* candidates.

    For few boxes it runs one NMS over boxes shifted by (largest coordinate + 1) times their class,
    for many boxes one NMS per class. The shift rounds the coordinates, so an overlap right at the
    threshold may fall on either side. Equal results need the same shift.

    Returns:
        Tensor: a scalar.
    """
    largest = _clipped(boxes, rows, classes, image_shape).max()
    return largest + torch.tensor(1).to(largest)


@lru_cache
def moving_limit(device_type: str) -> int:
    """Number of coordinates up to which `torchvision.ops.batched_nms` shifts boxes.

    Args:
        device_type (str): "cpu" or "cuda".
    """
    if device_type == "cpu":
        return 4000
    version = torchvision.__version__.split("+")[0].split(".")
    # Raised in https://github.com/pytorch/vision/pull/8925.
    return 100_000 if tuple(int(part) for part in version[:2]) >= (0, 22) else 20_000


def _class_wise_nms(
    boxes: Tensor, scores: Tensor, classes: Tensor, nms_thresh: float, spacing: Tensor | None
) -> Tensor:
    """Indices of survivors, best first. Without spacing, one NMS per class."""
    if spacing is not None:
        return nms(boxes + (classes.to(boxes) * spacing)[:, None], scores, nms_thresh)
    order = classes.argsort(stable=True)
    counts = torch.unique_consecutive(classes[order], return_counts=True)[1].tolist()
    groups = zip(order.split(counts), boxes[order].split(counts), scores[order].split(counts))
    survivors = [
        group[nms(group_boxes, group_scores, nms_thresh)] if len(group) > 1 else group
        for group, group_boxes, group_scores in groups
    ]
    # First by index, then by score: the order in which torchvision's own loop over classes leaves
    # them.
    keep = torch.cat([order[:0], *survivors]).sort().values
    return keep[scores[keep].sort(descending=True).indices]


def _all_differ(ranked: Tensor) -> bool:
    """Whether no two of these scores, given in descending order, are equal.

    After one NMS per class, Detectron2 sorts the survivors with an unstable sort: the places of
    equal scores depend on all survivors, so all of them have to be known.
    """
    return bool((ranked[1:] < ranked[:-1]).all())
