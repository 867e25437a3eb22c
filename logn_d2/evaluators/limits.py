"""Temporarily raising a detector's limits, as fixed AP needs."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from torch import nn

from ..errors import UserError
from ..modeling.box_predictors import find_box_predictors


@contextlib.contextmanager
def detection_limits(
    model: nn.Module, *, detections_per_image: int = 1000, score_threshold: float = 1e-7
) -> Iterator[nn.Module]:
    """Context manager in which a detector returns more detections than usual.

    Args:
        model (nn.Module): a model with box predictors.
        detections_per_image (int): limit per image; negative returns all above the threshold. The
            time for masks and the size of stored detections grow with it.
        score_threshold (float): minimum score, exclusive.

    Yields:
        nn.Module: the model; its own limits are restored afterwards.

    Raises:
        ValueError: the model has no box predictor, or the threshold is negative.

    Example:
        >>> with detection_limits(model, detections_per_image=1000):  # doctest: +SKIP
        ...     evaluator = LVISFormEvaluator("lvis_v1_val", max_dets=-1, max_dets_per_class=10_000)
        ...     inference_on_dataset(model, loader, evaluator)
    """
    if score_threshold < 0:
        raise UserError(f"score_threshold is {score_threshold}, expected a score of at least 0.")
    limits = {"test_score_thresh": score_threshold, "test_topk_per_image": detections_per_image}
    predictors = find_box_predictors(model)
    # Of every predictor, because the stages of a cascade may have different limits.
    before = [{name: getattr(each, name) for name in limits} for each in predictors]
    try:
        for predictor in predictors:
            vars(predictor).update(limits)
        yield model
    finally:
        for predictor, own in zip(predictors, before, strict=True):
            vars(predictor).update(own)
