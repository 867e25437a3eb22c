"""The long-tailed sets of images that `classification.py` trains small classifiers on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["SETS", "ImageSet"]


@dataclass(frozen=True)
class ImageSet:
    """What is classified.

    Attributes:
        title (str): of the table.
        config (str): of its linear classifier, in configs/classification.
        iterations (int): of 64 images.
        few (float): share of a class with 20 training images, below which EQL calls it rare.
        sources (Mapping[str, str]): split -> source, with the seed to be filled in.
        unknown (Mapping[str, str]): name in the table -> a split, or a registered set.
    """

    title: str
    config: str
    iterations: int
    few: float
    sources: Mapping[str, str]
    unknown: Mapping[str, str]

    def name(self, split: str, seed: int) -> str:
        """The registered set."""
        return f"{self.config.partition('_')[0]}{seed}_{split}"

    def entries(self, seed: int) -> list[list[str]]:
        """MODEL.LOGN.IMAGE.DATASETS."""
        return [[self.name(s, seed), text.format(seed=seed)] for s, text in self.sources.items()]


SETS = {
    "glyphs": ImageSet(
        "glyphs-LT",
        "glyphs_lt_linear",
        1845,  # 30 epochs of 3,931 images
        0.005,
        {s: f"glyphs(split={s}, seed={{seed}})" for s in ("train", "val", "test", "unknown")},
        {"near": "unknown", "digits": "digits_lt_test", "noise": "noise"},
    ),
    "fashion": ImageSet(
        "Fashion-MNIST, long-tailed",
        "fashion_mnist_lt_linear",
        1300,  # 30 epochs of 2,773 images
        0.0072,
        {
            "train": "idx(ratio=256.0, largest=1280, seed={seed})",
            "val": "idx(split=val, seed={seed})",
            "test": "idx(split=test)",
            "noise": "noise(side=28)",
        },
        {"mnist": "mnist", "noise": "noise"},
    ),
    "digits": ImageSet(
        "digits-LT",
        "digits_lt_linear",
        660,  # 150 epochs of 278 images
        0.02,  # 6 images: the few classes of so small a set
        {"train": "digits(seed={seed})", "test": "digits(split=test)", "noise": "noise(side=8)"},
        {"noise": "noise"},
    ),
}
