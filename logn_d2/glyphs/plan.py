"""The content of each image of LT-Glyphs, planned before anything is drawn.

The plan fixes the long tail and the federated lists; drawing only chooses places and colours.
Everything follows from seed and size, so workers can draw images in any order.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from ..errors import UserError
from .sizes import GlyphSize

SPLITS = ("train", "val")

# Random streams of a split, in addition to those of its images (see `_stream`).
_COUNTS_STREAM, _PLAN_STREAM = 0, 1


@dataclasses.dataclass(frozen=True)
class ImagePlan:
    """Content of one image; classes are contiguous indices in [0, K).

    Attributes:
        index (int): position in the split, from 0.
        objects (tuple[tuple[int, bool], ...]): (class, whether it is annotated) of each object.
        negatives (tuple[int, ...]): classes known to be absent.
        not_exhaustive (tuple[int, ...]): annotated classes with an instance left out.
    """

    index: int
    objects: tuple[tuple[int, bool], ...]
    negatives: tuple[int, ...]
    not_exhaustive: tuple[int, ...]


def _stream(seed: int, split: str, kind: int) -> np.random.Generator:
    # The third number separates these streams from those of the images, which have 1 there.
    return np.random.default_rng([seed, SPLITS.index(split), 0, kind])


def image_generator(seed: int, split: str, index: int) -> np.random.Generator:
    """The generator of one image, independent of the process that draws it."""
    return np.random.default_rng([seed, SPLITS.index(split), 1, index])


def class_image_counts(size: GlyphSize, seed: int, split: str) -> np.ndarray:
    """Planned number of images of each class, int64 (K,).

    Training counts follow the size's long tail and are assigned to classes at random, so that
    frequency is independent of the script. Validation counts differ by at most one.
    """
    rng = _stream(seed, split, _COUNTS_STREAM)
    if split == "train":
        return rng.permutation(size.train_image_counts())
    # Loads are uniform between their bounds, so their mean is the middle.
    pairs = int(round(size.val_images * sum(size.classes_per_image) / 2))
    counts = np.full(size.num_classes, pairs // size.num_classes, dtype=np.int64)
    counts[rng.permutation(size.num_classes)[: pairs % size.num_classes]] += 1
    return np.clip(counts, 1, size.val_images)


def _image_loads(
    total: int, num_images: int, bounds: tuple[int, int], rng: np.random.Generator
) -> np.ndarray:
    """Number of classes in each image, int64 (num_images,), with sum ``total``."""
    low, high = bounds
    loads = rng.integers(low, high + 1, num_images)
    while loads.sum() != total:
        step = 1 if loads.sum() < total else -1
        # Outside the bounds only when the counts can't be met within them.
        movable = np.flatnonzero(loads < high if step > 0 else loads > low)
        if movable.size == 0:
            movable = np.flatnonzero(loads + step >= 0)
        missing = abs(int(loads.sum()) - total)
        loads[rng.permutation(movable)[:missing]] += step
    return loads


def _deal_classes(
    counts: np.ndarray, loads: np.ndarray, num_characters: int, rng: np.random.Generator
) -> list[list[int]]:
    """Deal each class to as many different images as it should have.

    The most frequent classes are dealt first, and images with more free places are likelier, so
    that the loads are met closely; the counts are met exactly. No image gets two names of a
    character while there are images without any.
    """
    free = loads.astype(np.float64)
    shown: list[list[int]] = [[] for _ in loads]
    named = np.zeros((num_characters, len(loads)), dtype=bool)
    for index in np.argsort(-counts, kind="stable"):
        # Weighted choice without replacement: the smallest of Exponential(1) / weight.
        # Never 0: full images, and then those with another name of the character, serve if no
        # others are left.
        weight = np.maximum(free, 1e-9)
        weight[named[index % num_characters]] = 1e-99
        keys = rng.standard_exponential(len(loads)) / weight
        chosen = np.argpartition(keys, counts[index] - 1)[: counts[index]]
        free[chosen] -= 1
        named[index % num_characters, chosen] = True
        for image in np.sort(chosen):
            shown[image].append(int(index))
    return shown


def _plan_image(
    index: int, positives: list[int], size: GlyphSize, world: np.ndarray, rng: np.random.Generator
) -> ImagePlan:
    """Add repeats, unannotated objects and negatives to an image's annotated classes."""
    objects = [(c, True) for c in positives]
    objects += [(c, True) for c in positives if rng.random() < size.repeat_rate]
    partial = [c for c in positives if rng.random() < size.not_exhaustive_rate]
    objects += [(c, False) for c in partial]
    # All names of a shown character are excluded: another name of it is neither present nor absent.
    character = np.arange(size.num_classes) % size.num_characters
    silent = ~np.isin(character, character[positives])
    if silent.any() and rng.random() < size.unlabelled_rate:
        weight = world * silent
        unlisted = int(rng.choice(size.num_classes, p=weight / weight.sum()))
        objects.append((unlisted, False))
        silent &= character != character[unlisted]
    absent = np.flatnonzero(silent)
    negatives = rng.permutation(absent)[: size.negatives_per_image]
    # In any other order, repeats and unannotated objects would always lie on top.
    order = rng.permutation(len(objects))
    return ImagePlan(
        index=index,
        objects=tuple(objects[i] for i in order),
        negatives=tuple(sorted(int(c) for c in negatives)),
        not_exhaustive=tuple(sorted(partial)),
    )


def plan_split(size: GlyphSize, seed: int, split: str) -> list[ImagePlan]:
    """Plan all images of a split.

    Args:
        size (GlyphSize): parameters of the set.
        seed (int): >= 0.
        split (str): "train" or "val".

    Returns:
        list[ImagePlan]: one per image, in order.
    """
    num_images = size.train_images if split == "train" else size.val_images
    counts = class_image_counts(size, seed, split)
    if counts.max() > num_images:
        raise UserError(
            f"size '{size.name}': the most frequent class should be in {counts.max()} {split} "
            f"images, but only {num_images} are drawn. Draw more images or lower the counts."
        )
    rng = _stream(seed, split, _PLAN_STREAM)
    loads = _image_loads(int(counts.sum()), num_images, size.classes_per_image, rng)
    shown = _deal_classes(counts, loads, size.num_characters, rng)
    # Unannotated objects follow the natural frequencies, as in photographs.
    world = counts.astype(np.float64)
    return [_plan_image(i, classes, size, world, rng) for i, classes in enumerate(shown)]
