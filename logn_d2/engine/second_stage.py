"""Second stages of decoupled training: which part of a trained detector is trained on, and how.

Kang et al. (ICLR 2020) retrain the classifier alone, from a detector that was trained as usual.
MODEL.LOGN.SECOND_STAGE names the stage, MODEL.WEIGHTS the checkpoint of the first.

Shapes: K foreground classes, C classifier outputs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from detectron2.config import CfgNode
from torch import Tensor, nn

from ..modeling import find_box_predictors
from ..modeling.box_predictors import num_classes_of, unwrapped

__all__ = [
    "SECOND_STAGES",
    "SecondStage",
    "check_second_stage",
    "classifier_state",
    "freeze",
    "get_second_stage",
    "optimizer_config",
    "restore_classifiers",
]


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
    "lws": SecondStage(("cls_score.gain",), scales=True),
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
        raise KeyError(
            f"Unknown MODEL.LOGN.SECOND_STAGE '{name}'. Known: {known}, and '' for none."
        )
    return SECOND_STAGES.get(name)


def check_second_stage(cfg: CfgNode) -> None:
    """Finds mistakes before a training.

    Raises:
        KeyError: unknown name.
        ValueError: there is no first stage to go on from, or a head that can't be trained so.
    """
    name = cfg.MODEL.LOGN.SECOND_STAGE
    stage = get_second_stage(name)
    if stage is None:
        return
    if not cfg.MODEL.WEIGHTS:
        raise ValueError(
            f"MODEL.LOGN.SECOND_STAGE is {name}, but MODEL.WEIGHTS is empty. Name the checkpoint "
            "of the first stage, for example output/FIRST/model_final.pth."
        )
    if stage.scales and not cfg.MODEL.ROI_HEADS.NAME.startswith("LogN"):
        raise ValueError(
            f"MODEL.LOGN.SECOND_STAGE lws needs our RoI heads, but MODEL.ROI_HEADS.NAME is "
            f"{cfg.MODEL.ROI_HEADS.NAME}. Set LogNROIHeads, LogNCascadeROIHeads or "
            "LogNRes5ROIHeads; the weights stay the same."
        )


def freeze(model: nn.Module, stage: SecondStage) -> None:
    """Freezes what the stage does not train, in place; frozen batch norm stays in evaluation mode.

    Args:
        model (nn.Module): a detector.
        stage (SecondStage): what is trained.

    Raises:
        ValueError: the model has nothing that the stage trains.
    """
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(stage.trains(name))
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ValueError(
            f"This model has no {' or '.join(stage.trained)} to train. The second stages are for "
            "heads with a classifier named cls_score."
        )
    for name, module in model.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and not stage.trains(name):
            # Whoever sets the model to training mode, it is back before its next batch.
            module.register_forward_pre_hook(_in_evaluation_mode)
    if stage.scales:
        for predictor in find_box_predictors(model):
            _fix_others(predictor)


def optimizer_config(cfg: CfgNode) -> CfgNode:
    """The config with which the optimizer is built: scales have no weight decay.

    It would pull them to 0 and not to 1, and the background's, which must stay, with them.
    """
    stage = get_second_stage(cfg.MODEL.LOGN.SECOND_STAGE)
    if stage is None or not stage.scales:
        return cfg
    cfg = cfg.clone()
    cfg.defrost()
    cfg.SOLVER.WEIGHT_DECAY = 0.0
    return cfg


def classifier_state(model: nn.Module) -> list[dict[str, Tensor]]:
    """A copy of the classifiers' weights, for `restore_classifiers`.

    Args:
        model (nn.Module): a detector, distributed or not.

    Returns:
        list[dict[str, Tensor]]: one state dict for each of the S box predictors.
    """
    return [
        {name: value.clone() for name, value in layer.state_dict().items()}
        for layer in _classifiers(model)
    ]


def restore_classifiers(model: nn.Module, states: Iterable[Mapping[str, Tensor]]) -> None:
    """Gives the classifiers these weights; all else stays as it is."""
    for layer, state in zip(_classifiers(model), states):
        layer.load_state_dict(state)


def _classifiers(model: nn.Module) -> list[nn.Module]:
    return [predictor.cls_score for predictor in find_box_predictors(unwrapped(model))]


def _in_evaluation_mode(module: nn.Module, args: tuple) -> None:
    module.eval()


def _fix_others(predictor: nn.Module) -> None:
    """Only the K foreground classes' factors learn."""
    gain, num_classes = predictor.cls_score.gain, num_classes_of(predictor)
    learns = torch.arange(len(gain)) < num_classes
    gain.register_hook(lambda gradient: gradient * learns.to(gradient.device))
