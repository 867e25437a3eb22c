"""Training a second stage: its checks, frozen parameters and new classifiers.

MODEL.LOGN.SECOND_STAGE names the stage, MODEL.WEIGHTS the checkpoint of the first stage.

Shapes: K foreground classes, C classifier outputs.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
from detectron2.config import CfgNode
from detectron2.modeling import ROI_HEADS_REGISTRY
from torch import Tensor, nn

from ..errors import UserError
from ..modeling import (
    LogNCascadeROIHeads,
    LogNRes5ROIHeads,
    LogNROIHeads,
    find_box_predictors,
)
from ..modeling.box_predictors import num_classes_of, unwrapped
from ..modeling.second_stages import SecondStage, get_second_stage
from ..sites import ROI_HEADS, config_site
from .images import classifies_images

_HEADS = (LogNROIHeads, LogNRes5ROIHeads, LogNCascadeROIHeads)


def check_second_stage(cfg: CfgNode) -> None:
    """Find mistakes before a training.

    Raises:
        KeyError: unknown name.
        ValueError: no first stage is given, or the head has no such second stage.
    """
    name = cfg.MODEL.LOGN.SECOND_STAGE
    stage = get_second_stage(name)
    if stage is None:
        return
    if not cfg.MODEL.WEIGHTS:
        raise UserError(
            f"MODEL.LOGN.SECOND_STAGE is {name}, but MODEL.WEIGHTS is empty. Name the checkpoint "
            "of the first stage, for example output/FIRST/model_final.pth."
        )
    if classifies_images(cfg):  # whose head can learn scales
        return
    if config_site(cfg) is not ROI_HEADS:
        raise UserError(
            f"MODEL.LOGN.SECOND_STAGE is {name}, but second stages are for R-CNN and classifiers, "
            f"and MODEL.META_ARCHITECTURE is {cfg.MODEL.META_ARCHITECTURE}. Leave it empty."
        )
    if stage.scales and not issubclass(ROI_HEADS_REGISTRY.get(cfg.MODEL.ROI_HEADS.NAME), _HEADS):
        raise UserError(
            f"MODEL.LOGN.SECOND_STAGE lws needs our RoI heads, but MODEL.ROI_HEADS.NAME is "
            f"{cfg.MODEL.ROI_HEADS.NAME}. Set LogNROIHeads, LogNCascadeROIHeads or "
            "LogNRes5ROIHeads, or a subclass of them; the weights stay the same."
        )


def freeze(model: nn.Module, stage: SecondStage) -> None:
    """Freeze everything that the stage does not train, in place; frozen batch norm stays in
    evaluation mode.

    Args:
        model (nn.Module): a detector.
        stage (SecondStage): the second stage.

    Raises:
        ValueError: the model lacks the parts that the stage trains.
    """
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(stage.trains(name))
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise UserError(
            f"This model has no {' or '.join(stage.trained)} to train. The second stages are for "
            "heads with a classifier named cls_score."
        )
    for name, module in model.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and not stage.trains(name):
            # Setting the model to training mode changes it, so each batch sets it back.
            module.register_forward_pre_hook(_in_evaluation_mode)
    if stage.scales:
        for predictor in find_box_predictors(model):
            _fix_others(predictor)


@contextmanager
def loading_all_that_is_frozen(model: nn.Module) -> Iterator[None]:
    """Check that the weights loaded in this context contain every frozen parameter.

    A frozen parameter that the weights lack would stay at its random initial value, as all heads
    would with weights of a backbone alone.

    Args:
        model (nn.Module): after `freeze`, distributed or not.

    Raises:
        ValueError: some were not loaded.
    """
    frozen = {
        name: parameter.detach()
        for name, parameter in unwrapped(model).named_parameters()
        if not parameter.requires_grad
    }
    # Detectron2 only logs missing parameters. NaN marks them: no checkpoint holds it throughout.
    for parameter in frozen.values():
        parameter.fill_(torch.nan)
    yield
    missing = [name for name, parameter in frozen.items() if parameter.isnan().all()]
    if missing:
        raise UserError(
            f"{len(missing)} of {len(frozen)} parameters that this second stage does not train are "
            f"not in MODEL.WEIGHTS, or of another shape there: {', '.join(missing[:5])}"
            f"{', ...' if len(missing) > 5 else ''}. Give the first stage's model_final.pth."
        )


def optimizer_config(cfg: CfgNode) -> CfgNode:
    """The config for the optimizer: scales have no weight decay.

    Weight decay would pull them to 0 instead of 1, including the background's, which must not
    change.
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
    """Give the classifiers these weights; everything else stays unchanged."""
    for layer, state in zip(_classifiers(model), states):
        for name, _ in list(layer.named_buffers()):
            if name not in state:  # a folded gain from the checkpoint
                setattr(layer, name, None)
        layer.load_state_dict(state)


def _classifiers(model: nn.Module) -> list[nn.Module]:
    return [predictor.cls_score for predictor in find_box_predictors(unwrapped(model))]


def _in_evaluation_mode(module: nn.Module, args: tuple) -> None:
    module.eval()


def _fix_others(predictor: nn.Module) -> None:
    """Train only the factors of the K foreground classes."""
    # By the gradient: a parameter can be frozen only as a whole.
    scale, num_classes = predictor.cls_score.class_scale, num_classes_of(predictor)
    learns = torch.arange(len(scale)) < num_classes
    scale.register_hook(lambda gradient: gradient * learns.to(gradient.device))
