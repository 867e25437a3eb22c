"""A small RetinaNet whose classifier says something, and images with ground truth for it."""

from __future__ import annotations

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from torch import nn

from ..modeling.small_models import NUM_CLASSES, images, small_config

__all__ = ["NUM_CLASSES", "images", "retinanet", "retinanet_config"]


def retinanet_config(**options: object) -> CfgNode:
    """A RetinaNet of two levels with six anchors a cell, no threshold to speak of."""
    cfg = small_config("StandardROIHeads")
    cfg.MODEL.META_ARCHITECTURE = "RetinaNet"
    cfg.MODEL.RETINANET.IN_FEATURES = ["p3", "res4"]
    cfg.MODEL.RETINANET.NUM_CLASSES = NUM_CLASSES
    cfg.MODEL.RETINANET.NUM_CONVS = 1
    cfg.MODEL.RETINANET.SCORE_THRESH_TEST = 0.01
    cfg.MODEL.RETINANET.TOPK_CANDIDATES_TEST = 40
    for key, value in options.items():
        cfg.merge_from_list([key.replace("__", "."), value])
    return cfg


def retinanet(seed: int = 0, **options: object) -> nn.Module:
    """Its model in evaluation mode, on the CPU."""
    torch.manual_seed(seed)
    model = build_model(retinanet_config(**options)).eval()
    nn.init.normal_(model.head.cls_score.weight, std=0.4)
    nn.init.normal_(model.head.cls_score.bias, mean=-2.0)
    nn.init.normal_(model.head.bbox_pred.weight, std=0.05)
    for layer in (model.head.cls_subnet[0], model.head.bbox_subnet[0]):
        nn.init.normal_(layer.weight, std=0.1)
    return model
