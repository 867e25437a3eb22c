"""The mapper of a model's records: Detectron2's, or one registered for the architecture.

A mapper loads the files of a record and turns them into the model's input.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import DatasetMapper

from ..core.registry import Registry

__all__ = ["MAPPERS", "Mapper", "build_mapper"]

Mapper = Callable[[dict[str, Any]], "dict[str, Any] | None"]

MAPPERS: Registry = Registry("mapper")
"""Meta-architecture -> ``function(cfg, is_train) -> mapper``, if it differs from Detectron2's."""


def build_mapper(cfg: CfgNode, *, is_train: bool) -> Mapper:
    """Build the mapper of a config.

    Args:
        cfg (CfgNode): MODEL.META_ARCHITECTURE selects the mapper.
        is_train (bool): whether it augments images and keeps annotations for training.
    """
    if cfg.MODEL.META_ARCHITECTURE in MAPPERS:
        return MAPPERS.get(cfg.MODEL.META_ARCHITECTURE)(cfg, is_train)
    return DatasetMapper(cfg, is_train=is_train)
