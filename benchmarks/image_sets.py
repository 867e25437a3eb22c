"""The long-tailed sets of images on which `classification.py` trains small classifiers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["SETS", "ImageSet"]


@dataclass(frozen=True)
class ImageSet:
    """A long-tailed set with its splits.

    Attributes:
        title (str): title of the table.
        config (str): config of its linear classifier, in configs/classification.
        iterations (int): length of a training, in batches of 64 images.
        few (float): share of a class with 20 training images; EQL's threshold for rare classes.
        sources (Mapping[str, str]): split -> source, with a placeholder for the seed.
        unknown (Mapping[str, str]): name in the table -> a split, or a registered set.
    """

    title: str
    config: str
    iterations: int
    few: float
    sources: Mapping[str, str]
    unknown: Mapping[str, str]

    def name(self, split: str, seed: int) -> str:
        """Registered name of a split."""
        return f"{self.config.partition('_')[0]}{seed}_{split}"

    def entries(self, seed: int) -> list[list[str]]:
        """The value of MODEL.LOGN.IMAGE.DATASETS."""
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
        0.02,  # 6 images instead of 20, since the set is so small
        {"train": "digits(seed={seed})", "test": "digits(split=test)", "noise": "noise(side=8)"},
        {"noise": "noise"},
    ),
}
