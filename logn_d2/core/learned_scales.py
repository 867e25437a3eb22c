"""The class scales of LWS (learnable weight scaling), read from its checkpoint.

Shapes: K foreground classes, C logit columns (K + 1 with a background column).
"""

from __future__ import annotations

import os
import pickle
import zipfile
from functools import lru_cache

import torch
from torch import Tensor

from ..errors import UserError
from .affine import AffineCalibration, Background, foreground_columns

# The classifier's learned factor for each column, in a detector's state dict. Not its "gain", which
# comes from a folded calibration.
SCALE_KEY = "cls_score.class_scale"


def learned_scales(path: str | os.PathLike[str]) -> list[Tensor]:
    """Read the factors of each box predictor's columns.

    Args:
        path (PathLike): a checkpoint of Detectron2; nothing but tensors and plain values is
            unpickled.

    Returns:
        list[Tensor]: S tensors (C,), in stage order.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file can't be read, or is not from a second stage "lws".

    Example:
        >>> learned_scales("output/lws/model_final.pth")[0].shape  # doctest: +SKIP
        torch.Size([1204])
    """
    path = os.path.abspath(path)
    # Time and size are part of the cache's key, so that a checkpoint trained again is read again.
    found = os.stat(path)
    return list(_scales(path, found.st_mtime_ns, found.st_size))


@lru_cache(maxsize=8)  # each stage of a cascade asks, and each calibration of a sweep
def _scales(path: str, changed: int, size: int) -> tuple[Tensor, ...]:
    try:
        # Mapped, so that only the needed parts of a large file are read. torch can't map the format
        # before 1.6, which is no zip file.
        mapped = zipfile.is_zipfile(path)
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except (EOFError, RuntimeError, pickle.UnpicklingError) as error:
        raise UserError(f"The checkpoint {path} can't be read ({error}).") from error
    state = checkpoint.get("model", checkpoint) if isinstance(checkpoint, dict) else {}
    # One predictor, or box_predictor.0 to .2 of a cascade.
    # Clones, so that the cache does not keep the file mapped.
    scales = tuple(state[name].clone() for name in sorted(state) if name.endswith(SCALE_KEY))
    if not scales:
        raise UserError(
            f"The checkpoint {path} has no {SCALE_KEY}, which the second stage 'lws' learns. Train "
            "it with MODEL.LOGN.SECOND_STAGE lws, or name another checkpoint."
        )
    return scales


def lws(
    scale: Tensor, bias: Tensor | None = None, *, background: Background = "last"
) -> AffineCalibration:
    """Learnable weight scaling (Kang et al., ICLR 2020), on the weights as for detectors in EQL v2.

        z'_c = s_c w_c x + b_c,     z'_bg = z_bg

    Args:
        scale (Tensor): (C,) learned factors s; the background's is ignored.
        bias (Tensor): (C,) of the classifier, or None.
        background (str): "last", "first" or "none".

    Example:
        >>> calibration = lws(torch.tensor([0.5, 1.0]), torch.tensor([1.0, 0.0]))
        >>> calibration(torch.tensor([[5.0, 2.0]])).tolist()  # 0.5 * 4 + 1
        [[3.0, 2.0]]
    """
    foreground = foreground_columns(background)
    scale = scale.detach().cpu().double()[foreground]
    shift = torch.zeros_like(scale)
    if bias is not None:
        # The learned factor scales the weights alone; the map would scale the bias too, which this
        # undoes.
        shift = bias.detach().cpu().double()[foreground] * (1 - scale)
    return AffineCalibration(scale, shift, background=background, name="lws")
