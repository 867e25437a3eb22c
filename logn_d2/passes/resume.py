"""What decides a pass over a data set, and a loader that resumes an interrupted one."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from typing import Any

import torch
from detectron2.config import CfgNode
from torch import nn

__all__ = [
    "BatchLoader",
    "LoaderFactory",
    "deciding_settings",
    "loader_from",
    "pass_digest",
    "weights_digest",
]

BatchLoader = Iterable[Sequence[Mapping[str, Any]]]
"""What `inference_on_dataset` takes: batches of mapped images, with a length."""

LoaderFactory = Callable[[int], BatchLoader]
"""A function from the number of batches that are done already to a loader of the others."""


def deciding_settings(cfg: CfgNode, *, collects: bool = False) -> dict[str, CfgNode]:
    """The parts of a config that a pass over data depends on, besides weights and images.

    Args:
        cfg (CfgNode): a config with MODEL.LOGN.
        collects (bool): whether the pass gathers statistics, which MODEL.LOGN.COLLECT is about.

    Returns:
        dict: for `pass_digest` and the like; an older Detectron2 lacks some keys.
    """
    cfg = cfg.clone()
    cfg.defrost()
    node = cfg.MODEL.LOGN
    # Whatever weights are loaded, their digest is compared; a calibration leaves raw logits alone.
    cfg.MODEL.WEIGHTS = cfg.MODEL.DEVICE = node.STATISTICS = node.CALIBRATION = ""
    cfg.DATALOADER.NUM_WORKERS = node.VIS_IMAGES = node.CHECK_IMAGES = 0
    if collects:
        node.COLLECT.CHECKPOINT_PERIOD = node.COLLECT.PERIODIC_IMAGES = 0
    else:
        del node["COLLECT"]
    return {"model": cfg.MODEL, "input": cfg.INPUT, "loader": cfg.DATALOADER}


def weights_digest(model: nn.Module) -> str:
    """A hash of all weights and buffers: 64 hexadecimal digits.

    About a second per GiB. A change anywhere in the network changes its logits, so the
    classifier's weights alone would not do.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        tensor = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def pass_digest(model: nn.Module, loader: object, settings: Mapping[str, Any]) -> str:
    """A hash of everything that decides the result of a pass: 12 hexadecimal digits.

    Args:
        model (nn.Module): its weights.
        loader (object): the images, where it knows them (a loader of `PassDataset`).
        settings (Mapping): what else has an influence, as far as JSON can write it.
    """
    digest = getattr(getattr(loader, "dataset", None), "digest", None)
    content = {
        "weights": weights_digest(model),
        "images": digest() if callable(digest) else None,
        "settings": settings,
    }
    text = json.dumps(content, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def loader_from(loader: BatchLoader | LoaderFactory, skip: int) -> BatchLoader:
    """The loader without its first batches.

    Args:
        loader (Iterable or Callable): a loader, whose first batches are loaded and dropped; or a
            function from the number of batches to leave out to a loader, which saves that time.
        skip (int): batches to leave out.
    """
    if not isinstance(loader, Iterable):
        return loader(skip)
    return _SkippingLoader(loader, skip) if skip else loader


class _SkippingLoader:
    def __init__(self, loader: BatchLoader, skip: int) -> None:
        assert isinstance(loader, Sized)
        self._loader = loader
        self._skip = skip

    def __len__(self) -> int:
        return max(len(self._loader) - self._skip, 0)

    def __iter__(self) -> Iterator[Sequence[Mapping[str, Any]]]:
        return itertools.islice(self._loader, self._skip, None)
