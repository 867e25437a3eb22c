"""Backbones for whole images in addition to Detectron2's: torchvision networks, and a small MLP.

Shapes: N images, D feature channels.
"""

from __future__ import annotations

from collections.abc import Sequence

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from fvcore.nn.weight_init import c2_msra_fill
from torch import Tensor, nn
from torchvision.models import ResNet

from ..errors import UserError
from ..modeling.build import logn_node
from ..modeling.torchvision_weights import (
    PixelConvention,
    build_network,
    check_pixels,
    load_network_weights,
)

# These networks train with auxiliary classifiers, which would be part of the loss.
_WITH_AUXILIARY = ("googlenet", "inception_v3")


class TorchvisionFeatures(Backbone):
    """A torchvision network without its last layer, the classifier.

    Its only map is "pooled", (N, D, 1, 1). Pooling is the network's own, and so are layers between
    its last level and the classifier (`TorchvisionBackbone` leaves these out).

    Args:
        network (str): a torchvision network, such as "resnext50_32x4d", or "efficientnet_lite0".
        weights (str): see `load_network_weights`; "" for random ones.
        small_stem (bool): for a ResNet on images of 32 pixels: a first layer of 3 x 3 pixels at
            stride 1 without pooling (He et al., CVPR 2016, for CIFAR).

    Attributes:
        convention (PixelConvention): the pixel convention of its weights, or None.

    Raises:
        KeyError: an unknown network; the message lists the known ones.
        ValueError: the network has auxiliary classifiers, or its last layer is not a Linear; a
            small stem for another network than a ResNet, or with weights for the large one.
    """

    def __init__(self, network: str, weights: str = "", small_stem: bool = False) -> None:
        super().__init__()
        if network in _WITH_AUXILIARY:
            raise UserError(
                f"{network} trains with auxiliary classifiers, which this loss does not include. "
                "Choose another network, such as resnet50."
            )
        self.body = build_network(network)
        if small_stem:
            _make_stem_small(self.body, network, weights)
        self.convention: PixelConvention | None = None
        if weights:
            self.convention = load_network_weights(self.body, network, weights)
        self._channels = _cut_last_layer(self.body, network)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """(N, 3, height, width) to the pooled features."""
        return {"pooled": self.body(images)[:, :, None, None]}

    def output_shape(self) -> dict[str, ShapeSpec]:
        """The shape of "pooled"."""
        return {"pooled": ShapeSpec(channels=self._channels, height=1, width=1)}


class MLPBackbone(Backbone):
    """A multi-layer perceptron on pixels, for images so small that a CPU trains it in seconds.

    Batch norm follows the first layer.

    Args:
        channels (int): channels of the images.
        size (int): height and width of the images, in pixels.
        hidden (Sequence[int]): units of each layer; the last number is D.

    Example:
        >>> import torch
        >>> MLPBackbone(1, 16, hidden=[32, 8])(torch.zeros(2, 1, 16, 16))["pooled"].shape
        torch.Size([2, 8, 1, 1])
    """

    def __init__(self, channels: int, size: int, hidden: Sequence[int] = (128, 64)) -> None:
        super().__init__()
        if not hidden:
            raise UserError("MODEL.LOGN.IMAGE.HIDDEN is empty; expected at least one layer's size.")
        self._size, self._channels = (channels, size, size), hidden[-1]
        layers: list[nn.Module] = [nn.Flatten(), nn.Linear(channels * size**2, hidden[0])]
        layers += [nn.BatchNorm1d(hidden[0]), nn.ReLU()]
        for before, after in zip(hidden, hidden[1:]):
            layers += [nn.Linear(before, after), nn.ReLU()]
        self.layers = nn.Sequential(*layers)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """(N, channels, size, size) to the features (N, D, 1, 1)."""
        if tuple(images.shape[1:]) != self._size:
            raise UserError(
                f"This MLP is for images of shape {self._size} (channels, height, width), found "
                f"{tuple(images.shape[1:])}. Set MODEL.LOGN.IMAGE.SIZE and INPUT.FORMAT."
            )
        return {"pooled": self.layers(images)[:, :, None, None]}

    def output_shape(self) -> dict[str, ShapeSpec]:
        """The shape of "pooled"."""
        return {"pooled": ShapeSpec(channels=self._channels, height=1, width=1)}


@BACKBONE_REGISTRY.register()
def build_torchvision_features(cfg: CfgNode, input_shape: ShapeSpec) -> TorchvisionFeatures:
    """Build the network of MODEL.LOGN.BACKBONE, with its weights if MODEL.WEIGHTS is ""."""
    node = logn_node(cfg).BACKBONE
    # A checkpoint replaces all weights, so these would be read or downloaded for nothing.
    weights = "" if cfg.MODEL.WEIGHTS else node.WEIGHTS
    backbone = TorchvisionFeatures(node.NETWORK, weights, node.SMALL_STEM)
    if backbone.convention is not None:
        pixels = (cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD, cfg.INPUT.FORMAT)
        check_pixels(backbone.convention, *pixels)
    return backbone


@BACKBONE_REGISTRY.register()
def build_mlp_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> MLPBackbone:
    """Build an MLP for images of MODEL.LOGN.IMAGE.SIZE pixels, with HIDDEN units."""
    node = logn_node(cfg).IMAGE
    return MLPBackbone(input_shape.channels, node.SIZE, node.HIDDEN)


def _make_stem_small(body: nn.Module, name: str, weights: str) -> None:
    """Replace a ResNet's first convolution and pooling."""
    if not isinstance(body, ResNet) or weights:
        raise UserError(
            f"MODEL.LOGN.BACKBONE.SMALL_STEM is for a ResNet trained from scratch, found "
            f"{name} with the weights '{weights}'. Set NETWORK to resnet18 and WEIGHTS to ''."
        )
    body.conv1 = nn.Conv2d(3, body.conv1.out_channels, 3, padding=1, bias=False)
    # torchvision's own initialisation of a ResNet: normal, by the fan-out.
    c2_msra_fill(body.conv1)
    body.maxpool = nn.Identity()


def _cut_last_layer(body: nn.Module, name: str) -> int:
    """Replace the last layer, which must be a Linear, by the identity; return its inputs."""
    # Networks name their classifier "fc", "classifier" or "head"; its position is common to all.
    last, layer = list(body.named_modules())[-1]
    if not isinstance(layer, nn.Linear):
        raise UserError(
            f"{name} ends in a {type(layer).__name__}, expected a Linear whose inputs are the "
            "features. Choose another network, such as resnet50."
        )
    parent, _, child = last.rpartition(".")
    setattr(body.get_submodule(parent), child, nn.Identity())
    return layer.in_features
