"""One factor per class on a classifier's weights, for learnable weight scaling (LWS).

The factors are called ``class_scale`` in the state dict. A cosine classifier has a parameter for
them; a linear one becomes a `ScaledLinear`.

Shapes: R RoIs, D feature channels, C logit columns.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import UserError
from .cosine import CosineLinear


class ScaledLinear(nn.Linear):
    """``z_c = s_c w_c x + b_c``.

    Args:
        in_features (int): D.
        out_features (int): C.
        bias (bool): whether the layer has b.

    Example:
        >>> layer = ScaledLinear(2, 1)
        >>> plain = layer(torch.ones(1, 2)) - layer.bias
        >>> _ = layer.class_scale.data.fill_(3.0)
        >>> torch.allclose(layer(torch.ones(1, 2)), 3 * plain + layer.bias)
        True
    """

    def __init__(self, in_features: int, out_features: int, bias: bool = True) -> None:
        super().__init__(in_features, out_features, bias=bias)
        self.class_scale = nn.Parameter(torch.ones(out_features))

    @property
    def factors(self) -> Tensor:
        """Factor of each column's weights, (C,)."""
        return self.class_scale

    def forward(self, x: Tensor) -> Tensor:
        """(R, D) features to (R, C) logits."""
        return F.linear(x, self.weight * self.class_scale[:, None], self.bias)


def add_class_scales(predictor: nn.Module) -> None:
    """Give the classifier of a box predictor trainable factors, initially 1, in place.

    Args:
        predictor (nn.Module): its ``cls_score`` is a Linear or `CosineLinear`.

    Raises:
        ValueError: the classifier is of another kind.
    """
    layer = getattr(predictor, "cls_score", None)
    # A resumed training has them already.
    if isinstance(layer, ScaledLinear):
        return
    if isinstance(layer, CosineLinear):
        if layer.class_scale is None:
            layer.class_scale = nn.Parameter(torch.ones_like(layer.weight[:, 0]))
        return
    # Exactly Linear: replacing a subclass would drop what it adds.
    if type(layer) is not nn.Linear:
        raise UserError(
            f"The classifier of this {type(predictor).__name__} is a {type(layer).__name__}; the "
            "second stage 'lws' scales a Linear or CosineLinear named cls_score."
        )
    scaled = ScaledLinear(layer.in_features, layer.out_features, bias=layer.bias is not None)
    # The same parameters, so that an optimizer that has them keeps them.
    scaled.weight, scaled.bias = layer.weight, layer.bias
    predictor.cls_score = scaled.to(layer.weight.device, layer.weight.dtype)


@torch.no_grad()
def merge_class_scales(predictor: nn.Module) -> None:
    """Merge trained factors into the classifier's other parameters.

    A `ScaledLinear` becomes a plain Linear with scaled weights; a `CosineLinear` gets a scaled
    gain.

    Args:
        predictor (nn.Module): changed in place; predictors with other classifiers stay unchanged.
    """
    layer = getattr(predictor, "cls_score", None)
    if isinstance(layer, CosineLinear) and layer.class_scale is not None:
        # The product of gain and scale becomes the gain, which is a buffer.
        layer.gain, layer.class_scale = layer.factors.detach(), None
    if not isinstance(layer, ScaledLinear):
        return
    linear = nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None)
    linear.weight = nn.Parameter(layer.weight * layer.class_scale[:, None])
    # The scale is on the weights alone.
    linear.bias = layer.bias
    predictor.cls_score = linear.train(layer.training)
