"""AP of the calibrations of a sweep."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Mapping, Sequence

from ..analysis.score_table import Scores
from ..files import as_file_name
from ..lvis.evaluate import LvisResult, evaluate_lvis
from ..lvis.ground_truth import LvisGroundTruth
from .detections_folder import SweepDetections
from .union import is_evaluated

logger = logging.getLogger(__name__)


def sweep_results(
    swept: SweepDetections,
    ground_truth: LvisGroundTruth,
    tasks: Sequence[str] = ("bbox", "segm"),
) -> dict[str, dict[str, LvisResult]]:
    """Evaluate every calibration of a sweep, without a network.

    Args:
        swept (SweepDetections): see `sweep`.
        ground_truth (LvisGroundTruth): annotations of the same data set.
        tasks (Sequence[str]): "bbox" and "segm"; masks are skipped if either side has none.

    Returns:
        dict: name -> task -> result, in the order of the calibrations. "segm" is missing for a
        calibration without some mask that the evaluation needs (`sweep_stored`).

    Raises:
        ValueError: the ground truth belongs to another data set.
    """
    results: dict[str, dict[str, LvisResult]] = {}
    if "segm" in tasks and (ground_truth.masks is None or not swept.has_masks):
        logger.info("The model or the annotations have no masks: only boxes are evaluated.")
        tasks = [task for task in tasks if task != "segm"]
    for name in swept.names:
        detections = swept.detections(name)
        own_tasks = list(tasks)
        missing = swept.missing_masks(name)
        if "segm" in own_tasks and missing:
            # Not all detections, because those that the evaluation drops need no mask.
            evaluated = is_evaluated(ground_truth, detections.image_id, detections.category).sum()
            logger.warning(
                "The masks of %s are not evaluated: %d of the %d detections that the evaluation "
                "uses (%.2f %%) have no stored mask. Name it in the sweep that stores.",
                *(name, missing, evaluated, 100 * missing / evaluated),
            )
            own_tasks.remove("segm")
        results[name] = {task: evaluate_lvis(ground_truth, detections, task) for task in own_tasks}
        scores = [f"{task} {result.as_dict()['AP']:.2f}" for task, result in results[name].items()]
        logger.info("AP of %s: %s", name, ", ".join(scores))
    return results


def evaluate_sweep(
    swept: SweepDetections,
    ground_truth: LvisGroundTruth,
    tasks: Sequence[str] = ("bbox", "segm"),
    *,
    per_class_folder: str | os.PathLike[str] | None = None,
) -> dict[str, dict[str, dict[str, float]]]:
    """Like `sweep_results`, but only figures: name -> task -> metric -> percent.

    Args:
        swept, ground_truth, tasks: see `sweep_results`.
        per_class_folder (PathLike): gets per_class_TASK_NAME.csv, AP of each class; None: no files.
    """
    results = sweep_results(swept, ground_truth, tasks)
    if per_class_folder is not None:
        for name, by_task in results.items():
            for task, result in by_task.items():
                file_name = as_file_name(f"per_class_{task}_{name}.csv")
                result.to_csv(os.path.join(per_class_folder, file_name))
    return {
        name: {task: dict(result.as_dict()) for task, result in by_task.items()}
        for name, by_task in results.items()
    }


def best_of_grid(
    rows: Mapping[str, Scores], members: Sequence[str], task: str = "bbox", metric: str = "AP"
) -> str:
    """The calibration of a grid with the highest box AP; the first of equal ones.

    If a parameter is chosen on the evaluated images, its AP is too optimistic: choose it on others.

    Args:
        rows (Mapping): name -> task -> metric -> percent, as `evaluate_sweep` returns them.
        members (Sequence[str]): at least one name.
        task, metric (str): the figure to maximise.

    Example:
        >>> rows = {"a": {"bbox": {"AP": 1.0}}, "b": {"bbox": {"AP": 2.0}}}
        >>> best_of_grid(rows, ["a", "b"])
        'b'
    """

    def height(name: str) -> float:
        value = rows[name][task][metric]
        # Comparisons with NaN are False, so `max` would depend on the order.
        return -math.inf if math.isnan(value) else value

    return max(members, key=height)
