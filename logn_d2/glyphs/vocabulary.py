"""The characters of LT-Glyphs's classes, and their bitmaps in seven faces."""

from __future__ import annotations

import functools
import os
import unicodedata
from typing import Any

import numpy as np

from ..errors import MissingFileError, UserError

# Faces that every matplotlib installation ships and that share the most characters.
FACES = (
    "DejaVuSans",
    "DejaVuSans-Bold",
    "DejaVuSans-Oblique",
    "DejaVuSansMono",
    "DejaVuSansMono-Bold",
    "DejaVuSerif",
    "DejaVuSerif-Bold",
)

# Largest ratio of longest to shortest side of the ink. Dashes and bars beyond it differ only in
# length, which random scaling removes.
_MAX_ELONGATION = 3.5
_COMPARE_PX = 16


@functools.cache
def _face_path(face: int) -> str:
    import matplotlib

    path = os.path.join(matplotlib.get_data_path(), "fonts", "ttf", FACES[face] + ".ttf")
    if not os.path.isfile(path):
        raise MissingFileError(
            f"LT-Glyphs is drawn from the fonts that matplotlib installs, but {path} is missing. "
            "Reinstall matplotlib with pip; some system packages leave its fonts out."
        )
    return path


@functools.cache
def _font(face: int, px: int) -> Any:
    from PIL import ImageFont

    # The basic layout engine, because the other one depends on an optional system library.
    return ImageFont.truetype(_face_path(face), px, layout_engine=ImageFont.Layout.BASIC)


@functools.lru_cache(maxsize=16384)
def glyph_bitmap(character: str, face: int, px: int) -> np.ndarray:
    """Ink of a character, cut to its bounding box.

    Args:
        character (str): one character.
        face (int): index into ``FACES``.
        px (int): font size (em).

    Returns:
        np.ndarray: uint8 (h, w), 255 is ink; (0, 0) for an empty glyph. The array is shared by all
        callers and must not be changed.
    """
    mask = _font(face, px).getmask(character, mode="L")
    width, height = mask.size
    bitmap = np.array(mask, dtype=np.uint8).reshape(height, width)
    rows, columns = np.flatnonzero(bitmap.any(axis=1)), np.flatnonzero(bitmap.any(axis=0))
    if rows.size == 0:
        return np.zeros((0, 0), dtype=np.uint8)
    return bitmap[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def _common_characters() -> list[str]:
    """Characters in all faces, in code point order, without marks, blanks and controls."""
    from matplotlib.ft2font import FT2Font

    common = set.intersection(
        *(set(FT2Font(_face_path(face)).get_charmap()) for face in range(len(FACES)))
    )
    # M combines with a neighbour, Z is blank, C are controls and private characters without a name.
    return [chr(c) for c in sorted(common) if unicodedata.category(chr(c))[0] not in "MZC"]


def _thumbnail(bitmap: np.ndarray) -> np.ndarray:
    """A bitmap centred in a square and shrunk, float32 (16 * 16,), with norm 1."""
    import cv2

    height, width = bitmap.shape
    side = max(height, width)
    square = np.zeros((side, side), dtype=np.uint8)
    top, left = (side - height) // 2, (side - width) // 2
    square[top : top + height, left : left + width] = bitmap
    small = cv2.resize(square, (_COMPARE_PX, _COMPARE_PX), interpolation=cv2.INTER_AREA)
    vector = small.astype(np.float32).ravel()
    return vector / np.linalg.norm(vector)


@functools.lru_cache(maxsize=1)
def _compared_characters() -> tuple[list[str], np.ndarray]:
    """Drawable characters and their (n, n) mean cosine over the faces, float32."""
    characters, vectors = [], []
    for character in _common_characters():
        # Past the cache, which these thousands of bitmaps would fill for a single use.
        bitmaps = [glyph_bitmap.__wrapped__(character, face, 32) for face in range(len(FACES))]
        if any(
            bitmap.size == 0 or max(bitmap.shape) > _MAX_ELONGATION * min(bitmap.shape)
            for bitmap in bitmaps
        ):
            continue
        characters.append(character)
        vectors.append(np.concatenate([_thumbnail(bitmap) for bitmap in bitmaps]))
    # Each face's part has norm 1, so after this a product of two rows is the mean cosine.
    stacked = np.stack(vectors) / np.sqrt(len(FACES))
    return characters, stacked @ stacked.T


@functools.lru_cache(maxsize=8)
def select_vocabulary(
    num_classes: int, similarity: float, unlike: tuple[str, ...] = ()
) -> tuple[str, ...]:
    """The characters of the classes, the same for every seed.

    In code point order, a character is kept unless it resembles an earlier kept one; of the kept
    ones, ``num_classes`` are taken at equal distances, so that all scripts are represented.

    Args:
        num_classes (int): K.
        similarity (float): largest mean cosine of the 16 x 16 drawings of two classes.
        unlike (tuple[str, ...]): characters that no class may equal or resemble.

    Returns:
        tuple[str, ...]: K characters in code point order.

    Raises:
        ValueError: fewer than K characters differ enough.
    """
    characters, cosine = _compared_characters()
    # Greedy: an optimal choice is a hard problem, and more characters than needed remain.
    excluded = (cosine[np.isin(characters, unlike)] > similarity).any(axis=0)
    kept = []
    for index in range(len(characters)):
        if not excluded[index]:
            kept.append(index)
            excluded |= cosine[index] > similarity
    if len(kept) < num_classes:
        raise UserError(
            f"only {len(kept)} characters differ by a cosine below similarity={similarity}, but "
            f"num_classes={num_classes} were asked for. Raise similarity, or ask for fewer classes."
        )
    picks = np.linspace(0, len(kept) - 1, num_classes).round().astype(int)
    return tuple(characters[kept[pick]] for pick in picks)


def category_of(character: str, category_id: int, name_number: int = 1) -> dict[str, Any]:
    """The LVIS category entry of one of a character's names, without its counts."""
    title = unicodedata.name(character)
    name = title.lower().replace(" ", "_").replace("-", "_")
    if name_number > 1:
        name += f"_{name_number}"
    return {
        "id": category_id,
        "name": name,
        "synonyms": [name],
        "synset": f"{name}.n.01",
        "def": f"the character {character} (U+{ord(character):04X}), {title.lower()}",
    }
