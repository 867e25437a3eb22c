"""The layers with the class logits: layout, calibration and folding of their outputs.

Shapes: K foreground classes, C logit columns (K, or K + 1 with a background column), A anchors of
a cell, N images, R candidates of an image (anchors, points or queries).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from ..core import AffineCalibration, classifier_fingerprint, fold_linear
from ..core.affine import Background, foreground_columns
from ..errors import UserError, check_choice


@dataclass(frozen=True, eq=False)
class ClassLayers:
    """Layers whose outputs are class logits: convolutions, or linear layers.

    Channel a C + c of an output is anchor a's column c, as everywhere in Detectron2 and
    torchvision; a linear layer has one "anchor".

    Attributes:
        layers (Sequence[nn.Module]): one layer, called for each feature map or decoder layer, or
            several.
        num_classes (int): K.
        background (str): position of the background ("no object") column: "last", "first" or
            "none".
        axis (int): the class axis of an output: 1 for (N, A C, H, W), or -1 for (..., Q, C).
        activation (str): scores are the "sigmoid" or the "softmax" of the logits.

    Raises:
        UserError: no layers, or a number of outputs that is not a multiple of C.
    """

    layers: Sequence[nn.Module]
    num_classes: int
    background: Background = "none"
    axis: int = 1
    activation: Literal["sigmoid", "softmax"] = "sigmoid"

    def __post_init__(self) -> None:
        # Called only for its check of the name.
        foreground_columns(self.background)
        check_choice("activation", self.activation, ("sigmoid", "softmax"))
        if not self.layers or self.axis not in (1, -1):
            raise UserError(
                f"A site has {len(self.layers)} layers and the class axis {self.axis}, expected at "
                "least one layer, and 1 for convolutions or -1 for linear layers."
            )
        for layer in self.layers:
            weight = getattr(layer, "weight", None)
            outputs = len(weight) if isinstance(weight, Tensor) else 0
            # A multiple, because a convolution has the columns of each anchor.
            if outputs == 0 or outputs % self.num_columns:
                raise UserError(
                    f"A {type(layer).__name__} has {outputs} outputs, expected a multiple of "
                    f"{self.num_columns} ({self.num_classes} classes, background: "
                    f"{self.background}). Name the layer whose outputs are the logits, and the "
                    f"position of its background column."
                )

    @property
    def num_columns(self) -> int:
        """C."""
        return self.num_classes + (self.background != "none")

    @property
    def owner(self) -> nn.Module:
        """The layer that has the calibration as its submodule."""
        return self.layers[0]

    @property
    def classifier(self) -> ClassLayers:
        """These layers, without the fields of a subclass."""
        return ClassLayers(
            self.layers, self.num_classes, self.background, self.axis, self.activation
        )

    def calibrated(self, output: Tensor, calibration: AffineCalibration) -> Tensor:
        """A layer's output with calibrated logits, of the same shape."""
        if self.axis == -1:
            # The class axis is the last one, as a calibration expects it.
            return calibration(output)
        cells = output.unflatten(1, (-1, self.num_columns))  # (N, A, C, H, W)
        scale, shift = (
            # Broadcast over the axes after C; an output may lack the batch axes of others.
            column.reshape(-1, *[1] * (cells.dim() - 3))
            for column in (calibration.column_scale, calibration.column_shift)
        )
        # The operation of `AffineCalibration`, so that both round alike.
        return torch.addcmul(shift, cells, scale).flatten(1, 2)

    def candidates(self, output: Tensor) -> Tensor:
        """Logits of a layer's output, (N, R, C), ordered by cell, then by anchor."""
        if self.axis == -1:
            return output.flatten(1, -2)
        return (
            # Detectron2 and torchvision flatten their predictions in this order too, so labels fit.
            output.unflatten(1, (-1, self.num_columns)).flatten(3).permute(0, 3, 1, 2).flatten(1, 2)
        )

    def tensors(self) -> list[Tensor]:
        """All tensors that determine the logits for given features."""
        parts = (part for layer in self.layers for part in (layer.parameters(), layer.buffers()))
        # The calibration is a child of the layer, but no part of its weights: attaching one must
        # not look like a change of them.
        calibration = {id(t) for m in self.owner.children() for t in m.buffers()}
        return [each for part in parts for each in part if id(each) not in calibration]

    def fingerprint(self) -> Tensor:
        """Fingerprint of all anchors' weights and biases, (C,)."""
        return classifier_fingerprint(torch.cat([self._rows(each) for each in self.layers], dim=1))

    def parameters(self) -> tuple[Tensor, Tensor | None]:
        """Weight (C, D) and bias (C,) or None, for calibrations such as tau_norm.

        Raises:
            UserError: a class has several rows of weights.
        """
        layer = self.layers[0]
        # With several anchors a class has several norms, and no single factor divides by all.
        if len(self.layers) > 1 or len(layer.weight) != self.num_columns:
            rows = sum(len(each.weight) for each in self.layers) // self.num_columns
            raise UserError(
                f"This calibration needs one row of weights for each class, but this head has "
                f"{rows} (anchors, levels). Choose another calibration."
            )
        return layer.weight.flatten(1), layer.bias

    def folded(self, calibration: AffineCalibration) -> list[dict[str, Tensor]]:
        """Each layer's parameters with the calibration folded in.

        Raises:
            UserError: a layer that is not linear in its weights, or values that are not finite.
        """
        return [self._folded(layer, calibration) for layer in self.layers]

    def _folded(self, layer: nn.Module, calibration: AffineCalibration) -> dict[str, Tensor]:
        kinds = (nn.Linear, nn.Conv1d, nn.Conv2d)
        # Exactly these parameters: parametrised or normalised weights are computed from others.
        known = isinstance(layer, kinds) and set(layer._parameters) == {"weight", "bias"}
        # Detectron2's Conv2d may apply a norm and an activation after the convolution.
        if not known or getattr(layer, "norm", None) or getattr(layer, "activation", None):
            raise UserError(
                f"A calibration can be folded into a Linear or Conv2d with plain parameters, but "
                f"this head ends in a {type(layer).__name__}. Keep the calibration attached."
            )
        biases = layer.weight.new_zeros(len(layer.weight)) if layer.bias is None else layer.bias
        # Anchor by anchor, whose rows are in the order of the calibration's columns.
        anchors = zip(layer.weight.split(self.num_columns), biases.split(self.num_columns))
        parts = [fold_linear(weight, bias, calibration) for weight, bias in anchors]
        folded = {
            "weight": torch.cat([w for w, _ in parts]),
            "bias": torch.cat([b for _, b in parts]),
        }
        # A scale of 1 / sigma may push half-precision weights beyond 65,504.
        if not all(tensor.isfinite().all() for tensor in folded.values()):
            raise UserError(
                f"Folding '{calibration.name}' gives weights that are not finite in "
                f"{layer.weight.dtype}. Fold the model in float32."
            )
        return folded

    def _rows(self, layer: nn.Module) -> Tensor:
        """Weights and biases as one row per column, (C, A D)."""
        # All anchors' weights of a class make one row, so that a fingerprint has C entries.
        weight = layer.weight.detach().unflatten(0, (-1, self.num_columns)).flatten(2)
        parts = [weight.transpose(0, 1).flatten(1)]
        if layer.bias is not None:
            # As columns of the row: a change of one anchor's bias is not averaged away.
            parts.append(layer.bias.detach().reshape(-1, self.num_columns).T)
        return torch.cat(parts, dim=1)


def layer_names(model: nn.Module, layers: ClassLayers) -> list[str]:
    """Names of these layers in the model."""
    own = {id(layer) for layer in layers.layers}
    return [name for name, module in model.named_modules() if id(module) in own]
