"""Draw one planned image of LT-Glyphs and outline the visible part of each object."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import cv2
import numpy as np

from .plan import ImagePlan
from .shapes import draw_background, draw_glyph, draw_occluder, draw_shape, finish_image
from .sizes import GlyphSize

Place = tuple[slice, slice]

_PLACING_ATTEMPTS = 40
# Masks are outlined at this multiple of the resolution: contours run through pixel centres, which
# would cost strokes of a few pixels half a pixel on either side.
_OUTLINE_SCALE = 4
_MIN_PART_AREA = 2.0  # px^2; smaller parts are specks
_FAINTEST = 0.1  # an object that covers less than this share of every pixel is not visible


@dataclasses.dataclass
class DrawnObject:
    """One glyph in an image.

    Attributes:
        class_index (int): in [0, K).
        annotated (bool): whether it is annotated.
        full_area (float): ink in px^2 before anything covered it.
        visible_area (float): visible ink in px^2.
        visible (np.ndarray): float32 (px, px), share of each pixel that shows this object.
        polygons (list[list[float]]): outline of the visible ink, alternating x and y, in px.
    """

    class_index: int
    annotated: bool
    full_area: float
    visible_area: float
    visible: np.ndarray
    polygons: list[list[float]] = dataclasses.field(default_factory=list)

    @property
    def bbox(self) -> list[float]:
        """Bounds of the polygons: left, top, width, height in px."""
        points = np.concatenate([np.reshape(p, (-1, 2)) for p in self.polygons])
        low, high = points.min(axis=0), points.max(axis=0)
        return [round(float(v), 2) for v in (*low, *(high - low))]

    @property
    def area(self) -> float:
        """Area inside the polygons, px^2."""
        parts = (np.reshape(p, (-1, 2)).astype(np.float32) for p in self.polygons)
        return round(float(sum(cv2.contourArea(part) for part in parts)), 2)


class _Scene:
    """An image being painted, and the visible parts of its objects.

    A layer is an alpha (h, w) with its ``place``, the slices of rows and columns that it covers.
    """

    def __init__(self, size: GlyphSize, rng: np.random.Generator) -> None:
        self.size = size
        self.rng = rng
        self.image = draw_background(size, rng)
        self.objects: list[DrawnObject] = []

    def hides_too_much(self, alpha: np.ndarray, place: Place) -> bool:
        """Whether painting a layer would leave too little of an object visible."""
        return any(
            drawn.visible_area - float((drawn.visible[place] * alpha).sum())
            < self.size.min_visible * drawn.full_area
            for drawn in self.objects
        )

    def paint(self, alpha: np.ndarray, place: Place, color: np.ndarray) -> None:
        """Paint a colour (3,) through a layer over everything."""
        under = self.image[place]  # a view, so this changes the image
        under += alpha[..., None] * (color - under)

    def hide(self, alpha: np.ndarray, place: Place) -> None:
        """Remove a layer from the visible parts of the objects so far."""
        for drawn in self.objects:
            # A running sum: only the pixels under the layer are added up, not all masks again.
            drawn.visible_area -= float((drawn.visible[place] * alpha).sum())
            drawn.visible[place] *= 1 - alpha

    def contrasting_color(self, alpha: np.ndarray, place: Place) -> np.ndarray:
        """A random colour that differs in brightness from the pixels under a layer."""
        under = (self.image[place].mean(axis=2) * alpha).sum() / max(float(alpha.sum()), 1e-6)
        # All candidates are drawn at once, so that the random numbers that follow do not depend on
        # which one is taken. If none differs enough, the most different one serves.
        colors = self.rng.uniform(0, 255, (16, 3)).astype(np.float32)
        distance = np.abs(colors.mean(axis=1) - under)
        enough = np.flatnonzero(distance >= self.size.contrast)
        return colors[enough[0] if enough.size else int(distance.argmax())]

    def add_clutter(self, alpha: np.ndarray, place: Place) -> bool:
        """Paint a shape that is not an object, unless it would hide too much of one."""
        if self.hides_too_much(alpha, place):
            return False
        self.paint(alpha, place, self.rng.uniform(0, 255, 3).astype(np.float32))
        self.hide(alpha, place)
        return True

    def add_object(self, character: str, class_index: int, annotated: bool) -> bool:
        """Paint a glyph where it leaves enough of the others visible; False if there is no room."""
        px = self.size.image_px
        for attempt in range(_PLACING_ATTEMPTS):
            # A crowded image gets smaller glyphs, not fewer: the planned counts must hold.
            shrink = 0.94 ** max(0, attempt - 10)
            body, outer = draw_glyph(character, shrink, self.size, self.rng)
            height, width = outer.shape
            if height > px or width > px:
                continue
            top, left = self.rng.integers((px - height + 1, px - width + 1))
            place = np.s_[top : top + height, left : left + width]
            if self.hides_too_much(outer, place):
                continue
            # Painted before it is appended: `hide` would else remove the new object itself.
            self.paint_glyph(body, outer, place)
            self.hide(outer, place)
            visible = np.zeros((px, px), dtype=np.float32)
            visible[place] = outer
            area = float(outer.sum())
            self.objects.append(DrawnObject(class_index, annotated, area, area, visible))
            return True
        return False

    def paint_glyph(self, body: np.ndarray, outer: np.ndarray, place: Place) -> None:
        """Paint a letter, with an outline in another colour if ``outer`` is larger."""
        color = self.contrasting_color(outer, place)
        if (body < outer).any():
            self.paint(outer, place, color)
            color = self.contrasting_color(body, place)
        self.paint(body, place, color)

    def occlude(self, drawn: DrawnObject) -> None:
        """Paint a shape across an object where it leaves enough visible, after a few attempts."""
        # Without the faint rim, which would widen the box that the occluder is aimed at.
        rows, columns = np.nonzero(drawn.visible > 0.5)
        if rows.size == 0:
            return
        box = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
        for _ in range(4):
            if self.add_clutter(*draw_occluder(box, self.size, self.rng)):
                return


def outline(visible: np.ndarray) -> list[list[float]]:
    """Polygons around the visible ink, as an annotator would trace them.

    Holes are filled, because polygons of COCO and LVIS have none; specks are left out.

    Args:
        visible (np.ndarray): float32 (h, w) in [0, 1]; pixels above half of the largest value are
            inside, so that strokes thinner than a pixel are kept.

    Returns:
        list[list[float]]: alternating x and y with pixel edges at integers, at least three points
        each; empty if nothing is visible.
    """
    level = float(visible.max()) / 2
    if level < _FAINTEST / 2:
        return []
    left, top, width, height = cv2.boundingRect((visible > level).astype(np.uint8))
    # A margin of one pixel, so that the half-covered border is interpolated too.
    crop = np.pad(visible, 1)[top : top + height + 2, left : left + width + 2]
    scale = _OUTLINE_SCALE
    fine = cv2.resize(crop, None, fx=scale, fy=scale, interpolation=cv2.INTER_LINEAR)
    contours, _ = cv2.findContours(
        (fine > level).astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE
    )
    parts = [part for part in map(_simplify, contours) if part is not None]
    if not parts:
        return []
    areas = [float(cv2.contourArea(part.astype(np.float32))) for part in parts]
    # An object that is smaller than a speck keeps its largest part.
    largest = max(areas)
    offset = np.array([left - 1, top - 1])  # back from the padded image
    limit = np.array(visible.shape[::-1])
    return [
        np.clip(np.round(part + offset, 2), 0, limit).ravel().tolist()
        for part, area in zip(parts, areas)
        if area >= min(_MIN_PART_AREA, largest)
    ]


def _simplify(contour: np.ndarray) -> np.ndarray | None:
    """A contour of the fine mask as points in px of the crop, (n, 2); None if it is a line."""
    points = cv2.approxPolyDP(contour, 1.0, True).reshape(-1, 2)
    return None if len(points) < 3 else (points + 0.5) / _OUTLINE_SCALE


def draw_image(
    plan: ImagePlan, characters: Sequence[str], size: GlyphSize, rng: np.random.Generator
) -> tuple[np.ndarray, list[DrawnObject]]:
    """Draw one image.

    Args:
        plan (ImagePlan): its content.
        characters (sequence of str): (K,) the vocabulary.
        size (GlyphSize): parameters of the drawing.
        rng (np.random.Generator): source of all its random numbers.

    Returns:
        (np.ndarray, list[DrawnObject]): uint8 (px, px, 3) in BGR; the objects, annotated or not,
        whose polygons are set.
    """
    scene = _Scene(size, rng)
    low, high = size.distractors
    num_shapes = int(rng.integers(low, high + 1))
    for _ in range(num_shapes - num_shapes // 3):
        scene.add_clutter(*draw_shape(size, rng))
    for class_index, annotated in plan.objects:
        scene.add_object(characters[class_index], class_index, annotated)
    # After the last object, so that an occluder may cover several and none is drawn on top of it.
    for drawn in scene.objects:
        if rng.random() < size.occlusion_rate:
            scene.occlude(drawn)
    for _ in range(num_shapes // 3):  # some shapes lie above the objects
        scene.add_clutter(*draw_shape(size, rng))
    for drawn in scene.objects:
        drawn.polygons = outline(drawn.visible)
    return finish_image(scene.image, size, rng), scene.objects
