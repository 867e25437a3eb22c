"""Glyphs-LT: single characters of LT-Glyphs with an ImageNet-LT tail, drawn in seconds.

Sixty characters with 300 to 3 training images along an exponential profile, so that ImageNet-LT's
limits yield Many, Medium and Few; 20 images of each for validation and 50 for the test. Twenty
characters that are not among these and do not resemble them are the unknown inputs.

Shapes: images are uint8 (side, side), gray.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import cv2
import numpy as np

from ..errors import check_known
from ..glyphs.drawing import draw_image
from ..glyphs.plan import ImagePlan
from ..glyphs.sizes import GlyphSize
from ..glyphs.vocabulary import category_of, select_vocabulary
from .image_data import IMAGE_SOURCES, ImageData, array_records
from .long_tail import long_tail_counts

# Images of each class; training follows the profile.
SPLITS = {"train": None, "val": 20, "test": 50, "unknown": 50}
LARGEST, RATIO, UNKNOWN_CLASSES = 300, 100, 20
_SIMILARITY = 0.8

# One character near the centre and little else: the tail makes the set difficult, not the drawing.
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
_MARGIN = 0.15  # around the character, as a share of its longest side
_JITTER = 0.06  # largest shift of its centre, as a share of that side


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
    """Drawn characters, one per image.

    Args:
        split (str): "train", "val", "test", or "unknown" for characters outside the classes.
        classes (int): K; the same characters for every seed.
        largest (int): training images of the most frequent class.
        ratio (float): images of that class per image of the rarest.
        side (int): height and width in pixels.
        seed (int): seed of the classes' ranks and of the drawing.

    Raises:
        KeyError: an unknown split.
        ValueError: fewer than K characters differ enough.
    """
    check_known("split", split, SPLITS, " of Glyphs-LT")
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
    # The split is part of each image's seed: no drawing of one split recurs in another.
    pixels = _drawn(characters, tuple(counts.tolist()), side, seed, list(SPLITS).index(split))
    labels = np.repeat(np.arange(len(characters)), counts)
    names = [category_of(character, 0)["name"] for character in characters]
    return ImageData(array_records(f"glyphs_{split}", pixels, labels), tuple(names))


# Checks, training, statistics and evaluation each load the set, which takes seconds to draw.
@functools.lru_cache(maxsize=8)
def _drawn(
    characters: Sequence[str], counts: tuple[int, ...], side: int, seed: int, stream: int
) -> np.ndarray:
    """Images class by class, (sum of counts, side, side); each has its own generator."""
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
    # Positions outside the drawn image repeat its border.
    matrix = np.column_stack([np.eye(2) * scale, side / 2 - middle * scale])
    gray = cv2.cvtColor(image, cv2.COLOR_BGR2GRAY)
    # Blurred before it is reduced: linear interpolation alone would skip pixels.
    gray = cv2.GaussianBlur(gray, (0, 0), max(0.35 / scale, 0.2))
    return cv2.warpAffine(
        gray, matrix, (side, side), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
    )
