"""Average precision as LVIS defines it, equal to lvis-api and much faster.

The steps, in the order of lvis-api:

1. the 300 best detections of each image over all classes are kept;
2. detections whose class is neither annotated nor listed as absent in their image are dropped;
3. detections are matched to objects, see `matching`;
4. an unmatched detection is a false positive, unless its area is outside the area range or its
   class is not exhaustively annotated in its image;
5. precision is read at 101 recalls for each class, threshold and area range, and averaged over
   the classes that have objects.

Shapes: N images, D detections, K foreground classes, A = 4 area ranges (all, small, medium,
large), T = 10 thresholds of IoU. Precision and recall are in [0, 1]; NaN where there is no object.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from ..errors import check_choice
from .checks import check_detections
from .detections import Detections
from .engines import ENGINES, lvis_api
from .ground_truth import LvisGroundTruth
from .matches import match_lvis
from .result import LvisResult


def evaluate_lvis(
    ground_truth: LvisGroundTruth,
    detections: Detections,
    iou_type: str = "bbox",
    *,
    max_dets: int | None = None,
    max_dets_per_class: int = -1,
    engine: str = "fast",
    frequency_groups: Sequence[str] | None = None,
    class_groups: Mapping[str, Sequence[str | int]] | None = None,
) -> LvisResult:
    """Compute LVIS AP.

    This differs from lvis-api in two points, on purpose. In lvis-api, a detection matched to the
    object with annotation id 0 counts as a false positive; and among equal scores the detection
    given first ranks higher, where here box and mask decide: see `Detections.canonical`.

    Args:
        ground_truth (LvisGroundTruth): the annotations.
        detections (Detections): detections in any of its images; all objects of an image without
            detections are missed.
        iou_type (str): "bbox" or "segm"; the area of a detection is that of its box or mask.
        max_dets (int | None): number of best detections kept per image; negative keeps all. None
            means 300 in LVIS format and all in COCO format, whose rule has no such limit.
        max_dets_per_class (int): number of these kept per class over all images; negative keeps
            all. For fixed AP see `evaluate_fixed_ap`.
        engine (str): "fast", or "lvis" for lvis-api itself, which must be installed.
        frequency_groups (Sequence[str] | None): (K,) group of each class; by default the
            ground truth's.
        class_groups (Mapping | None): further groups: name -> class names, or category ids of the
            json. A class may be in several or in none.

    Returns:
        LvisResult: per class, per group and overall.

    Raises:
        ValueError: the detections do not belong to the ground truth or hold impossible values.

    Example:
        >>> truth = LvisGroundTruth.from_dict({
        ...     "images": [{"id": 7, "neg_category_ids": [], "not_exhaustive_category_ids": []}],
        ...     "categories": [{"id": 1, "name": "cat", "frequency": "r"}],
        ...     "annotations": [
        ...         {"id": 1, "image_id": 7, "category_id": 1, "bbox": [0, 0, 4, 4], "area": 16}
        ...     ],
        ... })
        >>> result = evaluate_lvis(truth, Detections([7], [0], [0.9], [[0, 0, 4, 3]]))
        >>> round(result.metrics["AP50"], 6), round(result.metrics["AP"], 6)
        (1.0, 0.6)
    """
    check_choice("engine", engine, ENGINES)
    options = dict(
        max_dets=max_dets,
        max_dets_per_class=max_dets_per_class,
        frequency_groups=frequency_groups,
        class_groups=class_groups,
    )
    if engine == "fast":
        return match_lvis(ground_truth, detections, iou_type, **options).result()
    # lvis-api gives only precision and recall; object counts, names and groups come from our own
    # result for no detections.
    nothing = match_lvis(ground_truth, Detections.empty(), iou_type, **options).result()
    check_detections(ground_truth, detections, iou_type)
    max_dets = ground_truth.limit(max_dets)
    # lvis-api has no limit per class, and breaks ties by the given order: cutting and sorting first
    # makes both engines rank the same detections in the same order.
    kept = detections.top_per_image(max_dets).top_per_class(max_dets_per_class)
    precision, recall = lvis_api(ground_truth, kept.canonical(), iou_type, max_dets)
    return replace(nothing, precision=precision, recall=recall)
