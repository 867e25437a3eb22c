"""Images of unknown classes: the part of a data set without objects of given classes.

VOS and SIREN evaluate on COCO's validation images without any class of PASCAL VOC or BDD100K.
Annotations are incomplete: the published subsets were also filtered by hand, and still contain
known classes (Montoya et al., arXiv 2506.14008).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..annotations import name_of
from ..errors import UnknownNameError, UserError


def images_without(content: Mapping[str, Any], classes: Sequence[str]) -> dict[str, Any]:
    """Reduce an annotation file to the images without any object of given classes.

    A crowd region is an object too. In LVIS format, a class that is neither annotated nor listed as
    absent may be present; such images are kept, since few of them contain it.

    Args:
        content (Mapping): a valid annotation file in COCO or LVIS format (`check_annotations`); it
            is not changed.
        classes (Sequence[str]): names of categories; case is ignored.

    Returns:
        dict: the file with fewer images and annotations. All categories stay.

    Raises:
        KeyError: the file lacks a class; the message names the first.
        ValueError: no class is named, or no image is left.

    Example:
        >>> content = {
        ...     "images": [{"id": 1}, {"id": 2}],
        ...     "categories": [{"id": 5, "name": "cat"}, {"id": 6, "name": "dog"}],
        ...     "annotations": [{"id": 1, "image_id": 1, "category_id": 5, "bbox": [0, 0, 1, 1]}],
        ... }
        >>> [image["id"] for image in images_without(content, ["cat"])["images"]]
        [2]
    """
    # A list, because names that differ only in case are several categories.
    ids: dict[str, list[int]] = {}
    for category in content["categories"]:
        ids.setdefault(name_of(category).casefold(), []).append(category["id"])
    missing = [name for name in classes if name.casefold() not in ids]
    if missing:
        raise UnknownNameError(
            f"{len(missing)} of {len(classes)} classes are not in the file, the first is "
            f"'{missing[0]}'. It has {', '.join(list(ids)[:10])}{', ...' * (len(ids) > 10)}. Leave "
            "out missing classes, or spell them as in the file."
        )
    unwanted = {number for name in classes for number in ids[name.casefold()]}
    if not unwanted:
        raise UserError("No class is named, so that every image would be kept.")
    shown = {a["image_id"] for a in content["annotations"] if a["category_id"] in unwanted}
    images = [image for image in content["images"] if image["id"] not in shown]
    if not images:
        raise UserError(
            f"All {len(content['images'])} images contain one of the {len(classes)} classes, so "
            "that none is left."
        )
    kept = {image["id"] for image in images}
    objects = [a for a in content["annotations"] if a["image_id"] in kept]
    return {**content, "images": images, "annotations": objects}
