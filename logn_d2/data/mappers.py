"""The mapper of a model's records: Detectron2's, or one registered for the architecture.

A mapper loads the files of a record and turns them into the model's input.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode, instantiate
from detectron2.data import DatasetMapper
from detectron2.data import transforms as T
from omegaconf import DictConfig

from ..core.registry import Registry
from ..errors import UserError
from ..lazy import is_lazy, lazy_config, target_of

__all__ = ["MAPPERS", "Mapper", "TestResize", "build_mapper", "mapper_call"]

Mapper = Callable[[dict[str, Any]], "dict[str, Any] | None"]

MAPPERS: Registry = Registry("mapper")
"""Meta-architecture -> ``function(cfg, is_train) -> mapper``, if it differs from Detectron2's."""


def build_mapper(cfg: CfgNode, *, is_train: bool) -> Mapper:
    """Build the mapper of a config.

    Args:
        cfg (CfgNode): MODEL.META_ARCHITECTURE selects the mapper.
        is_train (bool): whether it augments images and keeps annotations for training.
    """
    if is_lazy(cfg):
        return instantiate(_lazy_mapper(cfg, is_train))
    if cfg.MODEL.META_ARCHITECTURE in MAPPERS:
        return MAPPERS.get(cfg.MODEL.META_ARCHITECTURE)(cfg, is_train)
    return DatasetMapper(cfg, is_train=is_train)


def mapper_call(cfg: CfgNode, *, is_train: bool) -> tuple[type[DatasetMapper], dict[str, Any]]:
    """Class and arguments of a detector's mapper, for mappers that differ from it in some.

    Args:
        cfg (CfgNode): the config of a detector.
        is_train (bool): as in `build_mapper`.

    Raises:
        ValueError: the mapper of a LazyConfig has other arguments than Detectron2's.
    """
    if not is_lazy(cfg):
        return DatasetMapper, DatasetMapper.from_config(cfg, is_train=is_train)
    call = _lazy_mapper(cfg, is_train)
    kind = target_of(call)
    if not (isinstance(kind, type) and issubclass(kind, DatasetMapper)):
        raise UserError(
            f"The LazyConfig's mapper is {kind.__name__}, which need not have the arguments of "
            "Detectron2's DatasetMapper. Derive it from DatasetMapper, or use logn_d2.collect and "
            "logn_d2.attach in Python, with a loader of your own."
        )
    return kind, {name: instantiate(value) for name, value in call.items() if name != "_target_"}


class TestResize:
    """From pixels to a detector's input, resized as at test.

    Args:
        cfg (CfgNode): the config of a detector.
    """

    def __init__(self, cfg: CfgNode) -> None:
        _, arguments = mapper_call(cfg, is_train=False)
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


def _lazy_mapper(cfg: CfgNode, is_train: bool) -> DictConfig:
    loaders = lazy_config(cfg).dataloader
    return (loaders.train if is_train else loaders.test).mapper
