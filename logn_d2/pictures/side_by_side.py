"""Pictures of detections side by side, for TensorBoard and `logn show`.

Shapes: H x W pixels of the image, D detections.
"""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from typing import Any

import numpy as np
from detectron2.structures import Instances
from PIL import Image

_GAP_PX = 8
_CAPTION_PX = 28
_CAPTION_POINTS = 11
_GOLDEN_RATIO = 0.618034
_LONG_SIDE_PX = 480
_LABEL_MARGIN_PX = 2
_MASK_OPACITY = 0.45


def enlarged(pixels: np.ndarray) -> np.ndarray:
    """Enlarge a small image, which class names would cover; large images stay unchanged.

    Args:
        pixels (ndarray): (H, W, 3) uint8.

    Returns:
        ndarray: the longer side has at least 480 pixels.
    """
    height, width = pixels.shape[:2]
    scale = _LONG_SIDE_PX / max(height, width)
    if scale <= 1:
        return pixels
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC))


def draw_side_by_side(
    pixels: np.ndarray,
    sides: Sequence[tuple[str, Instances]],
    class_names: Sequence[str],
) -> np.ndarray:
    """Draw each side's detections into a copy of the image, with a caption above.

    A class has the same colour on all sides and in all pictures.

    Args:
        pixels (ndarray): (H, W, 3) uint8 RGB.
        sides (Sequence[tuple[str, Instances]]): caption and detections at the image's size, from
            left to right.
        class_names (Sequence[str]): K names; a class without a name is shown by its number.

    Returns:
        ndarray: (H + caption, all widths, 3) uint8 RGB.
    """
    height, width = pixels.shape[:2]
    gap = np.full((height + _CAPTION_PX, _GAP_PX, 3), 255, dtype=np.uint8)
    columns = []
    for caption, instances in sides:
        picture = _draw(pixels, instances, class_names)
        columns += [gap, np.concatenate([_caption(caption, width), picture])]
    return np.concatenate(columns[1:], axis=1)


def class_color(index: int) -> tuple[float, float, float]:
    """A saturated colour (RGB in [0, 1]) for a class; neighbouring classes differ."""
    # Multiples of the golden ratio spread hues evenly for any number of classes.
    return colorsys.hsv_to_rgb(index * _GOLDEN_RATIO % 1, 0.8, 0.95)


def plain_text(text: str) -> str:
    """Escape text for matplotlib, which reads text between two dollar signs as a formula.

    Example:
        >>> print(plain_text("a $5 note"))
        a \\$5 note
    """
    return text.replace("$", r"\$")


def _draw(pixels: np.ndarray, instances: Instances, class_names: Sequence[str]) -> np.ndarray:
    classes = instances.pred_classes.tolist()
    colors = [class_color(index) for index in classes]
    if instances.has("pred_masks"):
        pixels = _blended(pixels, instances.pred_masks.numpy(), colors)
    canvas = _canvas(pixels)
    keypoints = instances.pred_keypoints if instances.has("pred_keypoints") else None
    canvas.overlay_instances(
        boxes=instances.pred_boxes,
        labels=[
            plain_text(f"{_name(index, class_names)} {_percent(score)}")
            for index, score in zip(classes, instances.scores.tolist(), strict=True)
        ],
        keypoints=keypoints,
        assigned_colors=colors,
    )
    _move_labels_inside(canvas)
    return canvas.get_output().get_image()


def _canvas(pixels: np.ndarray) -> Any:
    """Detectron2's Visualizer."""
    # It imports matplotlib, which takes a second, and which only pictures need.
    from detectron2.utils.visualizer import Visualizer

    return Visualizer(pixels)


def _move_labels_inside(canvas: Any) -> None:
    """Move labels that would extend beyond the right border, which would cut off their score."""
    axes = canvas.output.ax
    renderer = canvas.output.canvas.get_renderer()
    right = axes.get_window_extent(renderer).x1
    for label in axes.texts:
        beyond = label.get_window_extent(renderer).x1 + _LABEL_MARGIN_PX - right
        if beyond > 0:
            x, y = axes.transData.transform(label.get_position())
            label.set_position(axes.transData.inverted().transform((max(x - beyond, 0), y)))


def _blended(
    pixels: np.ndarray, masks: np.ndarray, colors: Sequence[tuple[float, float, float]]
) -> np.ndarray:
    """Blend masks (D, H, W) into the image in their colours.

    The visualizer draws a polygon for each connected part. A barely trained model has hundreds of
    these, and drawing them took twice as long as everything else.
    """
    blended = pixels.astype(np.float32)
    for mask, color in zip(masks, colors, strict=True):
        blended[mask] += _MASK_OPACITY * (255 * np.array(color, np.float32) - blended[mask])
    return blended.round().astype(np.uint8)


def _percent(score: float) -> str:
    """Format a score; calibrated ones are often small, so these get a decimal."""
    return f"{score:.0%}" if score >= 0.1 else f"{score:.1%}"


def _name(index: int, class_names: Sequence[str]) -> str:
    return class_names[index] if index < len(class_names) else f"class {index}"


def _caption(text: str, width: int) -> np.ndarray:
    """(caption, W, 3) black on white."""
    canvas = _canvas(np.full((_CAPTION_PX, width, 3), 255, dtype=np.uint8))
    canvas.output.ax.text(
        6,
        _CAPTION_PX / 2,
        plain_text(text),
        size=_CAPTION_POINTS,
        color="black",
        verticalalignment="center",
    )
    return canvas.get_output().get_image()
