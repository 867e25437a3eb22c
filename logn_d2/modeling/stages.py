"""What one box predictor said, and how the stages of a cascade are combined.

Shapes: N images, R RoIs of all images, Ri of image i, K foreground classes, S stages.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from detectron2.structures import Instances
from torch import Tensor, nn

from ..core.affine import Background
from ..errors import UserError
from .box_predictors import background_of, has_sigmoid_scores, predictor_fingerprint
from .fast_rcnn import Predictions

__all__ = ["RecordedStage", "combine_stages"]


@dataclass(frozen=True)
class RecordedStage:
    """Outputs of one box predictor.

    Attributes:
        predictor (nn.Module): which one.
        predictions (tuple[Tensor, Tensor]): its raw logits (R, K + 1) and box deltas.
        proposals (list[Instances]): N images, Ri RoIs each, in the order of the logits.
    """

    predictor: nn.Module
    predictions: Predictions
    proposals: list[Instances]

    @property
    def logits(self) -> Tensor:
        """(R, K + 1) raw logits."""
        return self.predictions[0]

    @property
    def lengths(self) -> list[int]:
        """Ri of each image."""
        return [len(proposals) for proposals in self.proposals]

    @property
    def labels(self) -> list[Tensor | None]:
        """N tensors (Ri,) of classes, K for background; None where RoIs are not matched."""
        return [getattr(proposals, "gt_classes", None) for proposals in self.proposals]

    @property
    def background(self) -> Background:
        """Where the background column is."""
        return background_of(self.predictor)

    @property
    def site(self) -> str | None:
        """The class of a detector without box predictors; None for box predictors."""
        return None

    @property
    def has_sigmoid_scores(self) -> bool:
        """Whether scores are sigmoids of the logits, and not their softmax."""
        return has_sigmoid_scores(self.predictor)

    def fingerprint(self) -> Tensor | None:
        """(C,) of the classifier's weights; None where they can't be told."""
        return predictor_fingerprint(self.predictor)


def combine_stages(stages: Sequence[RecordedStage], average: str = "probs") -> list[Tensor]:
    """Class probabilities of a cascade.

    Args:
        stages (Sequence[RecordedStage]): S stages, of the same RoIs.
        average (str): "probs" averages each stage's calibrated probabilities (Detectron2); "logits"
            averages the calibrated logits and then takes probabilities (the released LogN code).

    Returns:
        list[Tensor]: N tensors (Ri, K + 1).

    Raises:
        ValueError: another average; averaged logits need our predictors.
    """
    weight = 1.0 / len(stages)
    if average == "probs":
        probs = [s.predictor.predict_probs(s.predictions, s.proposals) for s in stages]
        # Bit for bit what CascadeROIHeads does: a sum from 0 on, times 1 / S.
        return [sum(of_image) * weight for of_image in zip(*probs)]
    if average != "logits":
        raise UserError(f"average is {average!r}, expected 'probs' or 'logits'.")
    plain = next((s.predictor for s in stages if not hasattr(s.predictor, "calibrated")), None)
    if plain is not None:
        raise UserError(
            f"The logits of a {type(plain).__name__} can't be averaged over stages: that needs "
            "LogNFastRCNNOutputLayers (MODEL.ROI_HEADS.NAME LogNCascadeROIHeads). Set "
            "MODEL.LOGN.CASCADE_AVERAGE to probs, or use these heads."
        )
    logits = sum(s.predictor.calibrated(s.predictions)[0] for s in stages) * weight
    last = stages[-1]
    return list(last.predictor.uncalibrated_probs((logits, *last.predictions[1:]), last.proposals))
