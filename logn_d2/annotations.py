"""Rules for annotation files in LVIS or COCO format, shared by training and evaluation.

Both read the same file; with one set of rules a mistake ends the work before the first iteration
and not in an evaluation days later. Only the standard library is needed; orjson, if it is
installed, parses three times as fast.
"""

from __future__ import annotations

import codecs
import contextlib
import gc
import json
import logging
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from numbers import Integral, Real
from typing import Any

from .errors import UserError

try:
    import orjson
except ImportError:
    orjson = None

logger = logging.getLogger(__name__)

Entry = Mapping[str, Any]

# Fields that change the meaning of others: all entries must have them, or none.
_OF_ALL_IMAGES = ("neg_category_ids", "not_exhaustive_category_ids", "height", "width")
_OF_ALL_CATEGORIES = ("frequency", "image_count", "instance_count")

# Pixels. pycocotools allocates memory in proportion to a polygon's coordinates, not to the image
# size: beyond this limit, one polygon can exhaust the machine's memory.
MAX_COORDINATE = 1e6

# Objects per block: checking all at once would need a list of all coordinates of the set.
_BLOCK = 4096

# The types of numbers that json yields; others come from content made in memory.
_NUMBERS = frozenset((int, float))
_OWN: Mapping[type, type] = {Integral: int}


def read_annotations(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read and check an annotation file, UTF-8 in every locale, with or without byte order mark.

    Args:
        path (str or PathLike): a local file.

    Returns:
        dict: the json's content, which passes :func:`check_annotations`.

    Raises:
        ValueError: the file is not UTF-8, not json, or breaks a rule of `check_annotations`.
    """
    with collector_paused():
        content = _read_json(path)
    check_annotations(content, str(path))
    return content


@contextlib.contextmanager
def collector_paused() -> Iterator[None]:
    """Pause garbage collection while many objects without cycles are created.

    A million new lists and dictionaries make Python search all of its memory for cycles again and
    again, which takes longer than creating them.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _read_json(path: str | os.PathLike[str]) -> Any:
    with open(path, "rb") as file:
        text = file.read().removeprefix(codecs.BOM_UTF8)
    if orjson is not None:
        # NaN and unpaired surrogates are not json, but Python reads them, so json is the fallback.
        # Integers of more than 64 bits become floats here; they are refused either way.
        with contextlib.suppress(orjson.JSONDecodeError):
            return orjson.loads(text)
    try:
        return json.loads(text.decode("utf-8"))
    except json.JSONDecodeError as error:
        raise UserError(
            f"{path} is not a complete JSON file ({error}). Fetch or write it again."
        ) from error
    except RecursionError as error:
        raise UserError(f"{path} is nested too deeply to be an annotation file.") from error
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path} is not encoded in UTF-8 ({error}). Convert it, for example with iconv."
        ) from error


def check_annotations(content: Any, source: str) -> None:
    """Check lists, ids, fields and values.

    Args:
        content (dict): with "images", "annotations" and "categories".
        source (str): the file, for messages.

    Raises:
        ValueError: the message names the file, the list, the entry, the field and its value.
    """
    sections = ("images", "annotations", "categories")
    missing = [
        key
        for key in sections
        if not isinstance(content, Mapping) or not isinstance(content.get(key), Sequence)
    ]
    if missing:
        raise UserError(
            f"{source} lacks the list{'s' * (len(missing) > 1)} {', '.join(missing)}: expected "
            "images, categories and annotations in LVIS or COCO format, not a result or "
            "image-info file."
        )
    # Image ids may be integers or strings, but of one type: the first image decides.
    named = any(
        isinstance(image, Mapping) and type(image.get("id")) is str
        for image in content["images"][:1]
    )
    image_kind: type = str if named else Integral
    for section in sections:
        kind = image_kind if section == "images" else Integral
        _check_ids(content[section], f"{source}: {section}", kind)
    for where, image in _entries(content["images"], f"{source}: images"):
        _check_image(image, where)
    for where, category in _entries(content["categories"], f"{source}: categories"):
        _check_category(category, where)
    _check_all_or_none(content["images"], "images", _OF_ALL_IMAGES, source)
    _check_all_or_none(content["categories"], "categories", _OF_ALL_CATEGORIES, source)
    _warn_of_unknown_classes(content, source)
    sizes = {
        image["id"]: [image["height"], image["width"]]
        for image in content["images"]
        if "height" in image and "width" in image
    }
    annotations = content["annotations"]
    for start in range(0, len(annotations), _BLOCK):
        block = annotations[start : start + _BLOCK]
        if _are_plain(block, _OWN.get(image_kind, image_kind)):
            continue
        for where, annotation in _entries(block, f"{source}: annotations", start):
            for name, kind in (("image_id", image_kind), ("category_id", Integral)):
                _check_id(_field(annotation, name, where), kind, where, name)
            _check_object(annotation, sizes, where)


def check_image_sizes(content: Entry, source: str) -> None:
    """Check that all images have their size, which training needs and evaluation does not.

    Args:
        content (dict): passes :func:`check_annotations`.
        source (str): the file, for messages.

    Raises:
        ValueError: an image has no height or no width.
    """
    for where, image in _entries(content["images"], f"{source}: images"):
        if not {"height", "width"} <= set(image):
            raise UserError(
                f"{where} lacks 'height' or 'width', which training needs. Write the size of the "
                "image file in pixels."
            )


def name_of(category: Entry) -> str:
    """The name of a category: its "name", else its first synonym, else its id.

    Example:
        >>> name_of({"id": 3, "synonyms": ["sofa", "couch"]}), name_of({"id": 3})
        ('sofa', '3')
    """
    return category.get("name") or next(iter(category.get("synonyms") or ()), str(category["id"]))


def path_of(image: Entry) -> str:
    """The path of an image below the image folder; "" if the file does not tell.

    Example:
        >>> path_of({"id": 1, "coco_url": "http://images.cocodataset.org/val2017/1.jpg"})
        'val2017/1.jpg'
    """
    # LVIS v1 has no file_name and v0.5 an outdated one: the last two parts of the URL are the path.
    # COCO has both, and its file_name is right.
    url = image.get("coco_url")
    if url and ("neg_category_ids" in image or "file_name" not in image):
        return "/".join(url.split("/")[-2:])
    return image.get("file_name") or ""


def mask_of(annotation: Entry) -> list[list[float]] | dict[str, Any] | None:
    """The mask of an object: run lengths, or its polygons of at least three points.

    Returns:
        list, dict or None: None for an object with only a box, which ``[]``, ``[[]]`` and polygons
        of fewer than three points mean.

    Example:
        >>> mask_of({"segmentation": [[0, 0, 4, 4], [0, 0, 4, 0, 4, 4]]})
        [[0, 0, 4, 0, 4, 4]]
    """
    segmentation = annotation.get("segmentation")
    if isinstance(segmentation, Mapping):
        return dict(segmentation)
    polygons = [p for p in segmentation or () if len(p) >= 6 and len(p) % 2 == 0]
    return polygons or None


def _entries(entries: Sequence[Entry], section: str, start: int = 0) -> Iterator[tuple[str, Entry]]:
    for position, entry in enumerate(entries, start):
        yield f"{section}[{position}] (id {entry['id']!r})", entry


def _check_id(value: Any, kind: type, where: str, name: str) -> None:
    # numpy's integers have 64 bits: a larger id would wrap around to another one.
    if not _is(value, kind) or isinstance(value, bool):
        expected = "a string" if kind is str else "a whole number"
        expected += ", as the ids of the file's list" if name != "id" else " as every id"
        raise UserError(
            f"{where} has the {name} {value!r:.80} of type {type(value).__name__}; expected "
            f"{expected}."
        )
    if kind is Integral and not -(2**63) <= value < 2**63:
        _refuse(where, name, value, "a whole number of at most 64 bits")


def _check_ids(entries: Sequence[Any], section: str, kind: type) -> None:
    """Check that every entry is a mapping with a unique id of the given type."""
    with contextlib.suppress(KeyError, TypeError):
        if {dict}.issuperset(map(type, entries)):
            ids = [entry["id"] for entry in entries]
            if _are_ids(ids, _OWN.get(kind, kind)) and len(set(ids)) == len(ids):
                return
    seen: set[Any] = set()
    for position, entry in enumerate(entries):
        if not isinstance(entry, Mapping):
            raise UserError(f"{section}[{position}] is {entry!r:.80}; expected an object.")
        number = _field(entry, "id", f"{section}[{position}]")
        _check_id(number, kind, f"{section}[{position}]", "id")
        if number in seen:
            raise UserError(
                f"{section}[{position}] has the id {number}, which occurs more than once. Ids "
                "must be unique; renumber the entries. Were two data sets joined?"
            )
        seen.add(number)


def _check_all_or_none(
    entries: Sequence[Entry], section: str, fields: Sequence[str], source: str
) -> None:
    for field in fields:
        count = sum(field in entry for entry in entries)
        if 0 < count < len(entries):
            first = next(entry["id"] for entry in entries if field not in entry)
            raise UserError(
                f"{source} gives {field} for {count} of {len(entries)} {section}, the first "
                f"without it is {first!r}. Give it for all of them (possibly as an empty list) or "
                "for none."
            )


def _warn_of_unknown_classes(content: Mapping[str, Any], source: str) -> None:
    known = {category["id"] for category in content["categories"]}
    for field in _OF_ALL_IMAGES[:2]:
        unknown = [
            (image["id"], number)
            for image in content["images"]
            for number in image.get(field, ())
            if number not in known
        ]
        if unknown:
            logger.warning(
                "%s: %d entries of %s are not categories of the file and are left out, the first "
                "is %s of image %s.",
                *(source, len(unknown), field, unknown[0][1], unknown[0][0]),
            )


def _field(entry: Entry, name: str, where: str) -> Any:
    if name not in entry:
        raise UserError(f"{where} has no '{name}'. Write it, or leave the entry out.")
    return entry[name]


def _refuse(where: str, name: str, value: Any, expected: str) -> None:
    raise UserError(f"{where} has {name} {value!r:.80}; expected {expected}.")


def _is(value: Any, kind: type) -> bool:
    """`isinstance`, which is slow for abstract types; json has Python's own."""
    return type(value) is _OWN.get(kind, kind) or isinstance(value, kind)


def _are_numbers(values: Sequence[Any]) -> bool:
    """Whether all values are finite numbers."""
    if _NUMBERS.issuperset(map(type, values)):
        # A sum is finite only if all terms are; sums of large numbers that overflow take the slow
        # path.
        with contextlib.suppress(OverflowError):
            if math.isfinite(sum(values)):
                return True
    return all(map(_is_number, values))


def _is_number(value: Any) -> bool:
    """Whether a value is a finite number; integers may be too large for a float."""
    if type(value) not in _NUMBERS and (not isinstance(value, Real) or isinstance(value, bool)):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


def _check_image(image: Entry, where: str) -> None:
    for name in ("height", "width"):
        if name in image and not (_is_number(image[name]) and 0 < image[name] < MAX_COORDINATE):
            _refuse(where, name, image[name], "a positive number of pixels below a million")
    for name in ("neg_category_ids", "not_exhaustive_category_ids"):
        if name in image and not _is_list_of_ids(image[name]):
            _refuse(where, name, image[name], "a list of category ids, which may be empty")
    for name in ("file_name", "coco_url"):
        if image.get(name) is not None and not isinstance(image[name], str):
            _refuse(where, name, image[name], "a string")


def _check_category(category: Entry, where: str) -> None:
    if "name" in category and not (isinstance(category["name"], str) and category["name"]):
        _refuse(where, "name", category["name"], "a string that is not empty")
    synonyms = category.get("synonyms")
    if synonyms is not None and not _is_list_of(synonyms, str):
        _refuse(where, "synonyms", synonyms, "a list of strings")
    frequency = category.get("frequency", "r")
    if not (isinstance(frequency, str) and frequency):
        _refuse(where, "frequency", frequency, 'the name of a group, such as "r", "c" or "f"')
    for name in ("image_count", "instance_count"):
        count = category.get(name, 0)
        if not (isinstance(count, Integral) and _is_number(count) and 0 <= count < 2**63):
            _refuse(where, name, count, "a whole number of 0 or more")


def _is_list_of_ids(value: Any) -> bool:
    return _is_list_of(value, Integral) and all(-(2**63) <= each < 2**63 for each in value)


def _is_list_of(value: Any, kind: type) -> bool:
    if not isinstance(value, list | tuple):
        return False
    return {_OWN.get(kind, kind)}.issuperset(map(type, value)) or all(
        isinstance(each, kind) for each in value
    )


def _are_plain(objects: Sequence[Any], image_kind: type) -> bool:
    """Whether all objects have the usual form and are valid; otherwise each needs its own check.

    Checks one field of all objects at a time in the interpreter's built-in loops, which takes a
    fifth of the time of separate calls per object.
    """
    try:
        if not {dict}.issuperset(map(type, objects)):
            return False
        boxes = [each["bbox"] for each in objects]
        if not ({list}.issuperset(map(type, boxes)) and {4}.issuperset(map(len, boxes))):
            return False
        numbers = list(chain.from_iterable(boxes))
        # NaN differs from itself; null means that the area is unknown.
        areas = [each.get("area") for each in objects]
        areas = [area for area in areas if area is not None and area == area]
        flags = [each.get(name, 0) for name in ("ignore", "iscrowd") for each in objects]
        masks = [each.get("segmentation") for each in objects]
        masks = [mask for mask in masks if mask is not None]
        if not {list}.issuperset(map(type, masks)):
            return False
        polygons = list(chain.from_iterable(masks))
        if not {list}.issuperset(map(type, polygons)):
            return False
        coordinates = list(chain.from_iterable(polygons))
        return (
            _are_ids([each["image_id"] for each in objects], image_kind)
            and _are_ids([each["category_id"] for each in objects], int)
            and _are_within(numbers, -MAX_COORDINATE, MAX_COORDINATE)
            and min(chain(numbers[2::4], numbers[3::4])) >= 0
            and _are_within(areas, 0, MAX_COORDINATE**2)
            and {int}.issuperset(map(type, flags))
            and {0, 1}.issuperset(flags)
            and _are_within(coordinates, 1 - MAX_COORDINATE, MAX_COORDINATE - 1)
        )
    except (KeyError, TypeError):
        return False


def _are_ids(ids: Sequence[Any], kind: type) -> bool:
    """Whether all ids have this type, and integers at most 64 bits."""
    if not {kind}.issuperset(map(type, ids)):
        return False
    return kind is str or not ids or (min(ids) >= -(2**63) and max(ids) < 2**63)


def _are_within(values: Sequence[Any], least: float, most: float) -> bool:
    """Whether all values are finite numbers in this range, including its ends."""
    if not values:
        return True
    # The sum reveals NaN, which min and max may miss.
    return (
        _NUMBERS.issuperset(map(type, values))
        and min(values) >= least
        and max(values) <= most
        and math.isfinite(sum(values))
    )


def _check_object(annotation: Entry, sizes: Mapping[Any, list[Any]], where: str) -> None:
    box = _field(annotation, "bbox", where)
    if not (isinstance(box, list | tuple) and len(box) == 4 and _are_numbers(box)):
        _refuse(where, "bbox", box, "four finite numbers: left, top, width, height")
    if max(map(abs, box)) > MAX_COORDINATE or min(box[2:]) < 0:
        _refuse(where, "bbox", box, "pixels, with a width and height of 0 or more")
    # Some tools write null for "unknown"; Python's json also reads NaN, which differs from itself.
    area = annotation.get("area")
    if area is not None and area == area:
        if not _is_number(area) or not 0 <= area <= MAX_COORDINATE**2:
            _refuse(where, "area", area, "a number of pixels")
    ignore = annotation.get("ignore", 0)
    if not (_is(ignore, Integral) and ignore in (0, 1)):
        _refuse(where, "ignore", ignore, "0 or 1")
    # Only 0 and 1: Detectron2 drops objects whose flag is not 0, pycocotools those whose flag is
    # true.
    crowd = annotation.get("iscrowd", 0)
    if not (_is(crowd, Integral) and crowd in (0, 1)):
        _refuse(where, "iscrowd", crowd, "0 or 1")
    segmentation = annotation.get("segmentation")
    if isinstance(segmentation, Mapping):
        _check_run_lengths(segmentation, sizes.get(annotation["image_id"]), where)
    elif segmentation is not None:
        _check_polygons(segmentation, where)


def _check_run_lengths(rle: Entry, size: list[Any] | None, where: str) -> None:
    if not isinstance(rle.get("counts"), list | str | bytes):
        _refuse(where, "segmentation counts", rle.get("counts"), "numbers or a string")
    if not (_is_list_of(rle.get("size"), Integral) and len(rle["size"]) == 2):
        _refuse(where, "segmentation size", rle.get("size"), "[height, width]")
    height, width = rle["size"]
    counts = rle["counts"] if isinstance(rle["counts"], list) else _decoded(rle["counts"])
    # pycocotools checks nothing, and reads past the end of counts that are too short.
    whole = counts is not None and _is_list_of(counts, Integral)
    if not whole or sum(counts) != height * width or min(counts, default=0) < 0:
        _refuse(where, "segmentation counts", rle["counts"], f"{height} x {width} pixels in all")
    # pycocotools silently returns an overlap of 0 or -1 for masks of different sizes.
    if size is not None and list(rle["size"]) != list(size):
        raise UserError(
            f"{where} has a mask of {rle['size'][0]} x {rle['size'][1]} pixels (height x width), "
            f"its image has {size[0]} x {size[1]}. Does it belong to a resized image?"
        )


def _decoded(text: str | bytes) -> list[int] | None:
    """Decode COCO's compressed run lengths; None for invalid text.

    Each number is stored in groups of five bits, lowest first, one character from "0" on per group;
    a sixth bit marks that another group follows. From the fourth number on, the file stores the
    difference from the number two places before.
    """
    codes = text if isinstance(text, bytes) else text.encode("ascii", "replace")
    counts: list[int] = []
    number = shift = 0
    for code in codes:
        group = code - 48
        if not 0 <= group < 64:
            return None
        number |= (group & 0x1F) << shift
        shift += 5
        if group & 0x20:
            continue
        if group & 0x10:
            number -= 1 << shift
        counts.append(number + counts[-2] if len(counts) > 2 else number)
        number = shift = 0
    return None if shift else counts


def _check_polygons(polygons: Any, where: str) -> None:
    form = "a list of polygons [x, y, x, y, ...]"
    if not isinstance(polygons, list | tuple):
        _refuse(where, "segmentation", polygons, f"{form} or run lengths")
    for polygon in polygons:
        if not isinstance(polygon, list | tuple):
            _refuse(where, "segmentation", polygons, form)
        try:
            # A sum is finite only if all terms are, and is much faster than checking each.
            total, least, most = sum(polygon), min(polygon, default=0), max(polygon, default=0)
            usable = math.isfinite(total) and -MAX_COORDINATE < least <= most < MAX_COORDINATE
        except (TypeError, OverflowError):
            usable = False
        if not usable:
            _refuse(where, "segmentation", polygon, f"finite pixel coordinates, as {form}")
