"""Layers of LT-Glyphs: backgrounds, glyphs, shapes without a class; each takes a generator.

Alphas are float32 in [0, 1], colours float32 (3,) in [0, 255] (blue, green, red).
"""

from __future__ import annotations

import cv2
import numpy as np

from .sizes import GlyphSize
from .vocabulary import FACES, glyph_bitmap

Layer = tuple[np.ndarray, tuple[slice, slice]]

# Font sizes of the cached bitmaps. A glyph is scaled down from the smallest that is large enough,
# taking the ink of a character as 0.7 of its font size.
_MASTER_PX = (32, 64, 128)


def draw_background(size: GlyphSize, rng: np.random.Generator) -> np.ndarray:
    """A textured background, float32 (px, px, 3)."""
    px = size.image_px
    image = np.empty((px, px, 3), dtype=np.float32)
    image[:] = rng.uniform(40, 215, 3).astype(np.float32)
    # Clouds: coarse ones in colour, finer ones in brightness.
    coarse = rng.uniform(-1, 1, (*rng.integers(2, 6, 2), 3)).astype(np.float32)
    fine = rng.uniform(-1, 1, (*rng.integers(8, 33, 2), 1)).astype(np.float32)
    amplitude = size.background * rng.uniform(0.3, 1.0, 2)
    image += amplitude[0] * cv2.resize(coarse, (px, px), interpolation=cv2.INTER_CUBIC)
    image += (
        0.5 * amplitude[1] * cv2.resize(fine, (px, px), interpolation=cv2.INTER_LINEAR)[..., None]
    )
    if rng.random() < 0.3:  # stripes
        angle, period = rng.uniform(0, np.pi), rng.uniform(0.06, 0.4) * px
        x = np.arange(px, dtype=np.float32)
        phase = x[None] * np.cos(angle) + x[:, None] * np.sin(angle)
        wave = np.sin(2 * np.pi * phase / period, dtype=np.float32)
        image += 0.4 * size.background * wave[..., None]
    return np.clip(image, 0, 255)


def _affine(
    height: int, width: int, scale: float, size: GlyphSize, rng: np.random.Generator
) -> tuple[np.ndarray, int, int]:
    """A random map of a (height, width) bitmap, shifted so that its image starts at (0, 0).

    Returns:
        (np.ndarray, int, int): matrix (2, 3) for ``cv2.warpAffine``; height, width of the result.
    """
    angle = np.deg2rad(rng.uniform(-size.rotation, size.rotation))
    shear = rng.uniform(-size.shear, size.shear)
    # Half to either axis: the area of a glyph stays the same.
    stretch = np.exp(rng.uniform(-1, 1) * np.log(size.aspect) / 2)
    rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    linear = rotation @ np.array([[1, shear], [0, 1]]) @ np.diag([stretch, 1 / stretch]) * scale
    corners = linear @ np.array([[0, width, 0, width], [0, 0, height, height]], dtype=np.float64)
    low, high = corners.min(axis=1), corners.max(axis=1)
    # warpAffine maps pixel centres, but the corners are pixel edges: shift by half a pixel.
    shift = linear @ [0.5, 0.5] - 0.5 - low
    new_width, new_height = np.ceil(high - low).astype(int)
    return np.column_stack([linear, shift]), int(new_height), int(new_width)


def draw_glyph(
    character: str, shrink: float, size: GlyphSize, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Draw a character with a random face, size, pose and pen.

    Args:
        character (str): one character.
        shrink (float): factor on the drawn size, 1 unless the image is crowded.

    Returns:
        (np.ndarray, np.ndarray): alphas (h, w) of the letter itself and of the letter with its
        outline; the second one is the object's mask.
    """
    face = int(rng.integers(len(FACES)))
    longest = shrink * np.exp(rng.uniform(*np.log(size.glyph_px)))
    # Below 0 the font's own pen is kept: a third of the glyphs.
    pen, outlined = rng.uniform(-0.5, 1) * size.stroke, rng.random() < 0.25
    level = next((px for px in _MASTER_PX if 0.7 * px >= longest), _MASTER_PX[-1])
    body = glyph_bitmap(character, face, level)
    radius = int(round(max(pen, 0.0) * max(body.shape)))
    if outlined:
        radius = max(radius, 1)
    # Room for the thicker pen, and a blank border, which the interpolation blends the edge with.
    body = np.pad(body, radius + 1)
    outer = body
    if radius:
        kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1,) * 2)
        outer = cv2.dilate(body, kernel)
    scale = longest / (max(body.shape) - 2 * (radius + 1))
    matrix, height, width = _affine(*body.shape, scale, size, rng)
    warped = [
        cv2.warpAffine(layer, matrix, (width, height), flags=cv2.INTER_LINEAR).astype(np.float32)
        / 255
        for layer in (body if outlined else outer, outer)
    ]
    return warped[0], warped[1]


def _canvas(size: GlyphSize) -> np.ndarray:
    # OpenCV draws smooth edges (LINE_AA) only into 8 bits.
    return np.zeros((size.image_px, size.image_px), dtype=np.uint8)


def _points(center: np.ndarray, radius: float, count: int, rng: np.random.Generator) -> np.ndarray:
    """Points around a centre in order of their angle, int32 (count, 2)."""
    # In that order they form a polygon whose sides do not cross.
    angles = np.sort(rng.uniform(0, 2 * np.pi, count))
    radii = radius * rng.uniform(0.4, 1.0, count)
    offsets = np.stack([np.cos(angles), np.sin(angles)], axis=1) * radii[:, None]
    return np.rint(center + offsets).astype(np.int32)


def _cut(canvas: np.ndarray) -> Layer:
    """The alpha of the drawing on a canvas, cut to its bounds, and its place there."""
    left, top, width, height = cv2.boundingRect(canvas)
    place = np.s_[top : top + height, left : left + width]
    return canvas[place].astype(np.float32) / 255, place


def draw_shape(size: GlyphSize, rng: np.random.Generator) -> Layer:
    """A shape without a class, about as large as a glyph: alpha (h, w) and place.

    Half of them are pen strokes of a glyph's width, so that not every stroke is an object.
    """
    canvas = _canvas(size)
    center = rng.uniform(0, size.image_px, 2)
    radius = np.exp(rng.uniform(*np.log(size.glyph_px))) / 2
    pen = max(1, int(round(radius * rng.uniform(0.1, 0.35))))
    kind = rng.integers(4)
    if kind == 0:
        corners = _points(center, radius, int(rng.integers(3, 8)), rng)
        cv2.fillPoly(canvas, [corners], 255, cv2.LINE_AA)
    elif kind == 1:
        axes = np.rint(radius * rng.uniform(0.4, 1.0, 2)).astype(int) + 1
        middle = np.rint(center).astype(int)
        angle = float(rng.uniform(0, 180))
        cv2.ellipse(canvas, middle.tolist(), axes.tolist(), angle, 0, 360, 255, -1, cv2.LINE_AA)
    else:
        points = np.rint(center + rng.uniform(-radius, radius, (int(rng.integers(2, 5)), 2)))
        cv2.polylines(canvas, [points.astype(np.int32)], kind == 3, 255, pen, cv2.LINE_AA)
    return _cut(canvas)


def draw_occluder(
    box: tuple[int, int, int, int], size: GlyphSize, rng: np.random.Generator
) -> Layer:
    """A bar or a patch across a box (left, top, right, bottom): alpha (h, w) and place."""
    canvas = _canvas(size)
    left, top, right, bottom = box
    center = np.array([rng.uniform(left, right), rng.uniform(top, bottom)])
    extent = max(right - left, bottom - top)
    if rng.random() < 0.5:
        angle = rng.uniform(0, np.pi)
        reach = np.array([np.cos(angle), np.sin(angle)]) * extent * rng.uniform(0.5, 1.0)
        ends = np.rint([center - reach, center + reach]).astype(int)
        pen = max(1, int(round(extent * rng.uniform(0.08, 0.25))))
        cv2.line(canvas, ends[0].tolist(), ends[1].tolist(), 255, pen, cv2.LINE_AA)
    else:
        radius = extent * rng.uniform(0.25, 0.5)
        cv2.fillPoly(canvas, [_points(center, radius, 6, rng)], 255, cv2.LINE_AA)
    return _cut(canvas)


def finish_image(image: np.ndarray, size: GlyphSize, rng: np.random.Generator) -> np.ndarray:
    """Blur, exposure and noise: float32 (px, px, 3) to uint8 of the same shape."""
    sigma = rng.uniform(0, size.blur)
    if sigma > 0.2:  # below that, the neighbours' weights are under 1e-5
        image = cv2.GaussianBlur(image, (0, 0), sigma)
    gain, shift = rng.uniform(0.8, 1.1), rng.uniform(-15, 15)
    noise = rng.standard_normal(image.shape, dtype=np.float32) * rng.uniform(0, size.noise)
    return np.clip(np.rint(image * gain + shift + noise), 0, 255).astype(np.uint8)
