"""The mapper of a model's records: Detectron2's, or one registered for the architecture.

A mapper loads the files of a record and turns them into the model's input.
"""

from __future__ import annotations

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import transforms as T

from ..source import source_of


class TestResize:
    """From pixels to a detector's input, resized as at test.

    Args:
        cfg (CfgNode): the config of a detector.
    """

    def __init__(self, cfg: CfgNode) -> None:
        _, arguments = source_of(cfg).mapper_call(is_train=False)
        self._resize = T.AugmentationList(list(arguments["augmentations"]))

    def __call__(self, pixels: np.ndarray) -> torch.Tensor:
        """
        Args:
            pixels (ndarray): (H, W, C) uint8, in the order of INPUT.FORMAT.

        Returns:
            Tensor: (C, H', W') float32.
        """
        seen = T.AugInput(pixels)
        self._resize(seen)
        return torch.as_tensor(seen.image.astype(np.float32).transpose(2, 0, 1))
