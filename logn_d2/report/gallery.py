"""Validation images before and after calibration: the largest gains and the largest losses.

Calibrations move all scores, so that one score threshold would compare different amounts of
detections. Instead, of each image the n best detections are looked at, where n is the number of its
annotated objects; where several overlap (IoU over 0.5), whatever their classes, the best one stands
for all. An object is *found* if one of these has its class and an IoU of at least 0.5.

Shapes: G annotated objects, D detections.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from detectron2.utils.visualizer import Visualizer
from PIL import Image
from torchvision.ops import batched_nms

from logn_d2.evaluation.detections import Detections
from logn_d2.evaluation.lvis_ground_truth import LvisGroundTruth
from logn_d2.evaluation.lvis_matching import box_candidates

from .results import ClassInfo

__all__ = ["Gallery", "GalleryEntry", "make_gallery", "matched", "shown_detections"]

_FOUND, _OTHER, _TRUTH = "#56B4E9", "#E69F00", "#FFFFFF"
_RARE = "★"
_SAME_PLACE = 0.5  # IoU
_PICTURE_PX = 360
_JPEG_QUALITY = 82


@dataclass(frozen=True)
class GalleryEntry:
    """One image of the gallery.

    Attributes:
        image_id (int or str): as in the annotations.
        gained (tuple[int, ...]): classes of the objects found only after calibration.
        lost (tuple[int, ...]): classes of the objects found only before.
        before (str): ``data:`` address of the picture.
        after (str): likewise.
    """

    image_id: int | str
    gained: tuple[int, ...]
    lost: tuple[int, ...]
    before: str
    after: str


@dataclass(frozen=True)
class Gallery:
    """Chosen images, and the counts over all images that tell whether they are typical.

    Attributes:
        entries (tuple[GalleryEntry, ...]): gains first, each kind by falling change.
        num_images (int): images in the validation set.
        num_objects (int): annotated objects.
        num_rare (int): of them, objects of rare classes.
        gained (tuple[int, int]): objects found only after calibration: rare, all.
        lost (tuple[int, int]): objects found only before: rare, all.
        names (tuple[str, str]): of the two calibrations.
    """

    entries: tuple[GalleryEntry, ...]
    num_images: int
    num_objects: int
    num_rare: int
    gained: tuple[int, int]
    lost: tuple[int, int]
    names: tuple[str, str] = ("uncalibrated", "logn")


def make_gallery(
    truth: LvisGroundTruth,
    before: Detections,
    after: Detections,
    read_image: Callable[[int | str], np.ndarray],
    classes: ClassInfo,
    *,
    max_images: int = 16,
    names: tuple[str, str] = ("uncalibrated", "logn"),
) -> Gallery:
    """Chooses and draws.

    Args:
        truth (LvisGroundTruth): the validation set.
        before (Detections): of the uncalibrated detector.
        after (Detections): of the calibrated one.
        read_image (Callable): image id -> (H, W, 3) uint8 RGB.
        classes (ClassInfo): K classes.
        max_images (int): pictures of gains and of losses together.
        names (tuple[str, str]): of the two calibrations.

    Returns:
        Gallery: half gains, half losses where there are enough of both.
    """
    before, after = (shown_detections(truth, detections) for detections in (before, after))
    had, has = (matched(truth, detections)[0] for detections in (before, after))
    gained, lost = has & ~had & ~truth.ignore, had & ~has & ~truth.ignore
    rare = classes.is_rare[truth.category]
    chosen = _choose(truth, gained, lost, rare, max_images)
    sides = (before, after)
    entries = [_entry(truth, i, (gained, lost), sides, read_image, classes) for i in chosen]
    return Gallery(
        entries=tuple(entries),
        num_images=truth.num_images,
        num_objects=int((~truth.ignore).sum()),
        num_rare=int((rare & ~truth.ignore).sum()),
        gained=(int((gained & rare).sum()), int(gained.sum())),
        lost=(int((lost & rare).sum()), int(lost.sum())),
        names=names,
    )


def shown_detections(truth: LvisGroundTruth, detections: Detections) -> Detections:
    """Of each image as many of the best detections as it has annotated objects, best first.

    Args:
        truth (LvisGroundTruth): G objects.
        detections (Detections): D detections.
    """
    image = np.searchsorted(truth.image_ids, detections.image_id)
    # Detectors suppress within a class; a person sees one object, and one name for it.
    kept = batched_nms(
        torch.from_numpy(_corners(detections.box)),
        torch.from_numpy(detections.score),
        torch.from_numpy(image),
        _SAME_PLACE,
    ).numpy()
    order = kept[np.lexsort((-detections.score[kept], image[kept]))]
    image = image[order]
    rank = np.arange(len(order)) - np.searchsorted(image, image)
    num_objects = np.bincount(truth.image, minlength=truth.num_images)
    return detections.take(order[rank < num_objects[image]])


def matched(truth: LvisGroundTruth, detections: Detections) -> tuple[np.ndarray, np.ndarray]:
    """Which objects are found, and which detections find one.

    Args:
        truth (LvisGroundTruth): G objects.
        detections (Detections): D detections.

    Returns:
        tuple[ndarray, ndarray]: (G,) bool and (D,) bool.
    """
    image = np.searchsorted(truth.image_ids, detections.image_id)
    found, hits = np.zeros(len(truth), dtype=bool), np.zeros(len(detections), dtype=bool)
    detection, target, _ = box_candidates(
        image * truth.num_classes + detections.category,
        detections.box.astype(np.float64),
        truth.keys(),
        truth.box,
        truth.crowd,
    )
    found[target] = True
    hits[detection] = True
    return found, hits


def _choose(
    truth: LvisGroundTruth, gained: np.ndarray, lost: np.ndarray, rare: np.ndarray, limit: int
) -> list[int]:
    """Image indices: the largest gains, then the largest losses, rare objects before others."""
    count = truth.num_images

    def per_image(chosen: np.ndarray) -> np.ndarray:
        return np.bincount(truth.image[chosen], minlength=count)

    rare_change = per_image(gained & rare) - per_image(lost & rare)
    change = per_image(gained) - per_image(lost)
    by_gain = np.lexsort((-change, -rare_change)).tolist()
    better = (rare_change > 0) | ((rare_change == 0) & (change > 0))
    worse = (rare_change < 0) | ((rare_change == 0) & (change < 0))
    wins = [image for image in by_gain if better[image]]
    losses = [image for image in reversed(by_gain) if worse[image]]
    num_losses = min(len(losses), max(limit // 2, limit - len(wins)))
    return wins[: limit - num_losses] + losses[:num_losses]


def _entry(
    truth: LvisGroundTruth,
    image: int,
    changes: tuple[np.ndarray, np.ndarray],
    sides: tuple[Detections, Detections],
    read_image: Callable[[int | str], np.ndarray],
    classes: ClassInfo,
) -> GalleryEntry:
    """The image at an index, with its pictures before and after."""
    image_id, own = truth.image_ids[image].item(), truth.image == image
    gained, lost = (tuple(truth.category[own & change].tolist()) for change in changes)
    pixels = read_image(image_id)
    pictures = (_draw(pixels, image, truth, shown, classes) for shown in sides)
    return GalleryEntry(image_id, gained, lost, *pictures)


def _draw(
    pixels: np.ndarray,
    image: int,
    truth: LvisGroundTruth,
    shown: Detections,
    classes: ClassInfo,
) -> str:
    """One picture: detections that find an object blue, others orange, objects dashed on top."""
    detections = shown.take(shown.image_id == truth.image_ids[image])
    scale = max(1.0, _PICTURE_PX / max(pixels.shape[:2]))
    # Enlarged here, since the visualizer would show pixels as squares.
    size = (round(pixels.shape[1] * scale), round(pixels.shape[0] * scale))
    enlarged = np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC))
    canvas = Visualizer(enlarged)
    _, hits = matched(truth, detections)
    boxes = _corners(detections.box) * scale
    for index in np.argsort(hits, kind="stable"):  # what finds something comes on top
        box = boxes[index]
        color = _FOUND if hits[index] else _OTHER
        text = _label(classes, int(detections.category[index]), bool(hits[index]))
        _outline(canvas, box, color, 4.0 if text.startswith(_RARE) else 2.5)
        position = (np.clip(box[0], 0, size[0] - 40), np.clip(box[1] - 20, 0, size[1] - 20))
        canvas.draw_text(text, position, color=color, font_size=12, horizontal_alignment="left")
    for box in _corners(truth.box[truth.image == image]) * scale:
        _outline(canvas, box, "black", 1.6)
        _outline(canvas, box, _TRUTH, 1.6, (0, (3, 3)))
    return _jpeg_data_uri(canvas.get_output().get_image())


def _outline(
    canvas: Visualizer, box: np.ndarray, color: str, width: float, style: Any = "-"
) -> None:
    """A rectangle; the visualizer's own has one width only."""
    left, top, right, bottom = box.tolist()
    canvas.draw_line(
        [left, right, right, left, left],
        [top, top, bottom, bottom, top],
        color,
        linestyle=style,
        linewidth=width,
    )


def _label(classes: ClassInfo, category: int, hit: bool) -> str:
    """A class as it is written in a picture; a found rare object has a star."""
    mark = (_RARE if classes.is_rare[category] else "✓") if hit else "✗"
    return f"{mark} {classes.labels[category]}"


def _corners(box: np.ndarray) -> np.ndarray:
    """XYXY of XYWH, float64."""
    box = np.asarray(box, dtype=np.float64)
    return np.concatenate([box[:, :2], box[:, :2] + box[:, 2:]], axis=1)


def _jpeg_data_uri(pixels: np.ndarray) -> str:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="JPEG", quality=_JPEG_QUALITY, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
