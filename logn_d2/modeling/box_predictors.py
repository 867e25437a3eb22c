"""Finding the box predictors of a model, whatever the class of its heads.

A box predictor is recognised by its methods: Detectron2's `FastRCNNOutputLayers`, its subclasses,
and any other module with the same methods.

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


def unwrapped(model: nn.Module) -> nn.Module:
    """The detector inside a wrapper, or the model itself.

    A wrapper is any module with a single inner module that has RoI heads: DistributedDataParallel,
    AveragedModel, torch.compile, test-time augmentation, a training framework's module.

    Args:
        model (nn.Module): a detector, wrapped or not, or a part of one.

    Raises:
        ValueError: the wrapper has several detectors, such as a teacher and a student.
    """
    wrappers = (nn.parallel.DistributedDataParallel, nn.DataParallel)
    # Unwrapped first, because detectors without RoI heads may be inside as well.
    while isinstance(model, wrappers):
        model = model.module
    if "roi_heads" in model._modules:
        return model
    inside = {name: m for name, m in model.named_modules() if "roi_heads" in m._modules}
    if len(inside) > 1:
        raise UserError(
            f"This {type(model).__name__} contains {len(inside)} detectors: {', '.join(inside)}. "
            f"Pass one of them, for example model.{next(iter(inside))}."
        )
    # No detector inside: a part of one, or a detector without RoI heads.
    return next(iter(inside.values()), model)


def find_box_predictors(model: nn.Module) -> list[nn.Module]:
    """Every box predictor, in stage order.

    Args:
        model (nn.Module): a detector, distributed or not, or its RoI heads.

    Returns:
        list[nn.Module]: S predictors, one per cascade stage.

    Raises:
        ValueError: the model has no box predictor.
    """
    found = [module for module in unwrapped(model).modules() if _is_box_predictor(module)]
    if not found:
        if any(hasattr(module, "postprocess_detections") for module in model.modules()):
            raise UserError(
                f"This {type(unwrapped(model)).__name__} is torchvision's. It can be calibrated "
                "with attach, but its statistics are collected with a hook: see "
                "docs/your_project.md#torchvision."
            )
        raise UserError(
            f"Found no box predictor in this {type(unwrapped(model)).__name__}. Looked for modules "
            "with the methods predict_probs(predictions, proposals) and losses(predictions, "
            "proposals) and a known number of classes, as Detectron2's FastRCNNOutputLayers has. "
            "Detectors without RoI heads have none; docs/sites.md lists the supported ones, and "
            "shows how to describe any other (site=...)."
        )
    return found


def cascade_average_of(model: nn.Module) -> str:
    """The quantity averaged over cascade stages at test: "probs" unless the heads say otherwise."""
    told = (getattr(module, "cascade_average", None) for module in model.modules())
    return next(filter(None, told), "probs")


def num_classes_of(predictor: nn.Module | ClassLayers) -> int | None:
    """K, without background; None if unknown."""
    num_classes = getattr(predictor, "num_classes", None)
    # Not the number of outputs, since a loss may have more of them.
    if isinstance(num_classes, int):
        return num_classes
    weight = getattr(getattr(predictor, "cls_score", None), "weight", None)
    # torchvision's predictors have no number of classes, but always a background column.
    return len(weight) - 1 if isinstance(weight, Tensor) else None


def has_sigmoid_scores(predictor: nn.Module | ClassLayers) -> bool:
    """Whether scores are sigmoids of the logits instead of their softmax.

    Args:
        predictor (nn.Module): a box predictor whose logits can be calibrated.
    """
    if isinstance(predictor, ClassLayers):
        return predictor.activation == "sigmoid"
    loss = getattr(predictor, "loss", None)
    # The losses whose classes do not compete; an image classifier wraps its loss.
    if isinstance(getattr(loss, "inner", loss), (EqualizationLossV2, SigmoidLoss)):
        return True
    return bool(getattr(predictor, "use_sigmoid_ce", False))  # Detectron2 after 0.6


def background_of(predictor: nn.Module) -> Background:
    """Position of a predictor's background column: last, unless the predictor says otherwise."""
    return getattr(predictor, "background", "last")


def check_calibratable(model: nn.Module) -> None:
    """Raise an error if the loss of a box predictor has logits that can't be calibrated.

    Args:
        model (nn.Module): a detector, or its RoI heads, or a box predictor.

    Raises:
        ValueError: the message gives the reason.
    """
    for module in unwrapped(model).modules():
        if isinstance(module, ClassificationLoss):
            module.check_calibratable()


def classifier_reader(
    predictor: nn.Module | ClassLayers,
) -> Callable[[], tuple[Tensor, Tensor | None]]:
    """A function that reads the classifier's weights, for calibrations such as tau_norm.

    Args:
        predictor (nn.Module): a box predictor, or a site's layers; weights may be loaded later.

    Returns:
        Callable: returns weight (C, D), including factors of columns, and bias (C,) or None. The
        rows of a cosine classifier have length one. It raises ValueError if there is no such layer.
    """
    if isinstance(predictor, ClassLayers):
        return predictor.parameters

    def read() -> tuple[Tensor, Tensor | None]:
        layer = classifier_layer(predictor)
        if layer is None:
            raise UserError(
                "This calibration is computed from the classifier's weights, but this "
                f"{type(predictor).__name__} has no layer with one output per class and "
                "background. Choose another calibration."
            )
        weight, factors = layer.weight, getattr(layer, "factors", None)
        if isinstance(layer, CosineLinear):
            # The layer normalises its rows, so their lengths have no effect on the logits.
            weight = F.normalize(weight)
        return weight if factors is None else weight * factors[:, None], layer.bias

    return read


def predictor_fingerprint(predictor: nn.Module | ClassLayers) -> Tensor | None:
    """(C,) float64 fingerprint of the classifier's weights; None if they can't be identified.

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
    # From the end: the last layer of that width is the one with the logits.
    for layer in reversed(list(classifier.modules())):
        weight = getattr(layer, "weight", None)
        if isinstance(weight, Tensor) and weight.dim() >= 2 and len(weight) == columns:
            return layer
    return None


def _is_box_predictor(module: nn.Module) -> bool:
    # By methods and not by class, so that heads that copy Detectron2's interface are found too.
    methods = (getattr(module, name, None) for name in ("predict_probs", "losses"))
    return all(callable(method) for method in methods) and num_classes_of(module) is not None
