"""Validation images before and after calibration: the largest gains and the largest losses.

`shown` selects the detections of a picture. The browser draws boxes and names on top of the image,
so that names in any script are readable.

Shapes: G annotated objects.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image

from .. import UNCALIBRATED
from ..lvis.detections import Detections
from ..lvis.ground_truth import LvisGroundTruth
from ..results import ClassInfo
from .shown import matched, shown_detections

_JPEG_QUALITY = 82


@dataclass(frozen=True)
class Box:
    """A detection or an object in a picture.

    Attributes:
        x, y, width, height (float): position and size in pixels of the image.
        label (str): short name of its class; "" for an object.
        found (bool): whether the detection finds an object.
        rare (bool): whether its class is in the rarest group.
    """

    x: float
    y: float
    width: float
    height: float
    label: str = ""
    found: bool = False
    rare: bool = False


@dataclass(frozen=True)
class GalleryEntry:
    """One image of the gallery.

    Attributes:
        image_id (int or str): as in the annotations.
        gained (tuple[int, ...]): classes of the objects found only after calibration.
        lost (tuple[int, ...]): classes of the objects found only before.
        is_gain (bool): whether more objects are gained than lost; rare objects decide first.
        picture (str): ``data:`` address of the image.
        width (int): in pixels.
        height (int): in pixels.
        before (tuple[Box, ...]): detections before calibration.
        after (tuple[Box, ...]): detections after calibration.
        objects (tuple[Box, ...]): annotated objects.
    """

    image_id: int | str
    gained: tuple[int, ...]
    lost: tuple[int, ...]
    is_gain: bool
    picture: str
    width: int
    height: int
    before: tuple[Box, ...]
    after: tuple[Box, ...]
    objects: tuple[Box, ...]


@dataclass(frozen=True)
class Gallery:
    """Chosen images, and counts over all images that show whether these are typical.

    Attributes:
        entries (tuple[GalleryEntry, ...]): gains, then losses, each by decreasing change.
        num_images (int): images in the validation set.
        num_objects (int): annotated objects.
        num_rare (int): annotated objects of rare classes.
        gained (tuple[int, int]): objects found only after calibration: rare, all.
        lost (tuple[int, int]): objects found only before: rare, all.
        names (tuple[str, str]): names of the two calibrations.
    """

    entries: tuple[GalleryEntry, ...]
    num_images: int
    num_objects: int
    num_rare: int
    gained: tuple[int, int]
    lost: tuple[int, int]
    names: tuple[str, str] = (UNCALIBRATED, "logn")


def make_gallery(
    truth: LvisGroundTruth,
    before: Detections,
    after: Detections,
    read_image: Callable[[int | str], np.ndarray],
    classes: ClassInfo,
    *,
    max_images: int = 16,
    names: tuple[str, str] = (UNCALIBRATED, "logn"),
) -> Gallery:
    """Choose and draw images.

    Args:
        truth (LvisGroundTruth): the validation set.
        before (Detections): uncalibrated; only `shown_detections` of them are needed.
        after (Detections): calibrated, likewise.
        read_image (Callable): image id -> (H, W, 3) uint8 RGB.
        classes (ClassInfo): K classes.
        max_images (int): number of pictures, gains and losses together.
        names (tuple[str, str]): names of the two calibrations.

    Returns:
        Gallery: half gains and half losses, if there are enough of both.
    """
    before, after = (shown_detections(truth, detections) for detections in (before, after))
    had, has = (matched(truth, detections)[0] for detections in (before, after))
    # Ignored objects can be found, but do not count.
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


def _choose(
    truth: LvisGroundTruth, gained: np.ndarray, lost: np.ndarray, rare: np.ndarray, limit: int
) -> list[int]:
    """Image indices: largest gains, then largest losses; rare objects decide before others."""
    count = truth.num_images

    def per_image(chosen: np.ndarray) -> np.ndarray:
        return np.bincount(truth.image[chosen], minlength=count)

    rare_change = per_image(gained & rare) - per_image(lost & rare)
    change = per_image(gained) - per_image(lost)
    # `lexsort` takes its main key last: rare objects decide, then all, then the order of images.
    by_gain = np.lexsort((-change, -rare_change)).tolist()
    better = (rare_change > 0) | ((rare_change == 0) & (change > 0))
    worse = (rare_change < 0) | ((rare_change == 0) & (change < 0))
    wins = [image for image in by_gain if better[image]]
    losses = [image for image in reversed(by_gain) if worse[image]]
    # At least half of the pictures are losses, if there are that many, so that the choice does not
    # favour the calibration.
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
    """The gallery entry of an image, with its boxes before and after."""
    image_id, own = truth.image_ids[image].item(), truth.image == image
    gained, lost = (tuple(truth.category[own & change].tolist()) for change in changes)
    rare = [int(np.count_nonzero(classes.is_rare[list(found)])) for found in (gained, lost)]
    pixels = read_image(image_id)
    return GalleryEntry(
        image_id=image_id,
        gained=gained,
        lost=lost,
        is_gain=(rare[0] - rare[1], len(gained) - len(lost)) > (0, 0),
        picture=_jpeg_data_uri(pixels),
        width=pixels.shape[1],
        height=pixels.shape[0],
        before=_boxes(truth, image, sides[0], classes),
        after=_boxes(truth, image, sides[1], classes),
        # A tenth of a pixel is enough for a picture, and keeps the page small.
        objects=tuple(Box(*box) for box in truth.box[own].round(1).tolist()),
    )


def _boxes(
    truth: LvisGroundTruth, image: int, shown: Detections, classes: ClassInfo
) -> tuple[Box, ...]:
    """Boxes of one image; detections that find an object come last, to be drawn on top."""
    detections = shown.take(shown.image_id == truth.image_ids[image])
    _, hits = matched(truth, detections)
    # Stable, so that detections with the same result keep the order of their scores.
    return tuple(
        Box(
            *detections.box[index].astype(float).round(1).tolist(),
            label=classes.labels[detections.category[index]],
            found=bool(hits[index]),
            rare=bool(classes.is_rare[detections.category[index]]),
        )
        for index in np.argsort(hits, kind="stable").tolist()
    )


def _jpeg_data_uri(pixels: np.ndarray) -> str:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="JPEG", quality=_JPEG_QUALITY, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
