"""Mapper from an image's record to the square of pixels that the classifier takes.

Shapes: images (channels, height, width), uint8 in [0, 255].
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from detectron2.data.detection_utils import read_image
from torch import Tensor
from torchvision.transforms import v2

from ..errors import UserError, check_choice
from ..source import MAPPERS

_FLIPS = {
    "horizontal": [v2.RandomHorizontalFlip()],
    "vertical": [v2.RandomVerticalFlip()],
    "none": [],
}


@MAPPERS.register("ImageClassifier")
class ImageMapper:
    """Reads an image, or takes the pixels in its record, and augments it.

    Args:
        image_format (str): "L", "RGB" or "BGR".
        transform (Callable): maps uint8 images (channels, height, width) to one size.

    From a config: INPUT.FORMAT, and `augmentations`.

    Raises:
        ValueError: an unknown augmentation.
    """

    @configurable
    def __init__(self, *, image_format: str, transform: Callable[[Tensor], Tensor]) -> None:
        self._format = image_format
        self._transform = transform

    @classmethod
    def from_config(cls, cfg: CfgNode, is_train: bool) -> dict[str, Any]:
        return {"image_format": cfg.INPUT.FORMAT, "transform": augmentations(cfg, is_train)}

    def __call__(self, record: Mapping[str, Any]) -> dict[str, Any]:
        """Map a record: add its pixels as "image", and drop "image_array" and "annotations".

        Raises:
            OSError: the image can't be read.
        """
        if "image_array" in record:
            pixels = _in_format(record["image_array"], self._format)
        else:
            pixels = read_image(record["file_name"], format=self._format)
        if pixels.ndim == 2:
            pixels = pixels[..., None]
        # A copy: torch takes no negative strides (BGR), and the record's pixels must stay.
        image = torch.from_numpy(pixels.transpose(2, 0, 1).copy())
        rest = {k: v for k, v in record.items() if k not in ("image_array", "annotations")}
        return {**rest, "image": self._transform(image)}


def augmentations(cfg: CfgNode, is_train: bool) -> v2.Transform:
    """The transform of MODEL.LOGN.IMAGE from uint8 images to squares of SIZE pixels.

    For ImageNet it is that of Kang et al. (ICLR 2020): a random resized crop, flip and colour
    jitter; at test, the centre of the image after its shorter side was scaled to RESIZE.

    Args:
        cfg (CfgNode): INPUT.RANDOM_FLIP and MODEL.LOGN.IMAGE.
        is_train (bool): whether to augment.

    Raises:
        ValueError: an unknown augmentation or flip, or SIZE is larger than RESIZE.
    """
    node, flip = cfg.MODEL.LOGN.IMAGE, cfg.INPUT.RANDOM_FLIP
    augments = ("resized_crop", "padded_crop", "none")
    check_choice("MODEL.LOGN.IMAGE.AUGMENT", node.AUGMENT, augments)
    check_choice("INPUT.RANDOM_FLIP", flip, _FLIPS)
    if 0 < node.RESIZE < node.SIZE:
        raise UserError(
            f"MODEL.LOGN.IMAGE.SIZE is {node.SIZE}, but the shorter side of images is scaled to "
            f"{node.RESIZE} before the crop (MODEL.LOGN.IMAGE.RESIZE). Set RESIZE to {node.SIZE} "
            "or more, or to 0."
        )
    middle: list[v2.Transform] = [v2.Resize((node.SIZE, node.SIZE), antialias=True)]
    if node.RESIZE:
        middle = [v2.Resize(node.RESIZE, antialias=True), v2.CenterCrop(node.SIZE)]
    if not is_train:
        return v2.Compose(middle)
    crops = {
        "resized_crop": [v2.RandomResizedCrop(node.SIZE, antialias=True)],
        "padded_crop": [*middle, v2.RandomCrop(node.SIZE, padding=node.PAD)],
        "none": middle,
    }
    # Brightness, contrast and saturation; no hue, as in Kang et al.
    jitter = [v2.ColorJitter(*[node.COLOR_JITTER] * 3)] if node.COLOR_JITTER else []
    return v2.Compose([*crops[node.AUGMENT], *_FLIPS[flip], *jitter])


def _in_format(pixels: np.ndarray, wanted: str) -> np.ndarray:
    """Convert pixels, (height, width) gray or (height, width, 3) in RGB, to INPUT.FORMAT."""
    # PIL's weights, as for images in files.
    gray = pixels.ndim == 2
    if wanted == "L":
        return pixels if gray else np.rint(pixels @ [0.299, 0.587, 0.114]).astype(np.uint8)
    rgb = np.repeat(pixels[..., None], 3, axis=2) if gray else pixels
    return rgb[..., ::-1] if wanted == "BGR" else rgb
