"""The outputs of a box predictor, and the combination of a cascade's stages.

Shapes: N images, R RoIs of all images, Ri of image i, K foreground classes, S stages.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from detectron2.structures import Instances
from torch import Tensor, nn

from ..core.affine import Background
from ..errors import UserError, check_choice
from .box_predictors import background_of, has_sigmoid_scores, predictor_fingerprint
from .fast_rcnn import Predictions

AVERAGES = ("probs", "logits")
"""The outputs of a cascade's stages that can be averaged."""


@dataclass(frozen=True)
class StageOutput:
    """Outputs of one box predictor.

    Attributes:
        predictor (nn.Module): the box predictor.
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
        """N tensors (Ri,) of classes, K for background; None if the RoIs are not matched."""
        return [getattr(proposals, "gt_classes", None) for proposals in self.proposals]

    @property
    def background(self) -> Background:
        """Position of the background column."""
        return background_of(self.predictor)

    @property
    def site(self) -> str | None:
        """The class of a detector without box predictors; None for box predictors."""
        return None

    @property
    def has_sigmoid_scores(self) -> bool:
        """Whether scores are sigmoids of the logits instead of their softmax."""
        return has_sigmoid_scores(self.predictor)

    def fingerprint(self) -> Tensor | None:
        """Fingerprint of the classifier's weights, (C,); None if they can't be identified."""
        return predictor_fingerprint(self.predictor)


def combine_stages(stages: Sequence[StageOutput], average: str = "probs") -> list[Tensor]:
    """Class probabilities of a cascade.

    Args:
        stages (Sequence[StageOutput]): S stages, of the same RoIs.
        average (str): "probs" averages each stage's calibrated probabilities (Detectron2); "logits"
            averages the calibrated logits and then takes probabilities (the released LogN code).

    Returns:
        list[Tensor]: N tensors (Ri, K + 1).

    Raises:
        ValueError: an unknown average; averaged logits need our predictors.
    """
    check_choice("average", average, AVERAGES)
    weight = 1.0 / len(stages)
    if average == "probs":
        probs = [s.predictor.predict_probs(s.predictions, s.proposals) for s in stages]
        # The operations of CascadeROIHeads, bit for bit: a sum from 0 on, times 1 / S.
        return [sum(of_image) * weight for of_image in zip(*probs)]
    # Detectron2's predictors have no calibrated logits apart from their probabilities.
    plain = next((s.predictor for s in stages if not hasattr(s.predictor, "calibrated")), None)
    if plain is not None:
        raise UserError(
            f"The logits of a {type(plain).__name__} can't be averaged over stages: that needs "
            "LogNFastRCNNOutputLayers (MODEL.ROI_HEADS.NAME LogNCascadeROIHeads). Set "
            "MODEL.LOGN.CASCADE_AVERAGE to probs, or use these heads."
        )
    # Each stage is calibrated with its own statistics before the mean: their logits differ in
    # scale.
    logits = sum(s.predictor.calibrated(s.predictions)[0] for s in stages) * weight
    last = stages[-1]
    return list(last.predictor.uncalibrated_probs((logits, *last.predictions[1:]), last.proposals))
