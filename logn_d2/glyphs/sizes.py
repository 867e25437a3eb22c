"""The named sizes of LT-Glyphs: one table with every parameter of difficulty.

Lengths are in pixels of the drawn image unless said otherwise, angles in degrees, colours in
[0, 255], rates in [0, 1].
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from ..errors import UserError, check_known
from ..frequency import frequency_groups

# LVIS v1 train as published: 1,203 classes, 337 with at most 10 images, 461 with 11 to 100, 405
# with more, the most frequent one in 1,977 images. (share of classes, image count) at the borders.
LVIS_V1_KNOTS = ((0.0, 1.0), (337 / 1203, 10.5), (798 / 1203, 100.5), (1.0, 1977.0))


@dataclasses.dataclass(frozen=True)
class GlyphSize:
    """All parameters of the appearance and difficulty of a drawn data set.

    Attributes:
        name (str): part of the folder and of the registered names.
        num_classes (int): K.
        train_images, val_images (int): number of images drawn.
        image_px (int): height and width of an image.
        classes_per_image (tuple[int, int]): smallest and largest number of different annotated
            classes in an image.
        repeat_rate (float): probability that an annotated class is drawn once more in the same
            image.
        zipf_exponent, zipf_offset (float): the class of rank r (from 1) has a number of training
            images proportional to (r + offset) ** -exponent. The offset flattens the head.
        count_knots (tuple[tuple[float, float], ...] or None): if given, image counts follow this
            quantile curve (see :func:`knot_image_counts`) instead of the Zipf fields.
        rare_max, common_max (int): a class is rare (r) in at most ``rare_max`` training images,
            common (c) in at most ``common_max``, else frequent (f). LVIS uses 10 and 100; a set
            with few images needs smaller limits, or no class would be frequent.
        similarity (float): largest cosine similarity of the 16 x 16 drawings of two characters in
            the vocabulary. Lower values are easier and leave fewer characters.
        unlike (str or None): name of a size whose characters, and similar ones, are excluded.
        names_per_character (int): number of classes that share a character. An object carries one
            of its character's names; the others are neither present nor known to be absent.
        glyph_px (tuple[float, float]): longest side of a glyph before rotation, log-uniform.
        aspect (float): largest stretch of one axis relative to the other, as a factor >= 1.
        rotation (float): largest rotation to either side.
        shear (float): largest horizontal shear, as a tangent.
        stroke (float): largest thickening of the pen, as a share of the glyph's longest side.
        contrast (float): smallest difference in brightness between a glyph and its background.
        background (float): amplitude of the background's texture.
        blur (float): largest standard deviation of the Gaussian blur of an image.
        noise (float): largest standard deviation of the pixel noise of an image.
        occlusion_rate (float): probability that a shape is painted across an object.
        min_visible (float): smallest visible share of an object's ink.
        distractors (tuple[int, int]): smallest and largest number of shapes without a class.
        negatives_per_image (int): sampled classes known to be absent from an image.
        not_exhaustive_rate (float): share of the (image, class) pairs in which one more instance
            is drawn without annotation, and the class is listed as not exhaustively annotated.
        unlabelled_rate (float): probability that an image shows an object of an unverified class,
            whose detections the federated rule must ignore.
    """

    name: str
    num_classes: int
    train_images: int
    val_images: int
    image_px: int
    glyph_px: tuple[float, float]
    classes_per_image: tuple[int, int] = (2, 5)
    repeat_rate: float = 0.2
    zipf_exponent: float = 2.2
    zipf_offset: float = 10.0
    count_knots: tuple[tuple[float, float], ...] | None = None
    rare_max: int = 10
    common_max: int = 100
    similarity: float = 0.8
    unlike: str | None = None
    names_per_character: int = 1
    aspect: float = 1.25
    rotation: float = 15.0
    shear: float = 0.2
    stroke: float = 0.04
    contrast: float = 60.0
    background: float = 40.0
    blur: float = 0.8
    noise: float = 12.0
    occlusion_rate: float = 0.25
    min_visible: float = 0.5
    distractors: tuple[int, int] = (1, 4)
    negatives_per_image: int = 20
    not_exhaustive_rate: float = 0.03
    unlabelled_rate: float = 0.2

    def __post_init__(self) -> None:
        low, high = self.classes_per_image
        if not 1 <= low <= high <= self.num_classes:
            raise UserError(
                f"size '{self.name}': classes_per_image={self.classes_per_image} must be two "
                f"numbers from 1 to num_classes={self.num_classes}, the smaller one first."
            )
        if self.names_per_character < 1 or self.num_classes % self.names_per_character:
            raise UserError(
                f"size '{self.name}': names_per_character={self.names_per_character} must be at "
                f"least 1 and divide num_classes={self.num_classes}."
            )
        # A glyph that is turned by 45 degrees is up to sqrt(2) times as wide.
        if self.glyph_px[1] > 0.6 * self.image_px:
            raise UserError(
                f"size '{self.name}': glyphs of {self.glyph_px[1]} px leave no room in images of "
                f"{self.image_px} px; keep glyph_px[1] at or below 0.6 * image_px."
            )

    @property
    def num_characters(self) -> int:
        """Class c is drawn as character ``c % num_characters``."""
        return self.num_classes // self.names_per_character

    def frequency_of(self, image_count: int) -> str:
        """Group letter, "r", "c" or "f", of a class in ``image_count`` training images."""
        return frequency_groups(image_count, self.rare_max, self.common_max).item()

    def train_image_counts(self) -> np.ndarray:
        """Number of training images of each class, most frequent class first, int64 (K,)."""
        if self.count_knots is not None:
            return knot_image_counts(self.num_classes, self.count_knots)
        pairs = int(round(self.train_images * sum(self.classes_per_image) / 2))
        return zipf_image_counts(
            self.num_classes, pairs, self.train_images, self.zipf_exponent, self.zipf_offset
        )


def zipf_image_counts(
    num_classes: int, total: int, largest: int, exponent: float, offset: float = 0.0
) -> np.ndarray:
    """Image counts with a power-law tail.

    Args:
        num_classes (int): K.
        total (int): sum of the counts, met as far as rounding allows.
        largest (int): no count may exceed it (the number of images).
        exponent (float): count of rank r is proportional to (r + offset) ** -exponent.
        offset (float): flattens the head; 0 is Zipf's law.

    Returns:
        np.ndarray: int64 (K,), decreasing, every count in [1, largest].

    Example:
        >>> zipf_image_counts(5, total=228, largest=100, exponent=1.0).tolist()
        [100, 50, 33, 25, 20]
    """
    shape = (np.arange(1, num_classes + 1, dtype=np.float64) + offset) ** -exponent

    def counts_at(factor: float) -> np.ndarray:
        return np.clip(np.rint(factor * shape), 1, largest).astype(np.int64)

    low, high = 0.0, largest / shape[-1]  # at the upper end every class has the largest count
    for _ in range(100):  # bisection to the last bit: the sum grows with the factor
        middle = (low + high) / 2
        low, high = (middle, high) if counts_at(middle).sum() < total else (low, middle)
    return counts_at(high)


def knot_image_counts(num_classes: int, knots: Sequence[tuple[float, float]]) -> np.ndarray:
    """Image counts along a quantile curve that is log-linear between knots.

    The boundaries of a published distribution suffice to imitate its shape: with ``LVIS_V1_KNOTS``
    and 1,203 classes the groups are LVIS v1's 337 r, 461 c and 405 f.

    Args:
        num_classes (int): K.
        knots (sequence of (float, float)): (share of classes at or below, image count), increasing
            from share 0 to share 1.

    Returns:
        np.ndarray: int64 (K,), decreasing, every count >= 1.
    """
    share, count = np.asarray(knots, dtype=np.float64).T
    # Class centres (i + 0.5) / K, stretched so that the first and the last class hit the ends.
    rank = (np.arange(num_classes) + 0.5) / num_classes
    rank[0], rank[-1] = 0.0, 1.0
    log_count = np.interp(rank, share, np.log(count))
    return np.maximum(np.rint(np.exp(log_count)), 1).astype(np.int64)[::-1].copy()


# LVIS v1's shape in 3,000 images: 42 rare classes, 58 common ones, 50 frequent ones.
_DEMO_KNOTS = (*LVIS_V1_KNOTS[:-1], (1.0, 400.0))

_DEMO = GlyphSize(
    name="demo",
    num_classes=150,
    train_images=3000,
    val_images=600,
    image_px=128,
    glyph_px=(22.0, 52.0),
    classes_per_image=(3, 6),
    count_knots=_DEMO_KNOTS,
    rotation=12.0,
    background=30.0,
    blur=0.6,
    noise=8.0,
    occlusion_rate=0.15,
)

SIZES: dict[str, GlyphSize] = {
    size.name: size
    for size in (
        GlyphSize(
            name="tiny",
            num_classes=12,
            train_images=40,
            val_images=16,
            image_px=96,
            glyph_px=(18.0, 40.0),
            classes_per_image=(2, 4),
            zipf_exponent=1.5,
            zipf_offset=1.0,
            rare_max=4,
            common_max=12,
            similarity=0.6,
            negatives_per_image=4,
            not_exhaustive_rate=0.1,
        ),
        _DEMO,
        # Characters outside demo, all equally frequent: initial weights for trainings, as ImageNet
        # is for LVIS's detectors.
        dataclasses.replace(
            _DEMO,
            name="pretrain",
            num_classes=300,
            count_knots=((0.0, 45.0), (1.0, 45.0)),
            unlike="demo",
        ),
        # Demo's characters with two interchangeable names each, like LVIS's near-synonyms: an image
        # does not show which name an object carries, and one may be rare and the other frequent.
        dataclasses.replace(
            _DEMO,
            name="synonyms",
            num_classes=300,
            names_per_character=2,
            count_knots=tuple((share, max(1.0, count / 2)) for share, count in _DEMO_KNOTS),
        ),
        # As many classes as LVIS in the same shares, on two cores: fewer and smaller images.
        dataclasses.replace(
            _DEMO,
            name="lvis_small",
            num_classes=1203,
            train_images=4800,
            val_images=300,
            image_px=192,
            classes_per_image=(8, 16),
            count_knots=((0.0, 1.0), (337 / 1203, 5.5), (798 / 1203, 25.5), (1.0, 350.0)),
            rare_max=5,
            common_max=25,
            similarity=0.92,
            negatives_per_image=60,
        ),
        GlyphSize(
            name="lvis",
            num_classes=1203,
            train_images=50000,
            val_images=5000,
            image_px=256,
            glyph_px=(16.0, 96.0),
            classes_per_image=(3, 8),
            count_knots=LVIS_V1_KNOTS,
            similarity=0.92,
            distractors=(2, 8),
            negatives_per_image=60,
        ),
    )
}


def get_size(size: str | GlyphSize) -> GlyphSize:
    """Return the size of a name; a :class:`GlyphSize` is returned unchanged.

    Raises:
        KeyError: no size has this name.
    """
    if isinstance(size, GlyphSize):
        return size
    check_known("size of LT-Glyphs", size, SIZES)
    return SIZES[size]
