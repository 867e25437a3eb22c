"""Folding calibrations into the weights of box classifiers, for plain Detectron2.

Shapes: S cascade stages, K foreground classes, C = K + 1 logit columns, D feature channels.
"""

from __future__ import annotations

import itertools
import logging
import os
from collections.abc import Sequence

import torch
from detectron2.config import CfgNode
from torch import Tensor, nn

from ..core import (
    AffineCalibration,
    ClassificationLoss,
    CountsSource,
    LogitStatistics,
    fold_cosine,
    fold_linear,
)
from ..core.losses import SoftmaxLoss
from ..errors import UserError
from ..sites import ClassLayers, LogitSite
from ..source import source_of
from .attach import (
    Site,
    Source,
    calibration_of,
    check_fit,
    check_weights,
    chosen_calibrations,
    find_sites,
    release,
)
from .box_predictors import check_calibratable, unwrapped
from .class_scales import ScaledLinear, merge_class_scales
from .cosine import CosineLinear
from .fast_rcnn import LogNFastRCNNOutputLayers
from .feature_memory import LogNMemoryROIHeads
from .roi_heads import LogNCascadeROIHeads, LogNRes5ROIHeads, LogNROIHeads

logger = logging.getLogger(__name__)

# Without a calibration, each equals its Detectron2 parent in outputs and parameter names.
_TWINS = {
    LogNROIHeads: "StandardROIHeads",
    LogNMemoryROIHeads: "StandardROIHeads",
    LogNRes5ROIHeads: "Res5ROIHeads",
    LogNCascadeROIHeads: "CascadeROIHeads",
}
_SAME_AS_DETECTRON2 = (*_TWINS, LogNFastRCNNOutputLayers)


def fold(
    model: nn.Module,
    calibrations: Source = None,
    *,
    statistics: str | os.PathLike | LogitStatistics | None = None,
    counts: CountsSource = None,
    strict: bool = True,
    site: LogitSite | None = None,
) -> nn.Module:
    """Fold each calibration into the weights of the preceding classifier, in place.

    The model's raw logits become the calibrated ones, and its own calibration (from `attach` or
    from its config) is removed. A linear classifier stays linear, with the same keys in the state
    dict: the checkpoint does not need logn_d2. A `CosineLinear` gets one gain per class and still
    needs logn_d2. Softmax and sigmoid heads and torchvision's detectors are folded in the same way.
    To keep the unfolded model, fold a ``copy.deepcopy`` of it.

    A folded model is for inference: further training, collecting its statistics, or attaching the
    same calibration again would all start from calibrated logits.

    Args:
        model (nn.Module): a detector, distributed or not, with its weights loaded.
        calibrations: as for `attach`: a statistics file or its content, a calibration such as
            "norcal(gamma=0.6)", an AffineCalibration or a list of S. None for the model's own
            calibrations.
        statistics, counts, strict, site: as for `attach`.

    Returns:
        nn.Module: ``model``.

    Raises:
        ValueError: no calibration, or another number of them or of classes; a loss whose logits
            can't be calibrated; a classifier that does not end in a linear or cosine layer, or that
            shares its weights with another layer. The model is unchanged then.
        StatisticsError: the calibration in the model's config belongs to other weights.

    Example:
        >>> from detectron2.layers import ShapeSpec
        >>> from detectron2.modeling.box_regression import Box2BoxTransform
        >>> transform = Box2BoxTransform(weights=(10.0, 10.0, 5.0, 5.0))
        >>> predictor = LogNFastRCNNOutputLayers(
        ...     ShapeSpec(channels=8), box2box_transform=transform, num_classes=2
        ... )
        >>> _ = fold(predictor, AffineCalibration(torch.ones(2), torch.tensor([5.0, 7.0])))
        >>> predictor.cls_score.bias.tolist()
        [5.0, 7.0, 0.0]
    """
    sites = find_sites(model, site)
    check_calibratable(model)
    if calibrations is None and statistics is None:
        calibrations = [_carried(site) for site in sites]
    else:
        calibrations, _ = chosen_calibrations(
            sites, calibrations, None, statistics, counts=counts, strict=strict
        )
    check_fit(sites, calibrations)
    layers = [_last_layers(site.classifier) for site in sites]
    # A tied layer would be folded twice, or fold somebody else's outputs.
    for index, each in enumerate(layers):
        _check_weights_not_shared(model, each, index)
    # All are computed before any is changed, so that an error leaves the model unchanged.
    folded = [_all_folded(site.classifier, each) for site, each in zip(sites, calibrations)]
    for pair in zip(itertools.chain(*layers), itertools.chain(*folded)):
        _assign(*pair)
    # Read before the release, after which the model's own calibrations are gone.
    name = calibrations[0].name
    for site in sites:
        release(site.owner)
        if isinstance(site.classifier, nn.Module):
            # The scales are 1 by now; without them the state dict has Detectron2's keys.
            merge_class_scales(site.classifier)
        _release_loss(site.owner)
    logger.info("Folded %s: %d classes, %d stages", name, calibrations[0].num_classes, len(sites))
    return model


def parts_of_logn_d2(model: nn.Module) -> list[str]:
    """The parts of a folded model that still need logn_d2; empty if plain Detectron2 can run it.

    Args:
        model (nn.Module): a folded detector.

    Example:
        >>> parts_of_logn_d2(nn.Sequential(nn.ReLU(), CosineLinear(4, 3)))
        ['CosineLinear']
    """
    parts = {
        type(module).__name__
        for module in unwrapped(model).modules()
        if type(module) not in _SAME_AS_DETECTRON2 and _is_ours(module)
    }
    # Detectron2's cascade averages probabilities.
    if any(getattr(module, "cascade_average", "") == "logits" for module in model.modules()):
        parts.add("CASCADE_AVERAGE logits")
    return sorted(parts)


def plain_config(cfg: CfgNode, model: nn.Module) -> CfgNode:
    """The config of a folded model: without calibration, and without logn_d2 if possible.

    Args:
        cfg (CfgNode): the config that the model was built from.
        model (nn.Module): the model, folded.

    Returns:
        CfgNode: a changed copy. If `parts_of_logn_d2` is empty, it has Detectron2's own RoI heads
            and no MODEL.LOGN.
    """
    cfg = cfg.clone()
    cfg.defrost()
    if "LOGN" not in cfg.MODEL:
        return cfg
    if source_of(cfg).file or parts_of_logn_d2(model):
        if not any(isinstance(module, ClassificationLoss) for module in model.modules()):
            cfg.MODEL.LOGN.LOSS = ""
        cfg.MODEL.LOGN.STATISTICS = cfg.MODEL.LOGN.CALIBRATION = ""
        cfg.MODEL.LOGN.SECOND_STAGE = ""  # its trained scales are in the weights now
        return cfg
    twins = {heads.__name__: twin for heads, twin in _TWINS.items()}
    cfg.MODEL.ROI_HEADS.NAME = twins.get(cfg.MODEL.ROI_HEADS.NAME, cfg.MODEL.ROI_HEADS.NAME)
    # Detectron2's own config does not know the node and would refuse the file.
    del cfg.MODEL["LOGN"]
    return cfg


def _carried(site: Site) -> AffineCalibration:
    if calibration_of(site.owner) is None:
        raise UserError(
            "This model carries no calibration to fold. Attach one first, or give it to fold()."
        )
    check_weights(site.owner)  # otherwise first checked at a calibrated output
    return calibration_of(site.owner)


def _last_layer(predictor: nn.Module) -> nn.Linear:
    """The layer whose outputs are the logits."""
    layer = getattr(predictor, "cls_score", None)
    # Some projects put a projection in front of the classifier.
    while isinstance(layer, nn.Sequential) and len(layer):
        layer = layer[-1]
    # A subclass may use its weights in any way; only Linear's own forward can be folded.
    linear = getattr(type(layer), "forward", None) is nn.Linear.forward
    known = linear or isinstance(layer, (CosineLinear, ScaledLinear))
    if not known or "weight" not in layer._parameters:
        raise UserError(
            f"The classifier of this {type(predictor).__name__} ends in a {type(layer).__name__}; "
            "a calibration can be folded into a Linear or CosineLinear named cls_score, with plain "
            "parameters. Keep the calibration attached instead."
        )
    return layer


def _last_layers(classifier: nn.Module | ClassLayers) -> list[nn.Module]:
    """The layers that a calibration is folded into."""
    if isinstance(classifier, ClassLayers):
        return list(classifier.layers)
    return [_last_layer(classifier)]


def _all_folded(
    classifier: nn.Module | ClassLayers, calibration: AffineCalibration
) -> list[dict[str, Tensor]]:
    """New values of the parameters and buffers that change, for each of these layers."""
    if isinstance(classifier, ClassLayers):
        return classifier.folded(calibration)
    return [_folded(_last_layer(classifier), calibration)]


def _check_weights_not_shared(model: nn.Module, layers: Sequence[nn.Module], index: int) -> None:
    # By identity and not by name: tied weights have two names.
    own = {id(parameter) for layer in layers for parameter in layer.parameters(recurse=False)}
    everywhere = unwrapped(model).named_parameters(remove_duplicate=False)
    names = [name for name, parameter in everywhere if id(parameter) in own]
    if len(names) > len(own):
        raise UserError(
            f"The classifier of box predictor {index} shares its weights: {', '.join(names)} are "
            "the same tensors, and folding would change all of their layers. Give each its own."
        )


def _folded(layer: nn.Linear, calibration: AffineCalibration) -> dict[str, Tensor]:
    """New values of the parameters and buffers that change."""
    if isinstance(layer, CosineLinear):
        # The layer multiplies by its own temperature; its gain holds scales alone.
        gain, bias = fold_cosine(1.0, layer.bias, calibration, layer.out_features)
        if layer.factors is not None:
            # float64 and one rounding, as in `fold_linear`. The layer's own factors come before the
            # calibration.
            gain = (gain.double() * layer.factors.double()).to(gain.dtype)
        folded = {"gain": gain.to(layer.weight.device), "bias": bias.to(layer.weight.device)}
        scaled = layer.class_scale is not None
    else:
        scaled = isinstance(layer, ScaledLinear)
        # The scale is set to 1 below, so it goes into the weights first.
        weight = layer.weight * layer.class_scale[:, None] if scaled else layer.weight
        weight, bias = fold_linear(weight, layer.bias, calibration)
        folded = {"weight": weight, "bias": bias}
    if scaled:
        folded["class_scale"] = torch.ones_like(layer.class_scale)
    # A scale of 1 / sigma may push half-precision weights beyond 65,504.
    if not all(tensor.isfinite().all() for tensor in folded.values()):
        raise UserError(
            f"Folding '{calibration.name}' gives weights that are not finite in "
            f"{layer.weight.dtype}. Fold the model in float32."
        )
    return folded


@torch.no_grad()
def _assign(layer: nn.Linear, values: dict[str, Tensor]) -> None:
    for name, value in values.items():
        if name in layer._buffers:
            # The gain is a buffer that may be None until now, so it can't be copied into.
            layer._buffers[name] = value
        elif layer._parameters[name] is None:  # a layer without bias has one from now on
            setattr(layer, name, nn.Parameter(value))
        else:
            layer._parameters[name].copy_(value)


def _release_loss(predictor: nn.Module) -> None:
    """Drop the training loss if its scores equal those of plain Detectron2."""
    loss = getattr(predictor, "loss", None)
    # Without the loss, the predictor is Detectron2's in outputs and state dict.
    if isinstance(loss, SoftmaxLoss) and _scores_as_softmax(type(loss)):
        predictor.loss = None


def _scores_as_softmax(kind: type[SoftmaxLoss]) -> bool:
    return (kind.scores, kind.probabilities) == (SoftmaxLoss.scores, SoftmaxLoss.probabilities)


def _is_ours(module: nn.Module) -> bool:
    package = __name__.partition(".")[0]
    # Subclasses of ours in other projects need logn_d2 as well; what a LazyConfig file makes with
    # type() belongs to no module.
    modules = (getattr(each, "__module__", "") for each in type(module).__mro__)
    return any(name.partition(".")[0] == package for name in modules)
