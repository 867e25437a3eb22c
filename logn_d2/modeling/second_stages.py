"""The second stages of decoupled training: which part of a trained detector each of them trains.

Kang et al. (ICLR 2020) retrain the classifier alone, from a detector that was trained as usual.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ..errors import UnknownNameError

__all__ = ["SECOND_STAGES", "SecondStage", "get_second_stage"]


@dataclass(frozen=True)
class SecondStage:
    """One way to train a detector on.

    Attributes:
        trained (tuple[str, ...]): parts of the model that are trained, as parts of their
            parameters' names; everything else is frozen.
        renewed (bool): whether the classifier begins anew.
        scales (bool): whether all that is trained are factors of the foreground classes.
    """

    trained: tuple[str, ...]
    renewed: bool = False
    scales: bool = False

    def trains(self, name: str) -> bool:
        """Whether a parameter or module with this name is trained."""
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
"""Value of MODEL.LOGN.SECOND_STAGE -> what it means."""


def get_second_stage(name: str) -> SecondStage | None:
    """The second stage with this name; None for "".

    Raises:
        KeyError: unknown name; the message lists the known ones.
    """
    if name and name not in SECOND_STAGES:
        known = ", ".join(SECOND_STAGES)
        raise UnknownNameError(
            f"Unknown MODEL.LOGN.SECOND_STAGE '{name}'. Known: {known}, and '' for none."
        )
    return SECOND_STAGES.get(name)
