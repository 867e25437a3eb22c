"""A backbone of few weights, for detectors whose features are not the question.

A ResNet-18 has 11 million weights: drawing them, saving them and copying them takes most of the
time of a test that looks at something else.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from fvcore.nn.weight_init import c2_msra_fill
from torch import Tensor, nn

__all__ = ["GLYPHS_CONFIG", "SMALL_BACKBONE", "SmallBackbone"]


class SmallBackbone(Backbone):
    """Pyramid of a convolution and batch norm for each level; level n has stride 2 ** n.

    As those of an FPN, features may be below 0.

    Args:
        names (Sequence[str]): of consecutive levels, such as ``("p2", "p3")``.
        channels (int): of all of them.
    """

    def __init__(self, names: Sequence[str], channels: int) -> None:
        super().__init__()
        self._shapes = {name: ShapeSpec(channels, stride=2 ** int(name[1:])) for name in names}
        self.levels = nn.ModuleDict()
        inputs, stride = 3, 1
        for name, shape in self._shapes.items():
            step = shape.stride // stride
            convolution = nn.Conv2d(inputs, channels, step, stride=step)
            c2_msra_fill(convolution)
            self.levels[name] = nn.Sequential(convolution, nn.BatchNorm2d(channels))
            inputs, stride = channels, shape.stride

    @property
    def size_divisibility(self) -> int:
        return max(shape.stride for shape in self._shapes.values())

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        features = {}
        for name, level in self.levels.items():
            features[name] = level(x)
            x = features[name].relu()
        return features

    def output_shape(self) -> dict[str, ShapeSpec]:
        return self._shapes


@BACKBONE_REGISTRY.register()
def build_backbone_of_few_weights(cfg: CfgNode, input_shape: ShapeSpec) -> SmallBackbone:
    asked = {*cfg.MODEL.RPN.IN_FEATURES, *cfg.MODEL.ROI_HEADS.IN_FEATURES}
    return SmallBackbone(sorted(asked), cfg.MODEL.FPN.OUT_CHANNELS)


SMALL_BACKBONE = build_backbone_of_few_weights.__name__
"""For MODEL.BACKBONE.NAME, in the place of build_resnet_fpn_backbone."""

GLYPHS_CONFIG = Path(__file__).with_name("small_glyphs.yaml")
"""The config of LT-Glyphs tiny with this backbone."""
