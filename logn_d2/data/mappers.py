"""Which mapper a model's records go through: Detectron2's, or one of the architecture's own.

A mapper loads what a record names and makes it the model's input.
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
"""Meta-architecture -> ``function(cfg, is_train) -> mapper``, where it isn't Detectron2's."""


def build_mapper(cfg: CfgNode, *, is_train: bool) -> Mapper:
    """The mapper of a config.

    Args:
        cfg (CfgNode): MODEL.META_ARCHITECTURE decides.
        is_train (bool): whether it augments, and keeps what is there for training alone.
    """
    if cfg.MODEL.META_ARCHITECTURE in MAPPERS:
        return MAPPERS.get(cfg.MODEL.META_ARCHITECTURE)(cfg, is_train)
    return DatasetMapper(cfg, is_train=is_train)
