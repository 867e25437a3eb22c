"""The parts that a config builds: model, mappers, sampler, optimizer and schedule.

Of a YAML config, Detectron2 builds them from the config node. A LazyConfig holds the calls
themselves.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from detectron2.config import CfgNode, instantiate
from detectron2.data import DatasetMapper
from detectron2.modeling import build_model
from detectron2.solver import LRMultiplier, build_lr_scheduler, build_optimizer
from omegaconf import DictConfig
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import Sampler

from .core.registry import Registry
from .errors import UserError
from .lazy import check_lazy_training, lazy_config, target_of

Mapper = Callable[[dict[str, Any]], "dict[str, Any] | None"]

MAPPERS: Registry = Registry("mapper")
"""Meta-architecture -> ``function(cfg, is_train) -> mapper``, if it differs from Detectron2's."""


def source_of(cfg: CfgNode) -> Source:
    """The builder of a config's parts.

    Raises:
        ValueError: the LazyConfig has changed since the config node was filled from it.
    """
    file = cfg.MODEL.LOGN.LAZY.FILE if "LOGN" in cfg.MODEL else ""
    return LazySource(cfg, file) if file else Source(cfg)


class Source:
    """A YAML config: Detectron2 builds everything from the config node.

    Args:
        cfg (CfgNode): the config.
        file (str): path of the LazyConfig; "" for a YAML config.
    """

    def __init__(self, cfg: CfgNode, file: str = "") -> None:
        self.cfg = cfg
        self.file = file

    def model(self) -> nn.Module:
        """The model on MODEL.DEVICE, without weights."""
        return build_model(self.cfg)

    def mapper(self, is_train: bool) -> Mapper:
        """The mapper of the training or of the test images."""
        kind = self.cfg.MODEL.META_ARCHITECTURE
        if kind in MAPPERS:
            return MAPPERS.get(kind)(self.cfg, is_train)
        return DatasetMapper(self.cfg, is_train=is_train)

    def mapper_call(self, is_train: bool) -> tuple[type[DatasetMapper], dict[str, Any]]:
        """Class and arguments of a detector's mapper, for mappers that differ from it in some.

        Raises:
            ValueError: the mapper of a LazyConfig has other arguments than Detectron2's.
        """
        return DatasetMapper, DatasetMapper.from_config(self.cfg, is_train=is_train)

    def sampler(self) -> Sampler | None:
        """The training sampler; None where Detectron2 builds it with the loader."""
        return None

    def optimizer(self, model: nn.Module) -> Optimizer:
        """The optimizer of the model's parameters."""
        return build_optimizer(self.cfg, model)

    def schedule(self, optimizer: Optimizer) -> LRScheduler:
        """The learning rate's schedule."""
        return build_lr_scheduler(self.cfg, optimizer)

    def check_training(self) -> None:
        """Check that the config has what a training needs.

        Raises:
            ValueError: a LazyConfig lacks a part.
        """


class LazySource(Source):
    """A LazyConfig, whose calls are instantiated."""

    def __init__(self, cfg: CfgNode, file: str) -> None:
        super().__init__(cfg, file)
        self._config = lazy_config(cfg)

    def model(self) -> nn.Module:
        return instantiate(self._config.model).to(torch.device(self.cfg.MODEL.DEVICE))

    def mapper(self, is_train: bool) -> Mapper:
        return instantiate(self._mapper(is_train))

    def mapper_call(self, is_train: bool) -> tuple[type[DatasetMapper], dict[str, Any]]:
        call = self._mapper(is_train)
        kind = target_of(call)
        if not (isinstance(kind, type) and issubclass(kind, DatasetMapper)):
            raise UserError(
                f"The LazyConfig's mapper is {kind.__name__}, which need not have the arguments of "
                "Detectron2's DatasetMapper. Derive it from DatasetMapper, or use logn_d2.collect "
                "and logn_d2.attach in Python, with a loader of your own."
            )
        return kind, {
            name: instantiate(value) for name, value in call.items() if name != "_target_"
        }

    def _mapper(self, is_train: bool) -> DictConfig:
        loaders = self._config.dataloader
        return (loaders.train if is_train else loaders.test).mapper

    def sampler(self) -> Sampler | None:
        return instantiate(self._config.dataloader.train.get("sampler"))

    def optimizer(self, model: nn.Module) -> Optimizer:
        self._config.optimizer.params.model = model
        return instantiate(self._config.optimizer)

    def schedule(self, optimizer: Optimizer) -> LRScheduler:
        multiplier = instantiate(self._config.lr_multiplier)
        return LRMultiplier(optimizer, multiplier, self._config.train.max_iter)

    def check_training(self) -> None:
        check_lazy_training(self._config, self.file)
