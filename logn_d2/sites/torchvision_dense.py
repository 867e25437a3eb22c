"""torchvision's one-stage detectors: RetinaNet, FCOS, SSD and SSDlite.

Inputs are mappings with "image" (3, H, W) in [0, 1], what the model takes, and "target", its ground
truth: "boxes" (M, 4) XYXY and "labels" (M,). An "image_id" keeps statistics of an image together.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from .registry import SITE_REGISTRY
from .running import check_ground_truth, heard
from .site import Inputs, LogitSite, TopScores

_PACKAGE = "torchvision.models.detection"
_IGNORED = -2  # torchvision's matcher, for an overlap between both thresholds


@SITE_REGISTRY.register(f"{_PACKAGE}.retinanet.RetinaNet")
@SITE_REGISTRY.register(f"{_PACKAGE}.fcos.FCOS")
def fcos_site(model: nn.Module) -> LogitSite:
    """Sigmoid scores of a convolution, one column for each label.

    FCOS multiplies scores by a centerness, which has no part in the choice of candidates here.
    """
    head = model.head.classification_head

    def labels(model: nn.Module, inputs: Inputs) -> list[Tensor]:
        # Without a background column, K marks background: it is negative for all classes.
        return _labels(model, model.head, inputs, background=head.num_classes)

    return LogitSite(
        [head.cls_logits],
        num_classes=head.num_classes,
        run=_run,
        matched=labels,
        chosen=TopScores(model.score_thresh, model.topk_candidates),
        reused=[model.backbone, head.conv, model.head.regression_head],
    )


@SITE_REGISTRY.register(f"{_PACKAGE}.ssd.SSD")
def ssd_site(model: nn.Module) -> LogitSite:
    """Softmax scores with the background first; a convolution for each feature map.

    All anchors count as `sampled`, though the loss takes only the hardest of the background.
    """
    head = model.head.classification_head
    convolutions = [
        # SSD has a convolution for each level, SSDlite a block that ends in one.
        [each for each in level.modules() if isinstance(each, nn.Conv2d)][-1]
        for level in head.module_list
    ]

    def labels(model: nn.Module, inputs: Inputs) -> list[Tensor]:
        return _labels(model, model, inputs, background=0)

    return LogitSite(
        convolutions,
        num_classes=head.num_columns - 1,
        background="first",
        activation="softmax",
        run=_run,
        matched=labels,
        chosen=TopScores(model.score_thresh, model.topk_candidates, each="class"),
        reused=[model.backbone, model.head.regression_head],
    )


def _run(model: nn.Module, inputs: Inputs) -> Any:
    return model([each["image"] for each in inputs])


def _labels(model: nn.Module, owner: nn.Module, inputs: Inputs, background: int) -> list[Tensor]:
    check_ground_truth(inputs, "target", "Give each input its boxes and labels as 'target'")
    images, targets = [each["image"] for each in inputs], [each["target"] for each in inputs]
    targets, _, _, matched = heard(model, owner, "compute_loss", lambda: model(images, targets))
    return [_of_image(t["labels"], index, background) for t, index in zip(targets, matched)]


def _of_image(labels: Tensor, matched: Tensor, background: int) -> Tensor:
    """(R,) labels of anchors that are matched to these objects, or to none."""
    # torchvision's matcher gives the index of an object, -1 below the lower threshold, and -2
    # between both.
    found = labels.new_full(matched.shape, background)
    found[matched >= 0] = labels[matched[matched >= 0]]
    found[matched == _IGNORED] = -1
    return found
