"""Mistakes in annotation files that Detectron2's own loader of LVIS meets without naming them.

Detectron2 derives an image's path from the last two parts of its ``coco_url`` alone, in v0.5 as in
v1, and needs polygons of at least three points for every object; without them it stops with a bare
KeyError or an assertion.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from detectron2.data import MetadataCatalog

from ..annotations import check_image_sizes, read_annotations
from ..errors import UserError

_REMEDY = (
    "Fetch the file from lvisdataset.org again, or name your own set in MODEL.LOGN.DATASETS, which "
)


@contextmanager
def lvis_mistakes_named(names: Sequence[str]) -> Iterator[None]:
    """Name the mistake in an annotation file if Detectron2 fails to load a data set.

    The file is read again only after an error.

    Args:
        names (Sequence[str]): the registered data sets that the context loads.

    Raises:
        UserError: for an error of Detectron2 that the file explains; other errors pass through.

    Example:
        >>> with lvis_mistakes_named(["lvis_v1_train"]):  # doctest: +SKIP
        ...     DatasetCatalog.get("lvis_v1_train")
    """
    try:
        yield
    except UserError:  # names its mistake already
        raise
    except (AssertionError, AttributeError, KeyError, TypeError, ValueError) as error:
        for name in names:
            path = _file_of(name)
            if path is not None:
                try:
                    _check(path)
                except UserError as mistake:
                    raise mistake from error
        raise


def _file_of(name: str) -> str | None:
    """The annotation file of a set of LVIS that Detectron2 loads itself."""
    metadata = MetadataCatalog.get(name)
    # Sets of `register_lvis_form` have their own loader, which needs neither address nor polygon.
    if metadata.get("evaluator_type") != "lvis" or "_hint" in vars(metadata):
        return None
    path = metadata.get("json_file")
    return path if path and Path(path).is_file() else None


def _check(path: str) -> None:
    """Check what Detectron2's loader needs beyond the rules of every annotation file."""
    content = read_annotations(path)
    check_image_sizes(content, path)
    for position, image in enumerate(content["images"]):
        _check_image(image, f"{path}: images[{position}] (id {image['id']})")
    for position, annotation in enumerate(content["annotations"]):
        if not _has_polygons(annotation):
            raise UserError(
                f"{path}: annotations[{position}] (id {annotation['id']}) has no polygon, or one "
                "of fewer than three points; Detectron2's loader of LVIS needs polygons of three "
                f"for every object. {_REMEDY}takes boxes and run lengths too."
            )


def _check_image(image: Mapping[str, Any], where: str) -> None:
    address = image.get("coco_url")
    if not address or "/" not in address:
        found = f"the coco_url {address!r}" if address else "no coco_url"
        file_name = image.get("file_name")
        found += f" (file_name {file_name!r})" if file_name else ""
        raise UserError(
            f"{where} has {found}; Detectron2's loader of LVIS finds the image by the last two "
            "parts of its coco_url, such as "
            "http://images.cocodataset.org/train2017/000000155379.jpg, and by nothing else. "
            f"{_REMEDY}takes a file_name too."
        )


def _has_polygons(annotation: Mapping[str, Any]) -> bool:
    polygons = annotation.get("segmentation")
    return (
        isinstance(polygons, list)
        and bool(polygons)
        and all(len(polygon) >= 6 and len(polygon) % 2 == 0 for polygon in polygons)
    )
