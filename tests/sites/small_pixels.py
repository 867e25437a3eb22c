"""Small models with classes for pixels, and images with labels for them."""

from __future__ import annotations

import torch
from detectron2.modeling import build_model
from torch import nn

from ..modeling.small_models import images, small_config

__all__ = ["CLASSES", "labelled", "segmentor"]

CLASSES, IGNORED = 7, 255


def segmentor(architecture: str = "SemanticSegmentor", classes: int = CLASSES) -> nn.Module:
    cfg = small_config("StandardROIHeads")
    cfg.MODEL.META_ARCHITECTURE = architecture
    head = cfg.MODEL.SEM_SEG_HEAD
    head.NAME, head.NUM_CLASSES, head.IGNORE_VALUE = "SemSegFPNHead", classes, IGNORED
    head.IN_FEATURES, head.COMMON_STRIDE, head.CONVS_DIM, head.NORM = ["p3", "res4"], 8, 8, ""
    torch.manual_seed(0)
    return build_model(cfg).eval()


def labelled(count: int = 2) -> list[dict]:
    """Images whose upper half shows a class, and the lower half nothing that counts."""
    found = images(count)
    for index, each in enumerate(found):
        each["sem_seg"] = torch.full((64, 64), IGNORED)
        each["sem_seg"][:35] = index + 1  # not the centres of the fifth row of cells
    return found
