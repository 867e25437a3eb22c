"""Images of other classes: the part of a set in which none of some classes is annotated.

VOS and SIREN evaluate on COCO's validation images that show no class of PASCAL VOC or BDD100K.
Annotations are not complete: the published subsets went through human hands as well, and still show
known classes (Montoya et al., arXiv 2506.14008).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..annotations import name_of
from ..errors import UnknownNameError, UserError

__all__ = ["images_without"]


def images_without(content: Mapping[str, Any], classes: Sequence[str]) -> dict[str, Any]:
    """The images without any object of some classes, with all else that an annotation file has.

    A crowd region is an object too. In LVIS form a class that is neither annotated nor listed as
    absent may be there; such images are kept, as most of them don't show it.

    Args:
        content (Mapping): an annotation file in COCO or LVIS form, which `check_annotations`
            passes; it is left as it is.
        classes (Sequence[str]): names of categories, capitals aside.

    Returns:
        dict: the file with fewer images and annotations. All categories stay.

    Raises:
        KeyError: a class that the file does not have; the message names the first, and the like.
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
    ids: dict[str, list[int]] = {}
    for category in content["categories"]:
        ids.setdefault(name_of(category).casefold(), []).append(category["id"])
    missing = [name for name in classes if name.casefold() not in ids]
    if missing:
        raise UnknownNameError(
            f"{len(missing)} of {len(classes)} classes are not in the file, the first is "
            f"'{missing[0]}'. It has {', '.join(list(ids)[:10])}{', ...' * (len(ids) > 10)}. Leave "
            "out what it does not have, or write it as the file does."
        )
    unwanted = {number for name in classes for number in ids[name.casefold()]}
    if not unwanted:
        raise UserError("No class is named, so that every image would be kept.")
    shown = {a["image_id"] for a in content["annotations"] if a["category_id"] in unwanted}
    images = [image for image in content["images"] if image["id"] not in shown]
    if not images:
        raise UserError(
            f"All {len(content['images'])} images show one of the {len(classes)} classes, so that "
            "none is left."
        )
    kept = {image["id"] for image in images}
    objects = [a for a in content["annotations"] if a["image_id"] in kept]
    return {**content, "images": images, "annotations": objects}
