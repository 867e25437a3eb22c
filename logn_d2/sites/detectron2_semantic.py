"""Semantic segmentation: a class for each pixel, as in Detectron2's and its projects' heads."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import UserError
from .registry import SITE_REGISTRY
from .running import check_ground_truth, heard
from .site import Inputs, LogitSite


@SITE_REGISTRY.register("detectron2.modeling.meta_arch.semantic_seg.SemanticSegmentor")
@SITE_REGISTRY.register("detectron2.projects.panoptic_deeplab.panoptic_seg.PanopticDeepLab")
def semantic_site(model: nn.Module) -> LogitSite:
    """The softmax scores of `sem_seg_head`: every cell of its output is a candidate.

    The calibration of each class commutes with the bilinear interpolation that follows, so that
    calibrated cells give calibrated pixels. For a PanopticFPN, whose box predictors would be found
    otherwise, pass ``site=semantic_site(model)``.

    Args:
        model (nn.Module): a model with `sem_seg_head`, which ends in the convolution `predictor`
            and has Detectron2's `losses`.

    Raises:
        UserError: the model has another head.
    """
    head = getattr(model, "sem_seg_head", None)
    layer = getattr(head, "predictor", None)
    if not isinstance(layer, nn.Conv2d) or not hasattr(head, "losses"):
        raise UserError(
            f"The pixels' classes in this {type(model).__name__} don't come from one convolution: "
            f"its sem_seg_head is a {type(head).__name__}, expected one with the layer predictor "
            "and the method losses, as Detectron2's SemSegFPNHead has. Describe the site instead "
            "(site=..., docs/sites.md)."
        )
    return LogitSite(
        [layer],
        num_classes=layer.out_channels,
        activation="softmax",
        matched=_labels,
        reused=[model.backbone],
        results="sem_seg",
    )


def _labels(model: nn.Module, inputs: Inputs) -> list[Tensor]:
    """(R,) classes at the centres of an image's cells; negative where the loss ignores them."""
    check_ground_truth(inputs, "sem_seg", "Map the data set with its semantic labels")
    head = model.sem_seg_head
    logits, targets, *_ = heard(model, head, "losses", lambda: model(list(inputs)))
    # "nearest-exact" takes the pixel at the centre of a cell; "nearest" would take its corner. In
    # float64, since it has no integer form.
    cells = F.interpolate(targets[:, None].double(), size=logits.shape[-2:], mode="nearest-exact")
    # The ignored value, 255 by default, could be the number of a class.
    labels = cells.long().masked_fill_(cells == head.ignore_value, -1)
    return list(labels.flatten(1))
