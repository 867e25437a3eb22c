"""Registration of image sets in Detectron2's catalogs: built-in ones, and those of a config."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog

from ..core.specs import check_options, parse_call
from ..data.registration import LazyMetadata
from ..errors import UserError
from .image_data import IMAGE_SOURCES, ImageData

EVALUATOR = "classification"


def _built_in(root: str) -> dict[str, str]:
    """Name -> source. ImageNet-LT and CIFAR are files of the user below the datasets root."""
    lists, photos = f"{root}/imagenet_lt", f"{root}/imagenet"
    return {
        **{f"glyphs_lt_{s}": f"glyphs(split='{s}')" for s in ("train", "val", "test", "unknown")},
        **{f"digits_lt_{s}": f"digits(split='{s}')" for s in ("train", "test")},
        "mnist": "mnist()",
        "noise": "noise()",
        # Largest and smallest class as in ImageNet-LT.
        "fashion_mnist_lt_train": "idx(split='train', ratio=256.0, largest=1280)",
        "fashion_mnist_lt_val": "idx(split='val')",
        "fashion_mnist_test": "idx(split='test')",
        **{
            f"cifar{k}_lt{ratio}_train": f"cifar(root={root!r}, classes={k}, ratio={ratio})"
            for k in (10, 100)
            for ratio in (10, 50, 100)
        },
        **{
            f"cifar{k}_{s}": f"cifar(root={root!r}, classes={k}, split='{s}')"
            for k in (10, 100)
            for s in ("train", "test")
        },
        **{
            f"imagenet_lt_{s}": (
                f"list(file={f'{lists}/ImageNet_LT_{s}.txt'!r}, root={photos!r}, "
                f"num_classes=1000, published='imagenet_lt_{s}')"
            )
            for s in ("train", "val", "test")
        },
    }


class _ImageMetadata(LazyMetadata):
    """Metadata whose class names and limits are read from the source."""

    lazy = ("thing_classes", "frequency_limits")

    def read(self) -> None:
        data = self._load()
        self.__dict__.update(thing_classes=list(data.class_names), frequency_limits=data.limits)


def register_images(name: str, source: str | Callable[[], ImageData]) -> None:
    """Register a set of images, which is read only when used.

    Args:
        name (str): the name for DATASETS.TRAIN and DATASETS.TEST.
        source (str or Callable): a call of one of `IMAGE_SOURCES`, such as
            "folder(root='shop/train', ratio=100)"; or a function that returns the set.

    Raises:
        KeyError: an unknown kind.
        ValueError: unknown options, or the name is registered with another source.

    Example:
        >>> register_images("example_digits", "digits(split=test)")
        >>> len(DatasetCatalog.get("example_digits"))
        600
    """
    described = source if isinstance(source, str) else repr(source)
    if name in DatasetCatalog.list():
        known = vars(MetadataCatalog.get(name)).get("_source")
        if known == described:
            return
        raise UserError(
            f"The data set '{name}' is already registered as {known or 'another kind of set'}; "
            f"can't register it as {described}. Choose another name."
        )
    load = _Loaded(_read_source(source) if isinstance(source, str) else source, name)
    DatasetCatalog.register(name, lambda: list(load().records))
    fields = {"_load": load, "_source": described, **load.files()}
    MetadataCatalog[name] = _ImageMetadata(name=name, evaluator_type=EVALUATOR, **fields)


def register_image_sets(cfg: CfgNode | None = None, root: str | None = None) -> None:
    """Register the built-in sets, and those listed in MODEL.LOGN.IMAGE.DATASETS.

    Args:
        cfg (CfgNode): None for only the built-in ones.
        root (str): datasets root; None takes $DETECTRON2_DATASETS, else ``datasets``.

    Raises:
        ValueError: an entry is not [name, source], or `register_images` refuses it.
    """
    root = root or os.environ.get("DETECTRON2_DATASETS", "datasets")
    for name, source in _built_in(root).items():
        if name not in DatasetCatalog.list():
            register_images(name, source)
    for entry in [] if cfg is None else cfg.MODEL.LOGN.IMAGE.DATASETS:
        if isinstance(entry, str) or len(entry) != 2 or not all(isinstance(e, str) for e in entry):
            raise UserError(
                f"MODEL.LOGN.IMAGE.DATASETS holds {entry!r}; expected [name, source], such as "
                '["shop_train", "folder(root=\'shop/train\', ratio=100)"].'
            )
        register_images(*entry)


def check_splits(train_names: Sequence[str], test_names: Sequence[str]) -> None:
    """Check that training and test sets have images of the same classes.

    Args:
        train_names (Sequence[str]): registered sets, taken together.
        test_names (Sequence[str]): registered sets, each checked separately.

    Raises:
        ValueError: some classes are missing; the message has the first one and their number.
    """
    names = MetadataCatalog.get(train_names[0]).thing_classes
    trained = _counts(train_names, len(names))
    for test in test_names:
        tested = _counts([test], len(names))
        for missing, where, other in (
            (trained == 0, f"training ({', '.join(train_names)})", test),
            (tested == 0, f"'{test}'", "training"),
        ):
            first = np.flatnonzero(missing & ((trained > 0) | (tested > 0)))
            if first.size:
                raise UserError(
                    f"{first.size} of {len(names)} classes have no image in {where}, but some in "
                    f"{other}; the first is '{names[first[0]]}'. Add images of every class to "
                    "both, or leave the class out of both."
                )


class _Loaded:
    """Reads a source once, and adds the name of the set to errors."""

    def __init__(self, source: Callable[[], ImageData], name: str) -> None:
        self._source, self._name = source, name
        self._data: ImageData | None = None

    def __call__(self) -> ImageData:
        # Only success is kept: a missing file may be put there before the next call.
        if self._data is None:
            try:
                self._data = self._source()
            except UserError as error:
                # Of the same kind, since missing files are treated differently from invalid ones.
                raise type(error)(f"The data set '{self._name}': {error}") from error
        return self._data

    def files(self) -> dict[str, str]:
        """Required file and folder, under Detectron2's names."""
        options = getattr(self._source, "keywords", {})
        found = {"json_file": options.get("file"), "image_root": options.get("root")}
        return {key: value for key, value in found.items() if value}


def _read_source(text: str) -> Callable[[], ImageData]:
    kind, options = parse_call(text, "image set", "folder(root='shop/train', ratio=100)")
    entry = IMAGE_SOURCES.get(kind)
    check_options(text, "image set", entry, options)
    return partial(entry, **options)


def _counts(names: Sequence[str], num_classes: int) -> np.ndarray:
    labels = [each["label"] for name in names for each in DatasetCatalog.get(name)]
    return np.bincount(labels, minlength=num_classes)
