"""The second stages of decoupled training, each of which trains a part of a trained detector.

Kang et al. (ICLR 2020) retrain only the classifier of a detector that was trained as usual.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ..errors import check_known


@dataclass(frozen=True)
class SecondStage:
    """A second stage: the trained parts of a detector.

    Attributes:
        trained (tuple[str, ...]): trained parts of the model, as parts of parameter names;
            everything else is frozen.
        renewed (bool): whether the classifier is initialised again.
        scales (bool): whether only factors of the foreground classes are trained.
    """

    trained: tuple[str, ...]
    renewed: bool = False
    scales: bool = False

    def trains(self, name: str) -> bool:
        """Whether a parameter or module with this name is trained."""
        # Whole parts of the name, between dots: "cls_score" is no part of "my_cls_score".
        return any(f".{part}." in f".{name}." for part in self.trained)


SECOND_STAGES: Mapping[str, SecondStage] = {
    # Kang et al. 2020; as BAGS, with its loss.
    "crt": SecondStage(("cls_score",), renewed=True),
    # As the second stage of balanced softmax for detectors.
    "classifier": SecondStage(("cls_score",)),
    # Kang et al. 2020; on the weights, as in EQL v2's repository.
    "lws": SecondStage(("cls_score.class_scale",), scales=True),
    # As LOCE.
    "heads": SecondStage(("cls_score", "bbox_pred", "proposal_generator", "mask_head")),
}
"""Value of MODEL.LOGN.SECOND_STAGE -> the second stage."""


def get_second_stage(name: str) -> SecondStage | None:
    """The second stage with this name; None for "".

    Raises:
        KeyError: unknown name; the message lists the known ones.
    """
    if name:
        check_known("MODEL.LOGN.SECOND_STAGE", name, SECOND_STAGES)
    return SECOND_STAGES.get(name)
