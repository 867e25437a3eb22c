"""Checks of a registered data set before a long run."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode
from detectron2.utils.file_io import PathManager
from PIL import Image

from .lvis_loader import lvis_mistakes_named


@dataclasses.dataclass(frozen=True)
class DatasetReport:
    """Size and problems of a data set; see :func:`check_dataset`.

    Attributes:
        name (str): registered name.
        num_images, num_objects, num_classes (int): sizes of the set.
        num_without_mask (int): objects that have only a box.
        problems (tuple[str, ...]): one sentence per problem; empty if there is none.
    """

    name: str
    num_images: int = 0
    num_objects: int = 0
    num_classes: int = 0
    num_without_mask: int = 0
    problems: tuple[str, ...] = ()


def check_dataset(name: str) -> DatasetReport:
    """Read a registered data set and check every image file and every box.

    Args:
        name (str): registered name, including Detectron2's own.

    Returns:
        DatasetReport: sizes and problems.

    Example:
        >>> check_dataset("nobody").problems
        ('no data set of this name is registered',)
    """
    if name not in DatasetCatalog.list():
        return DatasetReport(name, problems=("no data set of this name is registered",))
    meta = MetadataCatalog.get(name)
    json_file = meta.get("json_file")
    if json_file and not PathManager.isfile(json_file):
        return DatasetReport(name, problems=(f"the annotations are missing: {json_file}",))
    try:
        with lvis_mistakes_named([name]):
            records = DatasetCatalog.get(name)
    # Detectron2's loaders assert what they expect of a json; here that is a problem to report.
    except (OSError, ValueError, KeyError, AssertionError) as error:
        return DatasetReport(name, problems=(str(error),))
    # From the loaded records, not from the json: what training will see.
    objects = [a for record in records for a in record.get("annotations", ())]
    problems = [*_image_problems(records), *_box_problems(records)]
    if not objects:
        problems.append("no object is annotated")
    elif all(a.get("iscrowd", 0) for a in objects):
        problems.append("all objects are crowds (iscrowd 1), which training leaves out")
    return DatasetReport(
        name,
        num_images=len(records),
        num_objects=len(objects),
        num_classes=len(meta.get("thing_classes", ())),
        num_without_mask=sum(not a.get("segmentation") for a in objects),
        problems=tuple(problems),
    )


def image_problem(record: Mapping[str, Any]) -> str | None:
    """Find a problem of an image file, such as a wrong size, from its header and end.

    No pixels are decoded, so a large set takes seconds.

    Args:
        record (dict): with ``file_name`` and perhaps ``height`` and ``width``, in pixels.

    Returns:
        str or None: the problem, with the file's name.
    """
    path = record["file_name"]
    if not os.path.isfile(path):
        return f"{path} is missing"
    try:
        with Image.open(path) as image:
            kind, (width, height) = image.format, image.size
            turned = image.getexif().get(_ORIENTATION, 1) in (5, 6, 7, 8)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        return f"{path} is not a readable image ({error})"
    if turned:  # Detectron2 applies the rotation when it reads the image
        width, height = height, width
    expected = (record.get("width", width), record.get("height", height))
    if (width, height) != expected:
        return (
            f"{path} has {width} x {height} pixels, its json says {expected[0]} x {expected[1]} "
            "(width x height)"
        )
    # Of other formats the end has no mark.
    end = _END.get(kind)
    if end and end not in _last_bytes(path):
        return f"{path} ends early: copy or fetch it again"
    return None


_ORIENTATION = 0x0112  # Exif
# The end of complete files; some programs append a few bytes.
_END = {"JPEG": b"\xff\xd9", "PNG": b"IEND"}
_TAIL = 4096  # bytes, where the mark of a complete file is looked for


def _last_bytes(path: str) -> bytes:
    with open(path, "rb") as file:
        file.seek(max(os.path.getsize(path) - _TAIL, 0))
        return file.read()


def _image_problems(records: Sequence[Mapping[str, Any]]) -> list[str]:
    found = [problem for problem in map(image_problem, records) if problem]
    missing = [problem for problem in found if problem.endswith(" is missing")]
    problems = []
    if missing:
        first = missing[0].removesuffix(" is missing")
        problems.append(
            f"{len(missing)} of {len(records)} images are missing, the first is {first}"
        )
    others = [problem for problem in found if not problem.endswith(" is missing")]
    if others:
        problems.append(
            f"{len(others)} of {len(records)} images can't be used, the first: {others[0]}"
        )
    return problems


def _box_problems(records: Sequence[Mapping[str, Any]]) -> list[str]:
    """Boxes that are empty or leave their image; rotated boxes are skipped."""
    empty, outside, first = 0, 0, None
    for record in records:
        for annotation in record.get("annotations", ()):
            mode = annotation.get("bbox_mode", BoxMode.XYWH_ABS)
            if mode not in (BoxMode.XYWH_ABS, BoxMode.XYXY_ABS):
                continue
            left, top, width, height = BoxMode.convert(
                list(annotation["bbox"]), mode, BoxMode.XYWH_ABS
            )
            is_empty = width <= 0 or height <= 0
            # A tolerance of one pixel, because annotation tools round.
            is_outside = (
                min(left, top) < -1
                or left + width > record["width"] + 1
                or top + height > record["height"] + 1
            )
            empty, outside = empty + is_empty, outside + (is_outside and not is_empty)
            if first is None and (is_empty or is_outside):
                first = f"first: image {record['image_id']}, box {annotation['bbox']}"
    found = [
        f"{count} boxes {what}"
        for count, what in ((empty, "are empty"), (outside, "leave their image"))
        if count
    ]
    return [f"{' and '.join(found)} ({first})"] if found else []
