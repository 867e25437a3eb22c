"""The ground truth of a data set in LVIS format as arrays.

LVIS is *federated*: an image is annotated for only some classes. Its `neg_category_ids` are known
to be absent, the classes of its annotations are present, and all others are unknown. Of the classes
in its `not_exhaustive_category_ids`, some objects are not annotated.

Shapes: N images, K foreground classes, G annotated objects. Boxes are (x, y, width, height) in
pixels, areas in square pixels. An (image, class) pair is one integer, its *key*:
image index * K + class index.
"""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pycocotools.mask as mask_util

from logn_d2.annotations import (
    check_annotations,
    collector_paused,
    mask_of,
    name_of,
    read_annotations,
)

from ..errors import MissingFileError
from ..frequency import frequency_groups
from .detections import RleMasks, image_id_array

logger = logging.getLogger(__name__)

LVIS_MAX_DETS = 300


@dataclass(frozen=True, eq=False)
class LvisGroundTruth:
    """Annotations of a data set, sorted by image and class, and within these in file order.

    A json in COCO format (no `neg_category_ids`) works too: every image then counts as exhaustively
    annotated for every class, and crowd regions follow COCO's rule. In LVIS format, `iscrowd` is
    ignored and objects without an area above 0 are left out, as in lvis-api.

    Args:
        image_ids (ndarray): (N,) int64 or strings, ascending.
        image_size (ndarray): (N, 2) int32, height and width in pixels; 0 if missing.
        category_ids (ndarray): (K,) int64, ascending; a class index is a position in it.
        class_names (tuple[str, ...]): K names.
        groups (ndarray | None): (K,) group of each class: LVIS's "r", "c", "f".
        image (ndarray): (G,) int64 index into `image_ids`.
        category (ndarray): (G,) int64 class index.
        box (ndarray): (G, 4) float64, XYWH.
        area (ndarray): (G,) float64, of the mask if the json has masks.
        ignore (ndarray): (G,) bool, objects to ignore: matching one is neither a true nor a false
            positive.
        crowd (ndarray): (G,) bool, COCO crowd regions; `ignore` includes them.
        annotation_id (ndarray): (G,) int64.
        listed (ndarray | None): sorted keys of the pairs known to be present or absent; None if all
            pairs are known.
        not_exhaustive (ndarray): sorted keys of the pairs with unannotated objects.
        masks (RleMasks | None): G masks.
        without_mask (ndarray | None): (G,) bool, objects with only a box, whose mask is empty; None
            if there are none.
        json_file (str | None): source of the annotations.
    """

    image_ids: np.ndarray
    image_size: np.ndarray
    category_ids: np.ndarray
    class_names: tuple[str, ...]
    groups: np.ndarray | None
    image: np.ndarray
    category: np.ndarray
    box: np.ndarray
    area: np.ndarray
    ignore: np.ndarray
    crowd: np.ndarray
    annotation_id: np.ndarray
    listed: np.ndarray | None
    not_exhaustive: np.ndarray
    masks: RleMasks | None = None
    without_mask: np.ndarray | None = None
    json_file: str | None = None

    @property
    def num_images(self) -> int:
        """N."""
        return len(self.image_ids)

    @property
    def num_classes(self) -> int:
        """K."""
        return len(self.category_ids)

    def __len__(self) -> int:
        return len(self.image)

    def keys(self) -> np.ndarray:
        """Return the (image, class) keys of the objects, (G,) int64, ascending."""
        return self.image * self.num_classes + self.category

    def limit(self, max_dets: int | None) -> int:
        """Return the number of detections that count per image; negative for all.

        Args:
            max_dets (int | None): None for the rule's own limit: 300 in LVIS, none over all classes
                in COCO.
        """
        if max_dets is not None:
            return max_dets
        return -1 if self.listed is None else LVIS_MAX_DETS

    def for_task(self, iou_type: str) -> LvisGroundTruth:
        """Return the ground truth of a task.

        For "segm", objects without a mask are left out, and their (image, class) pairs count as not
        exhaustively annotated, so that detections of such objects are not false positives.

        Args:
            iou_type (str): "bbox" or "segm".
        """
        return self if iou_type == "bbox" or self.without_mask is None else self._with_masks

    @functools.cached_property
    def _with_masks(self) -> LvisGroundTruth:
        assert self.masks is not None and self.without_mask is not None
        kept = ~self.without_mask
        names = ("image", "category", "box", "area", "ignore", "crowd", "annotation_id")
        return replace(
            self,
            **{name: getattr(self, name)[kept] for name in names},
            not_exhaustive=np.union1d(self.not_exhaustive, self.keys()[~kept]),
            masks=self.masks.take(kept),
            without_mask=None,
        )

    @classmethod
    def from_json(cls, json_file: str | os.PathLike[str], *, masks: bool = True) -> LvisGroundTruth:
        """Read a json in LVIS or COCO format; repeated calls parse the file once.

        Args:
            json_file (str or PathLike): a local path.
            masks (bool): False skips segmentations, which saves most of the time and memory if only
                boxes are evaluated.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the json has another format; the message names the first error.
        """
        path = os.path.abspath(json_file)
        if not os.path.isfile(path):
            raise MissingFileError(
                f"Ground truth {path} does not exist. It is the data set's `json_file`; set it "
                "when registering the data set, or put the annotations there."
            )
        stat = os.stat(path)
        return _read(path, masks, stat.st_mtime_ns, stat.st_size)

    @classmethod
    def from_dict(
        cls, dataset: Mapping[str, Any], *, masks: bool = True, json_file: str | None = None
    ) -> LvisGroundTruth:
        """Convert a json's content.

        Args:
            dataset (Mapping): with "images", "categories" and "annotations".
            masks (bool): False skips segmentations.
            json_file (str | None): source of the content, for messages and for lvis-api.

        Raises:
            ValueError: the json has another format; the message names the first error.

        Example:
            >>> truth = LvisGroundTruth.from_dict({
            ...     "images": [{"id": 7, "neg_category_ids": [2]}],
            ...     "categories": [{"id": i, "name": f"class {i}"} for i in (1, 2, 3)],
            ...     "annotations": [
            ...         {"id": 1, "image_id": 7, "category_id": 1, "bbox": [0, 0, 4, 4], "area": 16}
            ...     ],
            ... })
            >>> truth.num_classes, truth.listed
            (3, array([0, 1]))
        """
        source = json_file or "this data set"
        if json_file is None:  # a file's content was checked when it was read
            check_annotations(dataset, source)
        images = sorted(dataset["images"], key=lambda image: image["id"])
        categories = sorted(dataset["categories"], key=lambda category: category["id"])
        image_ids = image_id_array([image["id"] for image in images])
        category_ids = image_id_array([category["id"] for category in categories])
        federated = any("neg_category_ids" in image for image in images)
        annotations, image, category = _known_annotations(
            dataset["annotations"], image_ids, category_ids, source, federated
        )
        keys = image * len(category_ids) + category
        listed = None
        if federated:
            negative = _list_keys(images, "neg_category_ids", category_ids)
            # A class is verified if it is listed as absent or has an annotation: lvis-api's rule.
            listed = np.unique(np.concatenate([negative, keys]))
        size = [(image.get("height", 0), image.get("width", 0)) for image in images]
        size = np.array(size, dtype=np.int32).reshape(-1, 2)
        crowd = _column(annotations, "iscrowd", bool, 0)
        # lvis-api ignores `iscrowd`; LVIS has no crowd regions.
        crowd &= not federated
        box = np.array([a["bbox"] for a in annotations], dtype=np.float64).reshape(-1, 4)
        area = _areas(annotations)
        return cls(
            image_ids=image_ids,
            image_size=size,
            category_ids=category_ids,
            class_names=tuple(map(name_of, categories)),
            groups=_class_groups(categories),
            image=image,
            category=category,
            box=box,
            area=np.where(np.isnan(area), box[:, 2] * box[:, 3], area),
            ignore=_column(annotations, "ignore", bool, 0) | crowd,
            crowd=crowd,
            annotation_id=_column(annotations, "id", np.int64),
            listed=listed,
            not_exhaustive=_list_keys(images, "not_exhaustive_category_ids", category_ids),
            **(_encode_masks(annotations, size[image], source) if masks else {}),
            json_file=json_file,
        )

    def is_listed(self, keys: np.ndarray) -> np.ndarray:
        """Mark keys whose class is known to be present in or absent from the image, (D,) bool."""
        return np.ones(len(keys), dtype=bool) if self.listed is None else _in(keys, self.listed)

    def is_not_exhaustive(self, keys: np.ndarray) -> np.ndarray:
        """Mark keys whose class has unannotated objects in the image, (D,) bool."""
        return _in(keys, self.not_exhaustive)


def _in(keys: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    """Membership of (D,) keys in sorted `pairs`."""
    if not len(pairs):
        return np.zeros(len(keys), dtype=bool)
    # A table lookup costs a tenth of a search, but the table has an entry for every image and
    # class, so it must not be larger than the keys themselves.
    if pairs[-1] < _TABLE_ENTRIES * len(keys):
        return np.isin(keys, pairs, kind="table")
    # Searching without the last pair keeps every position inside `pairs`.
    return pairs[np.searchsorted(pairs[:-1], keys)] == keys


# Bytes of table allowed per key, which has 8 bytes itself.
_TABLE_ENTRIES = 8


# Two data sets, each with and without masks. Size and time are part of the key, so a rewritten file
# is read again.
@functools.lru_cache(maxsize=4)
def _read(path: str, masks: bool, mtime_ns: int, num_bytes: int) -> LvisGroundTruth:
    with collector_paused():
        return LvisGroundTruth.from_dict(read_annotations(path), masks=masks, json_file=path)


def _known_annotations(
    annotations: Sequence[Mapping[str, Any]],
    image_ids: np.ndarray,
    category_ids: np.ndarray,
    source: str,
    federated: bool,
) -> tuple[list[Mapping[str, Any]], np.ndarray, np.ndarray]:
    """Return the annotations that count, sorted by key, with their image and class indices."""
    image_id = image_id_array([annotation["image_id"] for annotation in annotations])
    category_id = _column(annotations, "category_id", np.int64)
    known = np.isin(image_id, image_ids) & np.isin(category_id, category_ids)
    if not known.all():
        first = annotations[int(np.argmin(known))]
        logger.warning(
            "%s: %d of %d annotations refer to images or categories that the file does not list "
            "and are left out; the first is %s (image %s, category %s).",
            *(source, np.count_nonzero(~known), len(known)),
            *(first["id"], first["image_id"], first["category_id"]),
        )
    if federated:
        # lvis-api selects annotations by an area range that is open at 0; pycocotools, whose rule
        # applies to COCO format, leaves none out.
        without_area = known & ~(_areas(annotations) > 0)
        if without_area.any():
            logger.warning(
                "%s: %d of %d annotations have no area above 0 and are left out, as in lvis-api; "
                "the first is %s.",
                *(source, np.count_nonzero(without_area), len(known)),
                annotations[int(np.argmax(without_area))]["id"],
            )
        known &= ~without_area
    else:
        # NaN differs from itself and counts as missing too.
        without = [a["id"] for a in annotations if a.get("area") is None or a["area"] != a["area"]]
        if 0 < len(without) < len(annotations):
            logger.warning(
                "%s: %d of %d annotations have no area, the first is %s: the box area is used.",
                *(source, len(without), len(annotations), without[0]),
            )
    index = np.flatnonzero(known)
    image = np.searchsorted(image_ids, image_id[index])
    category = np.searchsorted(category_ids, category_id[index])
    # lexsort is stable: objects of an image and class stay in file order, which breaks ties of IoU.
    order = np.lexsort((category, image))
    return [annotations[i] for i in index[order]], image[order], category[order]


def _column(
    annotations: Sequence[Mapping[str, Any]], name: str, dtype: type, default: Any = None
) -> np.ndarray:
    """Return one field of all annotations."""
    return np.array([annotation.get(name, default) for annotation in annotations], dtype=dtype)


def _areas(annotations: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """Return the areas of all annotations; the box area replaces a missing one, but not NaN."""
    values = [annotation.get("area") for annotation in annotations]
    if None in values:
        boxes = (a["bbox"][2] * a["bbox"][3] for a in annotations)
        values = [b if a is None else a for a, b in zip(values, boxes, strict=True)]
    return np.array(values, dtype=np.float64)


def _list_keys(
    images: Sequence[Mapping[str, Any]], name: str, category_ids: np.ndarray
) -> np.ndarray:
    """Return the sorted keys of a per-image list of categories."""
    lists = [image.get(name, ()) for image in images]
    image = np.repeat(np.arange(len(lists)), [len(entries) for entries in lists])
    ids = np.array([category_id for entries in lists for category_id in entries], dtype=np.int64)
    known = np.isin(ids, category_ids)
    category = np.searchsorted(category_ids, ids[known])
    return np.unique(image[known] * len(category_ids) + category)


def _class_groups(categories: Sequence[Mapping[str, Any]]) -> np.ndarray | None:
    """Return LVIS's group of each class: from the file, else by training images, else None."""
    if categories and all("frequency" in category for category in categories):
        return np.array([str(category["frequency"]) for category in categories])
    if categories and all("image_count" in category for category in categories):
        return frequency_groups(np.array([category["image_count"] for category in categories]))
    return None


def _encode_masks(
    annotations: Sequence[Mapping[str, Any]], size: np.ndarray, source: str
) -> dict[str, Any]:
    """Encode polygons and run lengths as `masks` and `without_mask`; {} if there are none."""
    masks = [mask_of(annotation) for annotation in annotations]
    without = np.array([mask is None for mask in masks], dtype=bool)
    if without.all() and len(without):
        return {}
    if without.any():
        logger.warning(
            "%s: %d of %d objects have no mask, the first is annotation %s. Mask AP covers the "
            "others; unmatched detections of these objects' classes in their images are ignored.",
            *(source, np.count_nonzero(without), len(without)),
            annotations[int(np.argmax(without))]["id"],
        )
    rles = []
    for segmentation, (height, width) in zip(masks, size.tolist(), strict=True):
        if segmentation is None:
            segmentation = {"size": [height, width], "counts": [height * width]}
        if isinstance(segmentation, list):
            parts = mask_util.frPyObjects(segmentation, height, width)
            segmentation = mask_util.merge(parts) if len(parts) > 1 else parts[0]
        elif isinstance(segmentation["counts"], list):
            segmentation = mask_util.frPyObjects(segmentation, height, width)
        rles.append(segmentation)
    return {
        "masks": RleMasks.from_dicts(rles),
        "without_mask": without if without.any() else None,
    }
