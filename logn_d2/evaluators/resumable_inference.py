"""An inference pass that resumes where it was killed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from detectron2.evaluation import inference_on_dataset
from detectron2.utils import comm
from torch import nn

from ..passes.resume import BatchLoader, LoaderFactory, loader_from, pass_digest
from .lvis_form import LVISFormEvaluator


def resumable_inference(
    model: nn.Module,
    loader: BatchLoader | LoaderFactory,
    evaluator: LVISFormEvaluator,
    *,
    settings: Mapping[str, Any] | None = None,
    resume: bool | None = None,
) -> dict[str, Any]:
    """Run `inference_on_dataset` without the batches that an interrupted pass has done.

    Args:
        model (nn.Module): the detector, with its weights loaded. With other weights the pass starts
            from the beginning.
        loader (Iterable or Callable): batches in the same order each time; or a function from the
            number of batches to skip to a loader, see `build_evaluation_loader`, which saves
            loading them.
        evaluator (LVISFormEvaluator): with `output_dir`, and `resume=True` to resume.
        settings (Mapping): other settings that determine the detections, such as thresholds.
        resume (bool | None): resume an interrupted pass; None follows the evaluator's own setting.

    Returns:
        dict: the evaluator's results.

    Example:
        >>> evaluator = LVISFormEvaluator("lvis_v1_val", output_dir="output/inference", resume=True)
        ... # doctest: +SKIP
        >>> results = resumable_inference(model, loader, evaluator)  # doctest: +SKIP
    """
    whole = loader_from(loader, 0)
    # The number of processes determines which images a process has.
    decisive = {"processes": comm.get_world_size(), **(settings or {})}
    # Before inference, which calls `reset`: that must find the digest already.
    done = evaluator.start(pass_digest(model, whole, decisive), resume)
    return inference_on_dataset(model, loader_from(loader, done) if done else whole, evaluator)
