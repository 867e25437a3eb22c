"""The digest of a pass over a data set, and a loader that resumes an interrupted pass."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from typing import Any

import torch
from detectron2.config import CfgNode
from torch import nn

BatchLoader = Iterable[Sequence[Mapping[str, Any]]]
"""Batches of mapped images with a length, as `inference_on_dataset` takes them."""

LoaderFactory = Callable[[int], BatchLoader]
"""A function from the number of finished batches to a loader of the remaining ones."""


def deciding_settings(cfg: CfgNode, *, collects: bool = False) -> dict[str, CfgNode]:
    """The parts of a config that a pass over data depends on, besides weights and images.

    Args:
        cfg (CfgNode): a config with MODEL.LOGN.
        collects (bool): whether the pass collects statistics, so that MODEL.LOGN.COLLECT matters.

    Returns:
        dict: settings for `pass_digest`; an older Detectron2 lacks some keys.
    """
    cfg = cfg.clone()
    cfg.defrost()
    node = cfg.MODEL.LOGN
    # The weights have a digest of their own, whatever their path, and a calibration does not change
    # the raw logits that passes store.
    cfg.MODEL.WEIGHTS = cfg.MODEL.DEVICE = node.STATISTICS = node.CALIBRATION = ""
    node.LAZY.FILE = ""  # its digest identifies its content
    # Settings without an influence on the result may change when a pass resumes.
    cfg.DATALOADER.NUM_WORKERS = node.VIS_IMAGES = node.CHECK_IMAGES = 0
    if collects:
        # How often files are written, and how many images a training collects now and then.
        node.COLLECT.CHECKPOINT_PERIOD = node.COLLECT.PERIODIC_IMAGES = 0
    else:
        del node["COLLECT"]
    return {"model": cfg.MODEL, "input": cfg.INPUT, "loader": cfg.DATALOADER}


def weights_digest(model: nn.Module) -> str:
    """A hash of all weights and buffers: 64 hexadecimal digits.

    It takes about a second per GiB. The classifier's weights alone are not enough, because a change
    anywhere in the network changes the logits.
    """
    digest = hashlib.sha256()
    # Sorted, so that the order in which modules were registered does not matter.
    for name, tensor in sorted(model.state_dict().items()):
        tensor = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        # As bytes: numpy knows no bfloat16.
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def pass_digest(model: nn.Module, loader: object, settings: Mapping[str, Any]) -> str:
    """A hash of everything that determines the result of a pass: 12 hexadecimal digits.

    Args:
        model (nn.Module): the model, whose weights are hashed.
        loader (object): the loader; its images are hashed if it is a loader of `PassDataset`.
        settings (Mapping): other settings that affect the result, JSON-serialisable.
    """
    digest = getattr(getattr(loader, "dataset", None), "digest", None)
    content = {
        "weights": weights_digest(model),
        "images": digest() if callable(digest) else None,
        "settings": settings,
    }
    # `default=str` writes config nodes and paths.
    text = json.dumps(content, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def loader_from(loader: BatchLoader | LoaderFactory, skip: int) -> BatchLoader:
    """The loader without its first batches.

    Args:
        loader (Iterable or Callable): a loader, whose first batches are loaded and dropped; or a
            function from the number of batches to skip to a loader, which saves loading them.
        skip (int): number of batches to skip.
    """
    # Not `callable`: a loader of a class with `__call__` is a loader all the same.
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
