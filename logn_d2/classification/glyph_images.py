"""Glyphs-LT: LT-Glyphs cut into single characters, with ImageNet-LT's shape. Drawn in seconds.

Sixty characters, 300 to 3 training images of a class along an exponential profile, so that
ImageNet-LT's own limits make Many, Medium and Few; 20 images of each for validation and 50 for the
test. Twenty characters that are none of these, nor look like one, are the unknown inputs.

Shapes: images are uint8 (side, side), gray.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import cv2
import numpy as np

from ..errors import UnknownNameError
from ..glyphs.drawing import draw_image
from ..glyphs.plan import ImagePlan
from ..glyphs.sizes import GlyphSize
from ..glyphs.vocabulary import category_of, select_vocabulary
from .image_data import IMAGE_SOURCES, ImageData, array_records
from .long_tail import long_tail_counts

__all__ = ["SPLITS", "glyph_images"]

# Images of each class; training has those of the profile.
SPLITS = {"train": None, "val": 20, "test": 50, "unknown": 50}
LARGEST, RATIO, UNKNOWN_CLASSES = 300, 100, 20
_SIMILARITY = 0.8

# One character in the middle of little else: the difficulty is in the tail.
_SIZE = GlyphSize(
    name="single",
    num_classes=1,
    train_images=1,
    val_images=1,
    image_px=48,
    glyph_px=(20.0, 28.0),
    classes_per_image=(1, 1),
    distractors=(0, 1),
    occlusion_rate=0.1,
    noise=16.0,
    background=30.0,
)
_MARGIN = 0.15  # of the character's longest side, around it
_JITTER = 0.06  # of that side, where its middle may be


@IMAGE_SOURCES.register("glyphs")
def glyph_images(
    *,
    split: str = "train",
    classes: int = 60,
    largest: int = LARGEST,
    ratio: float = RATIO,
    side: int = 16,
    seed: int = 0,
) -> ImageData:
    """Drawn characters, one an image.

    Args:
        split (str): "train", "val", "test", or "unknown" for characters of no class.
        classes (int): K; the same characters for every seed.
        largest (int): training images of the most frequent class.
        ratio (float): of that to the rarest class.
        side (int): height and width in pixels.
        seed (int): of which class gets which rank, and of all drawing.

    Raises:
        KeyError: another split.
        ValueError: more classes than there are characters that differ enough.
    """
    if split not in SPLITS:
        raise UnknownNameError(f"Glyphs-LT has no split '{split}'. Known: {', '.join(SPLITS)}.")
    characters = known = select_vocabulary(classes, _SIMILARITY)
    if split == "unknown":
        characters = select_vocabulary(UNKNOWN_CLASSES, _SIMILARITY, known)
    order = np.random.default_rng(seed).permutation(len(characters))
    number = SPLITS[split]
    counts = (
        long_tail_counts(len(characters), largest, ratio, order)
        if number is None
        else np.full(len(characters), number)
    )
    pixels = _drawn(characters, tuple(counts.tolist()), side, seed, list(SPLITS).index(split))
    labels = np.repeat(np.arange(len(characters)), counts)
    names = [category_of(character, 0)["name"] for character in characters]
    return ImageData(array_records(f"glyphs_{split}", pixels, labels), tuple(names))


@functools.lru_cache(maxsize=8)
def _drawn(
    characters: Sequence[str], counts: tuple[int, ...], side: int, seed: int, stream: int
) -> np.ndarray:
    """(sum of counts, side, side), class by class; each image has a generator of its own."""
    pixels = [
        _draw(character, side, np.random.default_rng([seed, stream, ord(character), index]))
        for character, count in zip(characters, counts, strict=True)
        for index in range(count)
    ]
    return np.stack(pixels)


def _draw(character: str, side: int, rng: np.random.Generator) -> np.ndarray:
    """One character, cut out of a drawn image with a margin."""
    plan = ImagePlan(index=0, objects=((0, True),), negatives=(), not_exhaustive=())
    image, (drawn,) = draw_image(plan, (character,), _SIZE, rng)
    left, top, width, height = drawn.bbox
    reach = max(width, height) * (0.5 + _MARGIN)
    middle = np.array([left + width / 2, top + height / 2])
    middle += rng.uniform(-_JITTER, _JITTER, 2) * max(width, height)
    scale = side / (2 * reach)
    # What lies outside of the drawn image repeats its border.
    matrix = np.column_stack([np.eye(2) * scale, side / 2 - middle * scale])
    gray = cv2.cvtColor(image, cv2.COLOR_BGR2GRAY)
    # Blurred first: the cut is smaller than what it is taken from.
    gray = cv2.GaussianBlur(gray, (0, 0), max(0.35 / scale, 0.2))
    return cv2.warpAffine(
        gray, matrix, (side, side), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
    )
