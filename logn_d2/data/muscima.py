"""MUSCIMA++ 2.0 in LVIS format: tiles of pages of handwritten music, with masks.

The release (https://github.com/OMR-Research/muscima-pp; Hajic jr. and Pecina, ICDAR 2017; CC
BY-NC-SA 4.0) contains annotations without images. A page is painted from the masks of all its
objects, reduced to half its size, and cut into tiles that do not overlap. Writers of training and
validation are disjoint.

Units: pixels of the page in `PageObject`, and of the halved page from `_halved` on.
"""

from __future__ import annotations

import hashlib
import re
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

from ..errors import MissingFileError, UserError
from ..files import atomic_write, write_json
from ..frequency import frequency_groups

VAL_WRITERS = (6, 8, 10, 12, 16, 17, 18, 21, 22, 25, 26, 28, 30, 31, 35, 41)
"""16 of 50 writers, with a third of the objects; figures for other writers are not comparable."""
PAGE_WIDE = ("measureSeparator", "staff", "staffGrouping", "staffLine", "staffSpace")
"""Classes of objects as large as the page, which tiles can't show: not annotated."""
BLANK = ("staffSpace",)
"""Classes whose masks are the paper between other objects: not painted."""

_TILE = 192
_SHRINK = 2
# An object belongs to the tile that shows at least this share of it; the rest is not annotated.
_MIN_SHARE = 0.5
# Pixels of the halved page; smaller dots are noise.
_MIN_AREA = 3
_DOCUMENT = re.compile(r"W-(\d+)_N-(\d+)")


@dataclass(frozen=True, eq=False)
class PageObject:
    """An object of a page.

    Attributes:
        name (str): its class.
        left (int): left edge of its box.
        top (int): top edge of its box.
        mask (ndarray): (height, width) bool.
    """

    name: str
    left: int
    top: int
    mask: np.ndarray


def read_page(path: Path) -> list[PageObject]:
    """Read the objects of a page.

    Args:
        path (Path): an XML file of the release, of ``<Node>`` elements.

    Raises:
        UserError: the file is damaged, or from an older release.
    """
    try:
        root = ET.parse(path).getroot()
    except ET.ParseError as error:
        raise UserError(f"{path} is not XML ({error}). Unpack the release again.") from error
    nodes = root.findall("Node")
    if not nodes:
        raise UserError(
            f"{path} has no <Node> below <{root.tag}>. Expected an annotation file of MUSCIMA++ "
            "2.0 (data/annotations); 1.0 has <CropObject>, and other class names."
        )
    return [_read_node(node, path) for node in nodes]


def _read_node(node: ET.Element, path: Path) -> PageObject:
    where = f"{path}: node {node.findtext('Id', '?')}"
    try:
        left, top, width, height = (
            int(node.findtext(key, "")) for key in ("Left", "Top", "Width", "Height")
        )
    except ValueError as error:
        raise UserError(f"{where}: a box of whole numbers is missing ({error}).") from error
    name, text = node.findtext("ClassName"), node.findtext("Mask", "").strip()
    if not name or min(left, top) < 0 or min(width, height) < 1:
        raise UserError(
            f"{where} has the class {name!r} and the box {[left, top, width, height]}; expected a "
            "name, and a box of positive size on the page."
        )
    if text in ("", "None"):  # in this format, the object fills its box
        mask = np.ones((height, width), dtype=bool)
    else:
        mask = _decode(text, height, width, where)
    return PageObject(name, left, top, mask)


def _decode(text: str, height: int, width: int, where: str) -> np.ndarray:
    """Decode a mask from row-wise runs such as ``0:3 1:5``."""
    try:
        runs = np.array([run.split(":") for run in text.split()], dtype=np.int64)
        flat = np.repeat(runs[:, 0] == 1, runs[:, 1])
    except (ValueError, IndexError) as error:
        raise UserError(f"{where}: its mask is not made of runs like 0:3 ({error}).") from error
    if flat.size != height * width:
        raise UserError(
            f"{where}: its mask has {flat.size} pixels, its box {height} x {width} = "
            f"{height * width}."
        )
    return flat.reshape(height, width)


def convert_muscima(
    source: str | Path,
    target: str | Path,
    *,
    val_writers: Sequence[int] = VAL_WRITERS,
) -> dict[str, dict[str, Any]]:
    """Write ``train.json``, ``val.json`` and ``images/`` of MUSCIMA++.

    Tiles without objects are left out. An object on several tiles belongs to those that show at
    least half of it. Both files contain the training counts, as LVIS's do.

    Args:
        source (path): the release, or the folder of its XML files.
        target (path): the output folder.
        val_writers (Sequence[int]): numbers of the writers whose pages form the validation set.

    Returns:
        dict[str, dict]: the contents of "train" and "val".

    Raises:
        MissingFileError: `source` has no annotations.
        UserError: a file is damaged, or a split would be empty.
    """
    pages = _find_pages(Path(source))
    writers = {writer for writer, _ in pages}
    unknown = sorted(set(val_writers) - writers)
    if unknown or not writers - set(val_writers):
        raise UserError(
            f"Validation of writers {sorted(val_writers)}: the release has {sorted(writers)}. "
            "Name some of these, not all."
        )
    tiles: dict[str, list[dict[str, Any]]] = {"train": [], "val": []}
    for (writer, number), path in pages.items():
        split = tiles["val" if writer in val_writers else "train"]
        split += _write_page(read_page(path), f"W-{writer:02}_N-{number:02}", Path(target))
    categories = _categories(tiles)
    contents = {split: _content(found, categories, split) for split, found in tiles.items()}
    for split, content in contents.items():
        write_json(Path(target) / f"{split}.json", content, indent=None)
    return contents


def _find_pages(source: Path) -> dict[tuple[int, int], Path]:
    """Annotation files, sorted by writer and page."""
    folders = [source, source / "data" / "annotations", source / "v2.0" / "data" / "annotations"]
    for folder in folders:
        found = [(_DOCUMENT.search(path.name), path) for path in folder.glob("*.xml")]
        pages = {(int(match[1]), int(match[2])): path for match, path in found if match}
        if pages:
            return dict(sorted(pages.items()))
    raise MissingFileError(
        f"No annotations of MUSCIMA++ in {source}: expected files such as "
        "data/annotations/CVC-MUSCIMA_W-01_N-10_D-ideal.xml. Download version 2.0; see "
        "datasets/README.md."
    )


def _write_page(objects: list[PageObject], name: str, target: Path) -> list[dict[str, Any]]:
    """Write the tiles of a page and return the annotations of each."""
    # Nothing is painted beyond the farthest box, so the page ends with its tile.
    # -(-x // side) * side rounds up to whole tiles.
    side = _TILE * _SHRINK
    bottom = max(each.top + each.mask.shape[0] for each in objects)
    right = max(each.left + each.mask.shape[1] for each in objects)
    page = np.zeros((-(-bottom // side) * side, -(-right // side) * side), dtype=bool)
    found: dict[tuple[int, int], list[dict[str, Any]]] = {}
    for each in objects:
        height, width = each.mask.shape
        if each.name not in BLANK:
            page[each.top : each.top + height, each.left : each.left + width] |= each.mask
        if each.name not in PAGE_WIDE:
            for tile, annotation in _on_tiles(each):
                found.setdefault(tile, []).append(annotation)
    # Block means of black ink on white give smooth edges.
    grey = np.rint(255 * (1 - _block_means(page))).astype(np.uint8)
    tiles = []
    for (row, column), on_tile in sorted(found.items()):
        file_name = f"{name}_{row}_{column}.png"
        part = grey[row * _TILE :, column * _TILE :][:_TILE, :_TILE]
        with atomic_write(target / "images" / file_name) as temporary:
            Image.fromarray(part).save(temporary, format="PNG")
        tiles.append({"file_name": file_name, "annotations": on_tile})
    return tiles


def _on_tiles(each: PageObject) -> Iterator[tuple[tuple[int, int], dict[str, Any]]]:
    """The parts of an object with row and column of their tile."""
    left, top, mask = _halved(each)
    height, width = mask.shape
    # Of the whole object, so that an object on a corner of four tiles may belong to none.
    least = max(_MIN_AREA, _MIN_SHARE * mask.sum())
    for row in range(top // _TILE, (top + height - 1) // _TILE + 1):
        for column in range(left // _TILE, (left + width - 1) // _TILE + 1):
            # pycocotools encodes masks column by column, and refuses the other order.
            canvas = np.zeros((_TILE, _TILE), dtype=np.uint8, order="F")
            y, x = top - row * _TILE, left - column * _TILE
            part = mask[max(-y, 0) : _TILE - y, max(-x, 0) : _TILE - x]
            canvas[max(y, 0) :, max(x, 0) :][: part.shape[0], : part.shape[1]] = part
            if canvas.sum() >= least:
                rle = coco_mask.encode(canvas)
                yield (
                    (row, column),
                    {
                        "name": each.name,
                        "bbox": [float(value) for value in coco_mask.toBbox(rle)],
                        "area": float(coco_mask.area(rle)),
                        "segmentation": {"size": [_TILE, _TILE], "counts": rle["counts"].decode()},
                    },
                )


def _halved(each: PageObject) -> tuple[int, int, np.ndarray]:
    """Left, top and mask on the halved page, whose pixels are at least half covered."""
    # Padded to even coordinates, so that its blocks are those of the page.
    top, left = each.top % _SHRINK, each.left % _SHRINK
    bottom, right = (
        -(start + length) % _SHRINK for start, length in zip((top, left), each.mask.shape)
    )
    padded = np.pad(each.mask, ((top, bottom), (left, right)))
    return each.left // _SHRINK, each.top // _SHRINK, _block_means(padded) >= 0.5


def _block_means(array: np.ndarray) -> np.ndarray:
    """Means over blocks of ``_SHRINK`` x ``_SHRINK`` pixels."""
    height, width = (length // _SHRINK for length in array.shape)
    return array.reshape(height, _SHRINK, width, _SHRINK).mean(axis=(1, 3))


def _categories(tiles: dict[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """All classes by name, with their training counts and LVIS's groups."""
    # Of both splits: validation may have classes without a training object.
    names = sorted({a["name"] for split in tiles.values() for t in split for a in t["annotations"]})
    shown = [[a["name"] for a in tile["annotations"]] for tile in tiles["train"]]
    images = [sum(name in on_tile for on_tile in map(set, shown)) for name in names]
    objects = [sum(on_tile.count(name) for on_tile in shown) for name in names]
    return [
        {
            "id": index,
            "name": name,
            "frequency": str(group),
            "image_count": image_count,
            "instance_count": instance_count,
        }
        for index, (name, group, image_count, instance_count) in enumerate(
            zip(names, frequency_groups(images), images, objects, strict=True), start=1
        )
    ]


def _content(
    tiles: list[dict[str, Any]], categories: list[dict[str, Any]], split: str
) -> dict[str, Any]:
    """The content of an annotation file."""
    ids = {category["name"]: category["id"] for category in categories}
    images, annotations = [], []
    for image_id, tile in enumerate(tiles, start=1):
        images.append(
            {"id": image_id, "file_name": tile["file_name"], "width": _TILE, "height": _TILE}
        )
        for found in tile["annotations"]:
            annotation = {key: found[key] for key in ("bbox", "area", "segmentation")}
            annotation.update(
                id=len(annotations) + 1,
                image_id=image_id,
                category_id=ids[found["name"]],
                iscrowd=0,
            )
            annotations.append(annotation)
    return {
        "info": {"description": f"MUSCIMA++ 2.0, {split}, CC BY-NC-SA 4.0"},
        "licenses": [],
        "categories": categories,
        "images": images,
        "annotations": annotations,
    }


def describe(contents: dict[str, dict[str, Any]], target: str | Path) -> list[str]:
    """One line for each split of `convert_muscima`: its size, and what tells it from others.

    Args:
        contents (dict[str, dict]): annotation files by split.
        target (path): their folder.
    """
    lines = []
    for split, content in contents.items():
        groups = [category["frequency"] for category in content["categories"]]
        digest = hashlib.sha256((Path(target) / f"{split}.json").read_bytes()).hexdigest()
        lines.append(
            f"{split}: {len(content['images']):,} tiles, {len(content['annotations']):,} objects, "
            f"{len(groups)} classes ({' / '.join(str(groups.count(g)) for g in 'rcf')} r / c / f), "
            f"SHA-256 {digest[:8]}"
        )
    return lines
