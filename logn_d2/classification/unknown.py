"""Unknown images as a `DatasetEvaluator`.

Shapes: N known images, M unknown ones, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from ..core import AffineCalibration
from ..ood import OOD_SCORES, evaluate_ood, score_figures, score_logits
from .logits import LogitsCollector, StoredLogits


class OODEvaluator(LogitsCollector):
    """Evaluator of the separation of unknown from known images by scores of their logits.

    Its inputs are the unknown images. `logn sweep --ood` compares many calibrations at once.

    Args:
        known (StoredLogits): raw logits (N, K) of the known set, for example from `collect_logits`.
        scores (Sequence[str]): names of `logn_d2.ood.OOD_SCORES`.
        calibration (AffineCalibration): applied to the logits of both sets; None for none.

    Example:
        >>> import torch
        >>> known = StoredLogits(torch.tensor([[4.0, 0.0], [3.0, 0.0]]), torch.tensor([0, 0]))
        >>> evaluator = OODEvaluator(known, scores=["max_logit"])
        >>> evaluator.reset()
        >>> evaluator.process([{"image_id": 7}], [{"logits": torch.tensor([1.0, 0.0])}])
        >>> evaluator.evaluate()["ood"]["max_logit auroc"]
        100.0
    """

    def __init__(
        self,
        known: StoredLogits,
        scores: Sequence[str] = tuple(OOD_SCORES),
        calibration: AffineCalibration | None = None,
    ) -> None:
        self._known, self._calibration = known, calibration
        self._scores = tuple(scores)

    def evaluate(self) -> dict[str, dict[str, float]]:
        """``{"ood": {"SCORE METRIC": percent}}``, with the names of `OODResult`.

        Empty on all processes but the first.

        Raises:
            KeyError: an unknown score; the message lists the known ones.
        """
        found = super().evaluate()
        if not found:
            return {}
        sides = [self._calibrated(each.logits) for each in (self._known, found["logits"])]
        results = {
            name: evaluate_ood(*(score_logits(name, side) for side in sides))
            for name in self._scores
        }
        return {"ood": score_figures(results)}

    def _calibrated(self, logits: Tensor) -> np.ndarray:
        # Stored logits are on the CPU, whatever the device of the model.
        calibrated = logits if self._calibration is None else self._calibration.cpu()(logits)
        return calibrated.detach().numpy()
