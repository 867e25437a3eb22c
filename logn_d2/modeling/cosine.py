"""Cosine classifier and cosine mask predictor: logits are scaled cosine similarities.

They are NormedLinear and NormedConv2d of MMDetection (https://github.com/open-mmlab/mmdetection),
as used with Seesaw loss and LogN. A linear classifier gives frequent classes longer weight vectors;
here every class has length one.

Shapes: N images, R RoIs, D feature channels, C outputs. Logits are in nats.
"""

from __future__ import annotations

from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling.roi_heads.mask_head import (
    ROI_MASK_HEAD_REGISTRY,
    MaskRCNNConvUpsampleHead,
)
from torch import Tensor, nn
from torch.nn import functional as F

from ..core.losses.base import wide

# Added to the norms, not a lower bound of them, as in MMDetection: a zero row gives z_c = b_c.
EPSILON = 1e-6
WEIGHT_STD = 0.01


class CosineLinear(nn.Linear):
    """``z_c = T <w_c / |w_c|, x / |x|> + b_c``, with `EPSILON` added to both norms.

    ``gain`` is one factor per output. It replaces the length of the weight, which has no effect
    here: a calibration's scale can be folded into it. It is None, and not in the state dict, until
    it is set or loaded from a checkpoint.

    Args:
        in_features (int): D.
        out_features (int): C.
        temperature (float): T; the paper uses 20.
        bias (bool): whether the layer has b.
        gain (Tensor): (C,) positive, or None.

    Example:
        >>> layer = CosineLinear(2, 1, temperature=10.0)
        >>> _ = layer.weight.data.copy_(torch.tensor([[0.0, 7.0]]))
        >>> round(layer(torch.tensor([[3.0, 4.0]])).item(), 3)
        8.0
    """

    gain: Tensor | None
    class_scale: nn.Parameter | None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        temperature: float = 20.0,
        bias: bool = True,
        *,
        gain: Tensor | None = None,
    ) -> None:
        super().__init__(in_features, out_features, bias=bias)
        self.temperature = temperature
        self.register_buffer("gain", gain)
        # Registered as None, so that the state dict has no such key until it exists.
        self.register_parameter("class_scale", None)
        _initialize(self)

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) features of any floating type to (..., C) logits, at least float32."""
        # Squares of half-precision features overflow, and autocast would cast the result back.
        with torch.autocast(x.device.type, enabled=False):
            weight = _normalized(self.weight)
            factors = self.factors
            if factors is not None:
                weight = weight * factors[:, None]
            # The temperature goes to the features, as in MMDetection: another order would round
            # differently.
            return F.linear(_normalized(x, dim=-1) * self.temperature, weight, _bias(self))

    @property
    def factors(self) -> Tensor | None:
        """Factor of each column's weights, (C,); None for 1."""
        if self.gain is None or self.class_scale is None:
            return self.class_scale if self.gain is None else self.gain
        return self.gain * self.class_scale

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, temperature={self.temperature}"

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args: Any) -> None:
        gain = state_dict.get(f"{prefix}gain")
        if gain is None and f"{prefix}weight" in state_dict:
            self.gain = None  # it belongs to the weights that are being replaced
        elif gain is not None and self.gain is None:
            # A buffer that is None is not loaded, so it must exist first.
            self.gain = torch.ones_like(gain, device=self.weight.device)
        super()._load_from_state_dict(state_dict, prefix, *args)


class CosineConv2d(nn.Conv2d):
    """A 1 x 1 convolution whose outputs are scaled cosine similarities, pixel by pixel.

    Args:
        in_channels (int): D.
        out_channels (int): C.
        temperature (float): T; the paper uses 20.
        bias (bool): whether there is a bias, added after the scaling.
    """

    def __init__(
        self, in_channels: int, out_channels: int, temperature: float = 20.0, bias: bool = True
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size=1, bias=bias)
        self.temperature = temperature
        _initialize(self)

    def forward(self, x: Tensor) -> Tensor:
        """(N, D, H, W) features of any floating type to (N, C, H, W) logits, at least float32."""
        with torch.autocast(x.device.type, enabled=False):
            x = _normalized(x) * self.temperature
            return F.conv2d(x, _normalized(self.weight), _bias(self))

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, temperature={self.temperature}"


@ROI_MASK_HEAD_REGISTRY.register()
class CosineMaskHead(MaskRCNNConvUpsampleHead):
    """Detectron2's mask head with a cosine predictor, as the paper's models have.

    Args:
        input_shape (ShapeSpec): shape of the pooled features.
        num_classes (int): K, or 1 for class-agnostic masks.
        conv_dims (list[int]): channels of the convolutions and of the upsampling layer.
        temperature (float): T of the predictor.
        **kwargs: of MaskRCNNConvUpsampleHead.
    """

    @configurable
    def __init__(
        self,
        input_shape: ShapeSpec,
        *,
        num_classes: int,
        conv_dims: list[int],
        temperature: float = 20.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(input_shape, num_classes=num_classes, conv_dims=conv_dims, **kwargs)
        # Replaces the parent's predictor under its name, so that checkpoints keep their keys.
        self.predictor = CosineConv2d(conv_dims[-1], num_classes, temperature)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> dict[str, Any]:
        return {
            **super().from_config(cfg, input_shape),
            "temperature": cfg.MODEL.LOGN.TEMPERATURE,
        }


def _initialize(layer: nn.Linear | nn.Conv2d) -> None:
    nn.init.normal_(layer.weight, std=WEIGHT_STD)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


def _bias(layer: nn.Linear | nn.Conv2d) -> Tensor | None:
    return None if layer.bias is None else wide(layer.bias)


def _normalized(tensor: Tensor, dim: int = 1) -> Tensor:
    tensor = wide(tensor)
    return tensor / (tensor.norm(dim=dim, keepdim=True) + EPSILON)
