"""Finding the box predictors of a model, whatever its heads are called.

A box predictor is known by what it does: Detectron2's `FastRCNNOutputLayers`, its subclasses, and
anything else with the same methods.

Shapes: K foreground classes, C = K + 1 logit columns, D feature channels.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn
from torch.nn import functional as F

from ..core import ClassificationLoss, classifier_fingerprint
from ..core.affine import Background
from ..core.losses import EqualizationLossV2, SigmoidLoss
from ..errors import UserError
from ..sites import ClassLayers
from .cosine import CosineLinear

__all__ = [
    "background_of",
    "cascade_average_of",
    "check_calibratable",
    "classifier_parameters",
    "classifier_reader",
    "find_box_predictors",
    "has_sigmoid_scores",
    "num_classes_of",
    "predictor_fingerprint",
    "unwrapped",
]


def unwrapped(model: nn.Module) -> nn.Module:
    """The detector inside a wrapper, or the model itself.

    A wrapper is whatever holds one module with RoI heads: DistributedDataParallel, AveragedModel,
    torch.compile, test-time augmentation, a training framework's module.

    Args:
        model (nn.Module): a detector, wrapped or not, or a part of one.

    Raises:
        ValueError: it holds several detectors, such as a teacher and a student.
    """
    wrappers = (nn.parallel.DistributedDataParallel, nn.DataParallel)
    while isinstance(model, wrappers):
        model = model.module
    if "roi_heads" in model._modules:
        return model
    inside = {name: m for name, m in model.named_modules() if "roi_heads" in m._modules}
    if len(inside) > 1:
        raise UserError(
            f"This {type(model).__name__} holds {len(inside)} detectors: {', '.join(inside)}. Give "
            f"the one that is meant, for example model.{next(iter(inside))}."
        )
    return next(iter(inside.values()), model)


def find_box_predictors(model: nn.Module) -> list[nn.Module]:
    """Every box predictor, in stage order.

    Args:
        model (nn.Module): a detector, distributed or not, or its RoI heads.

    Returns:
        list[nn.Module]: S predictors: one, or one for each cascade stage.

    Raises:
        ValueError: there is none.
    """
    found = [module for module in unwrapped(model).modules() if _is_box_predictor(module)]
    if not found:
        if any(hasattr(module, "postprocess_detections") for module in model.modules()):
            raise UserError(
                f"This {type(unwrapped(model)).__name__} is torchvision's. It can be calibrated "
                "with attach, but its statistics are gathered with a hook: see "
                "docs/your_project.md#torchvision."
            )
        raise UserError(
            f"Found no box predictor in this {type(unwrapped(model)).__name__}. Looked for modules "
            "with the methods predict_probs(predictions, proposals) and losses(predictions, "
            "proposals) and a known number of classes, as Detectron2's FastRCNNOutputLayers has. "
            "Detectors without RoI heads have none; docs/sites.md says which of them are known, "
            "and how to describe any other (site=...)."
        )
    return found


def cascade_average_of(model: nn.Module) -> str:
    """What a model averages over its cascade stages at test: "probs" unless its heads tell else."""
    told = (getattr(module, "cascade_average", None) for module in model.modules())
    return next(filter(None, told), "probs")


def num_classes_of(predictor: nn.Module | ClassLayers) -> int | None:
    """K, without background; None where nothing tells it."""
    num_classes = getattr(predictor, "num_classes", None)
    if isinstance(num_classes, int):
        return num_classes
    weight = getattr(getattr(predictor, "cls_score", None), "weight", None)
    return len(weight) - 1 if isinstance(weight, Tensor) else None


def has_sigmoid_scores(predictor: nn.Module | ClassLayers) -> bool:
    """Whether scores are sigmoids of the logits, and not their softmax.

    Args:
        predictor (nn.Module): a box predictor whose logits can be calibrated.
    """
    if isinstance(predictor, ClassLayers):
        return predictor.activation == "sigmoid"
    loss = getattr(predictor, "loss", None)
    if isinstance(getattr(loss, "inner", loss), (EqualizationLossV2, SigmoidLoss)):
        return True
    return bool(getattr(predictor, "use_sigmoid_ce", False))  # Detectron2 after 0.6


def background_of(predictor: nn.Module) -> Background:
    """Where a predictor's background column is: last, unless it says something else."""
    return getattr(predictor, "background", "last")


def check_calibratable(model: nn.Module) -> None:
    """Raises an error if the loss of a box predictor has logits that can't be calibrated.

    Args:
        model (nn.Module): a detector, or its RoI heads, or a box predictor.

    Raises:
        ValueError: with the reason.
    """
    for module in unwrapped(model).modules():
        if isinstance(module, ClassificationLoss):
            module.check_calibratable()


def classifier_parameters(predictor: nn.Module) -> tuple[Tensor, Tensor | None] | None:
    """Weight (C, D) and bias (C,) or None of the classifier; None where there is no such layer.

    Args:
        predictor (nn.Module): its ``cls_score`` is the classifier, or holds it as its last layer.
    """
    layer = classifier_layer(predictor)
    return None if layer is None else (layer.weight, getattr(layer, "bias", None))


def classifier_reader(
    predictor: nn.Module | ClassLayers,
) -> Callable[[], tuple[Tensor, Tensor | None]]:
    """What calibrations that are made from weights, such as tau_norm, ask for them.

    Args:
        predictor (nn.Module): a box predictor, or a site's layers; weights may be loaded later.

    Returns:
        Callable: returns weight (C, D), with any factor of a column in it, and bias (C,) or None.
        The rows of a cosine classifier have length one. Raises ValueError where there is no such
        layer.
    """
    if isinstance(predictor, ClassLayers):
        return predictor.parameters

    def read() -> tuple[Tensor, Tensor | None]:
        layer = classifier_layer(predictor)
        if layer is None:
            raise UserError(
                f"This calibration is made from the classifier's weights, but this "
                f"{type(predictor).__name__} has no layer with one output for each class and the "
                "background. Choose another calibration."
            )
        weight, factors = layer.weight, getattr(layer, "factors", None)
        if isinstance(layer, CosineLinear):
            weight = F.normalize(weight)
        return weight if factors is None else weight * factors[:, None], layer.bias

    return read


def predictor_fingerprint(predictor: nn.Module | ClassLayers) -> Tensor | None:
    """(C,) float64 fingerprint of the classifier's weights; None where they can't be told.

    The gain of a folded cosine classifier counts, so that statistics are not applied twice.
    """
    if isinstance(predictor, ClassLayers):
        return predictor.fingerprint()
    layer = classifier_layer(predictor)
    if layer is None:
        return None
    weight, factors = layer.weight.detach(), getattr(layer, "factors", None)
    if factors is not None:
        weight = weight * factors.detach()[:, None]
    return classifier_fingerprint(weight, getattr(layer, "bias", None))


def classifier_layer(predictor: nn.Module) -> nn.Module | None:
    classifier = getattr(predictor, "cls_score", None)
    if not isinstance(classifier, nn.Module):
        return None
    columns = num_classes_of(predictor) + (background_of(predictor) != "none")
    for layer in reversed(list(classifier.modules())):
        weight = getattr(layer, "weight", None)
        if isinstance(weight, Tensor) and weight.dim() >= 2 and len(weight) == columns:
            return layer
    return None


def _is_box_predictor(module: nn.Module) -> bool:
    methods = (getattr(module, name, None) for name in ("predict_probs", "losses"))
    return all(callable(method) for method in methods) and num_classes_of(module) is not None
