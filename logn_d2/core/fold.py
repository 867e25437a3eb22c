"""Folding an `AffineCalibration` into the classifier in front of it: no cost at inference.

Shapes: K foreground classes, C logit columns (K + 1 with a background column), D feature channels.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import UserError
from .affine import AffineCalibration


def fold_linear(
    weight: Tensor, bias: Tensor | None, calibration: AffineCalibration
) -> tuple[Tensor, Tensor]:
    """The linear classifier whose logits are the calibrated logits of this one.

        W'_c = scale_c W_c,     b'_c = scale_c b_c + shift_c,     background as it is

    Computed in float64 and rounded once. A cosine classifier ignores the length of W_c: see
    `fold_cosine`.

    Args:
        weight (Tensor): (C, D), any floating type.
        bias (Tensor): (C,), or None.
        calibration (AffineCalibration): a calibration of C columns.

    Returns:
        tuple[Tensor, Tensor]: new weight (C, D) and bias (C,), of the weight's type and device.

    Raises:
        ValueError: another number of columns.

    Example:
        >>> calibration = AffineCalibration(torch.tensor([0.5]), torch.tensor([-1.0]))
        >>> weight, bias = fold_linear(torch.tensor([[2.0], [3.0]]), torch.zeros(2), calibration)
        >>> weight.tolist(), bias.tolist()
        ([[1.0], [3.0]], [-1.0, 0.0])
    """
    _check_columns(len(weight), calibration)
    scale, shift = _columns(calibration, weight.device)
    # The reshape lets the same line fold a convolution of shape (C, D, h, w).
    folded = weight.detach().double() * scale.reshape(-1, *[1] * (weight.dim() - 1))
    return folded.to(weight.dtype), _fold_bias(bias, scale, shift).to(weight.dtype)


def fold_cosine(
    temperature: float,
    bias: Tensor | None,
    calibration: AffineCalibration,
    num_columns: int,
) -> tuple[Tensor, Tensor]:
    """The gain and bias that make a cosine classifier's logits the calibrated ones.

    A scale of the weight is normalised away, so it goes into a factor for each column:

        z'_c = gain_c <w_c / |w_c|, x / |x|> + b'_c,     gain_c = T scale_c,
        b'_c = scale_c b_c + shift_c,     background as it is

    Args:
        temperature (float): T. Give 1 for a layer that multiplies the gain by its own T, such as
            `logn_d2.modeling.CosineLinear`: the gain then holds the scales alone.
        bias (Tensor): (C,), or None.
        calibration (AffineCalibration): a calibration of C columns.
        num_columns (int): C of the layer.

    Returns:
        tuple[Tensor, Tensor]: gain (C,) and bias (C,), of the bias's type and device, or float32
        on the calibration's device.

    Raises:
        ValueError: another number of columns.

    Example:
        >>> calibration = AffineCalibration(torch.tensor([0.5]), torch.tensor([-1.0]))
        >>> gain, bias = fold_cosine(20.0, torch.tensor([4.0, 3.0]), calibration, num_columns=2)
        >>> gain.tolist(), bias.tolist()
        ([10.0, 20.0], [1.0, 3.0])
    """
    # A bias of another length would broadcast if it had length 1.
    for found in {num_columns, num_columns if bias is None else len(bias)}:
        _check_columns(found, calibration)
    # Without a bias there is nothing of the layer whose type and device could be taken.
    like = calibration.column_scale if bias is None else bias
    scale, shift = _columns(calibration, like.device)
    gain = temperature * scale
    return gain.to(like.dtype), _fold_bias(bias, scale, shift).to(like.dtype)


def _columns(calibration: AffineCalibration, device: torch.device) -> tuple[Tensor, Tensor]:
    """Scale and shift of all C columns, background included."""
    columns = calibration.column_scale, calibration.column_shift
    scale, shift = (column.to(device, torch.float64) for column in columns)
    return scale, shift


def _fold_bias(bias: Tensor | None, scale: Tensor, shift: Tensor) -> Tensor:
    return shift if bias is None else scale * bias.detach().double() + shift


def _check_columns(found: int, calibration: AffineCalibration) -> None:
    expected = len(calibration.column_scale)
    if found != expected:
        raise UserError(
            f"The classifier has {found} columns, but the calibration '{calibration.name}' has "
            f"{expected} (background: {calibration.background}). Fold it into the classifier that "
            "its statistics were collected from."
        )
