"""Register data sets in LVIS or COCO format, with any vocabulary, without reading them.

Detectron2's own LVIS loader supports only two vocabularies and needs a polygon for every object;
its COCO loader drops the lists of the federated rule. This one reads both formats, with or without
polygons. Class indices are contiguous in the order of the category ids, in [0, K).
"""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.catalog import Metadata
from detectron2.structures import BoxMode
from detectron2.utils.file_io import PathManager
from fvcore.common.timer import Timer

from ..annotations import check_image_sizes, mask_of, name_of, path_of, read_annotations
from ..errors import MissingFileError, UserError
from .kept import is_kept

logger = logging.getLogger(__name__)

# Metadata that is read from the json on first access.
_FROM_JSON = (
    "thing_classes",
    "thing_dataset_id_to_contiguous_id",
    "class_image_count",
    "class_instance_count",
    "class_groups",
    "federated",
)


class LazyMetadata(Metadata):
    """Metadata with fields that are read from a file on first use.

    A model may be built, and need class names or counts, before its data set is loaded.
    """

    lazy: Sequence[str] = ()
    """Names of these fields."""

    def read(self) -> None:
        """Set the `lazy` fields in ``__dict__``: Metadata's own check would access them again."""
        raise AssertionError("a subclass reads them")

    def __getattr__(self, key: str) -> Any:
        # Python calls this only for missing attributes.
        fields = self.__dict__
        if key in self.lazy and "_read" not in fields:
            try:
                self.read()
            except FileNotFoundError as error:
                # hasattr and get(key, default) expect this error: a model may be used without its
                # training set.
                raise AttributeError(str(error)) from error
            fields["_read"] = True
            if key in fields:
                return fields[key]
        return super().__getattr__(key)

    def as_dict(self) -> dict[str, Any]:
        """All fields, without private ones."""
        return {k: v for k, v in super().as_dict().items() if not k.startswith("_")}


class _JsonMetadata(LazyMetadata):
    """Metadata whose classes and counts are read from ``json_file``."""

    lazy = _FROM_JSON

    def read(self) -> None:
        fields = self.__dict__
        if is_kept(self.name):  # its records will be needed too, and loading them calls `take`
            DatasetCatalog.get(self.name)
        if "_read" not in fields:
            self.take(_read_json(fields["json_file"], self.name, fields.get("_hint", "")))

    def take(self, content: Mapping[str, Any]) -> None:
        """Set the fields of ``_FROM_JSON`` that were not set at registration."""
        for key, value in _describe(content).items():
            self.__dict__.setdefault(key, value)
        self.__dict__["_read"] = True


def _read_json(json_file: str, name: str, hint: str = "") -> dict[str, Any]:
    """Read and check an annotation file."""
    path = PathManager.get_local_path(json_file)
    if not os.path.isfile(path):
        raise MissingFileError(
            f"The annotations of '{name}' are missing: expected the file {path}. "
            + (hint or "See datasets/README.md for the folder layout, and set DETECTRON2_DATASETS.")
        )
    timer = Timer()
    size = os.path.getsize(path) / 2**20
    if size > 50:  # LVIS's training set has 1,100 and takes half a minute
        logger.info("Reading %s (%.0f MiB) ...", path, size)
    content = read_annotations(path)
    check_image_sizes(content, path)
    if timer.seconds() > 1:
        logger.info("Reading %s took %.1f s.", path, timer.seconds())
    return content


def _describe(content: Mapping[str, Any]) -> dict[str, Any]:
    """The metadata in a json; counts only if every category has them."""
    categories = sorted(content["categories"], key=lambda category: category["id"])
    described: dict[str, Any] = {
        "thing_classes": [name_of(category) for category in categories],
        "thing_dataset_id_to_contiguous_id": {c["id"]: i for i, c in enumerate(categories)},
        "federated": any("neg_category_ids" in image for image in content["images"]),
    }
    if categories and all(c.get("frequency") in ("r", "c", "f") for c in categories):
        described["class_groups"] = tuple(c["frequency"] for c in categories)
    for key in ("image_count", "instance_count"):
        if categories and all(key in c for c in categories):
            described[f"class_{key}"] = [{"id": c["id"], key: c[key]} for c in categories]
    if "class_image_count" not in described:
        # Detectron2's federated loss reads this from the metadata.
        described["class_image_count"] = _count_images(content, categories)
    if categories and categories[0].get("keypoints"):
        described["keypoint_names"] = list(categories[0]["keypoints"])
    return described


def _count_images(
    content: Mapping[str, Any], categories: Sequence[Mapping[str, Any]]
) -> list[dict[str, int]]:
    """Images of each category; crowds do not count as objects, as in training."""
    # As a set, since an image with many objects of a class counts once.
    pairs = {
        (annotation["image_id"], annotation["category_id"])
        for annotation in content["annotations"]
        if not annotation.get("iscrowd", 0)
    }
    counts = Counter(category_id for _, category_id in pairs)
    return [{"id": c["id"], "image_count": counts[c["id"]]} for c in categories]


def register_lvis_form(
    name: str,
    json_file: str | os.PathLike[str],
    image_root: str | os.PathLike[str],
    metadata: Mapping[str, Any] | None = None,
    *,
    check_images: int = 100,
    replace: bool = False,
    hint: str = "",
) -> None:
    """Register a data set in LVIS or COCO format, which is read only when used.

    Its metadata has ``json_file``, ``image_root``, ``evaluator_type="lvis"`` and, read from the
    json on first access, ``thing_classes``, ``thing_dataset_id_to_contiguous_id``, ``federated``
    (whether images list negative categories), ``class_image_count`` (from the json, else counted)
    and, if the json has them, ``class_instance_count``, ``class_groups`` and ``keypoint_names``.

    Args:
        name (str): the name for ``DATASETS.TRAIN`` and ``DATASETS.TEST``.
        json_file (path): the annotations.
        image_root (path): the image folder; ``file_name`` or, for images with federated lists, the
            last two parts of ``coco_url`` are relative to it.
        metadata (mapping or None): more metadata; it takes precedence over the json's.
        check_images (int): number of images whose files must exist, from the first on; 0 checks
            none, for work with only annotations.
        replace (bool): replace an existing registration with other paths.
        hint (str): remedy in the error message for a missing json.

    Raises:
        ValueError: the name is registered with other paths.

    Example:
        >>> register_lvis_form("shop_train", "datasets/shop/train.json", "datasets/shop/images")
        >>> MetadataCatalog.get("shop_train").evaluator_type
        'lvis'
    """
    json_file, image_root = (os.path.expanduser(os.fspath(p)) for p in (json_file, image_root))
    paths = {"json_file": json_file, "image_root": image_root}
    if name in DatasetCatalog.list():
        known = MetadataCatalog.get(name).as_dict()
        found = {key: known.get(key) for key in paths}
        if found == paths and not replace:
            return
        if found != paths and not replace:
            raise UserError(
                f"The data set '{name}' is already registered with {found}; can't register it with "
                f"{paths}. Choose another name, or pass replace=True."
            )
        DatasetCatalog.remove(name)
        MetadataCatalog.pop(name)
    fields = {**paths, "evaluator_type": "lvis", "_hint": hint, **(metadata or {})}
    DatasetCatalog.register(name, lambda: load_lvis_form(name, check_images=check_images))
    # MetadataCatalog.get(name).set(...) would make a Metadata, which can't read the json later.
    MetadataCatalog[name] = _JsonMetadata(name=name, **fields)


def register_from_config(cfg: CfgNode) -> list[str]:
    """Register the data sets that ``cfg.MODEL.LOGN.DATASETS`` lists.

    Each entry is ``[name, json file, image folder]``. Registering the same entry twice is harmless.

    Returns:
        list[str]: the names.

    Example:
        >>> from detectron2.config import CfgNode as CN
        >>> sets = [["cafe_train", "cafe/train.json", "cafe/images"]]
        >>> register_from_config(CN({"MODEL": {"LOGN": {"DATASETS": sets}}}))
        ['cafe_train']

    Raises:
        ValueError: an entry is not a triple of strings, or its name is registered with other paths.
    """
    names = []
    for entry in cfg.MODEL.LOGN.DATASETS:
        if isinstance(entry, str) or len(entry) != 3 or not all(isinstance(p, str) for p in entry):
            raise UserError(
                f"MODEL.LOGN.DATASETS holds {entry!r}; expected a list of [name, json file, image "
                'folder], such as [["shop_train", "shop/train.json", "shop/images"]].'
            )
        register_lvis_form(*entry)
        names.append(entry[0])
    return names


def load_lvis_form(name: str, *, check_images: int = 100) -> list[dict[str, Any]]:
    """Load a data set that :func:`register_lvis_form` registered.

    Args:
        name (str): its name.
        check_images (int): number of image files that must exist.

    Returns:
        list[dict]: Detectron2's standard format, in the order of the image ids. Images of a
        federated set also have ``neg_category_ids`` and ``not_exhaustive_category_ids``, as ids of
        the json.

    Raises:
        FileNotFoundError: the json or images are missing.
        ValueError: the json is invalid.

    Example:
        >>> load_lvis_form("lt_glyphs_tiny_val")[0]["image_id"]  # doctest: +SKIP
        1
    """
    meta = MetadataCatalog.get(name)
    content = _read_json(meta.json_file, name, vars(meta).get("_hint", ""))
    if isinstance(meta, _JsonMetadata):
        meta.take(content)
    index_of = meta.thing_dataset_id_to_contiguous_id
    by_image = _group_annotations(content, meta.json_file)
    without_mask = [a["id"] for a in content["annotations"] if mask_of(a) is None]
    some_have_masks = len(without_mask) < len(content["annotations"])
    if without_mask and some_have_masks:
        logger.warning(
            "%s: %d of %d objects have no mask, the first is annotation %s. A training with "
            "MODEL.MASK_ON leaves them out; without it their boxes are used.",
            *(name, len(without_mask), len(content["annotations"]), without_mask[0]),
        )
    if any("neg_category_ids" in image for image in content["images"]):
        _warn_of_crowds(content["annotations"], name)
    records = []
    for image in sorted(content["images"], key=lambda image: image["id"]):
        objects = [
            _convert(annotation, index_of, meta.json_file, some_have_masks)
            for annotation in by_image[image["id"]]
        ]
        records.append({**_image_record(image, meta), "annotations": objects})
    _check_images(records[:check_images], name, meta.image_root)
    logger.info("Loaded %d images of %s from %s", len(records), name, meta.json_file)
    return records


def _warn_of_crowds(annotations: Sequence[Mapping[str, Any]], name: str) -> None:
    """Warn of crowds, which training and evaluation of sets in LVIS format treat differently."""
    crowds = [annotation["id"] for annotation in annotations if annotation.get("iscrowd", 0)]
    if crowds:
        logger.warning(
            "%s: %d of %d objects are crowds, the first is annotation %s. Training skips them; "
            "LVIS's rule has no crowds and counts them as objects.",
            *(name, len(crowds), len(annotations), crowds[0]),
        )


def _group_annotations(content: Mapping[str, Any], source: str) -> dict[int, list[dict[str, Any]]]:
    """Annotations by image id; every image has an entry."""
    by_image: dict[int, list[dict[str, Any]]] = {image["id"]: [] for image in content["images"]}
    for annotation in content["annotations"]:
        if annotation["image_id"] not in by_image:
            raise UserError(
                f"{source}: annotation {annotation['id']} belongs to image "
                f"{annotation['image_id']}, which the json does not list."
            )
        by_image[annotation["image_id"]].append(annotation)
    return by_image


def _image_record(image: Mapping[str, Any], meta: Metadata) -> dict[str, Any]:
    """Detectron2's fields of an image, without annotations."""
    tail = path_of(image)
    if not tail:
        raise UserError(
            f"{meta.json_file}: image {image['id']} has neither 'file_name' nor 'coco_url'; "
            "expected one of them."
        )
    record = {
        "file_name": os.path.join(meta.image_root, tail),
        "height": image["height"],
        "width": image["width"],
        "image_id": image["id"],
    }
    if "neg_category_ids" in image:
        record["neg_category_ids"] = image["neg_category_ids"]
        record["not_exhaustive_category_ids"] = image.get("not_exhaustive_category_ids", [])
    return record


def _convert(
    annotation: Mapping[str, Any], index_of: Mapping[int, int], source: str, some_have_masks: bool
) -> dict[str, Any]:
    """Convert an annotation to Detectron2's format."""
    category_id = annotation["category_id"]
    if category_id not in index_of:
        raise UserError(
            f"{source}: annotation {annotation['id']} has category_id={category_id}, which is not "
            f"among the json's {len(index_of)} categories."
        )
    converted = {
        "bbox": annotation["bbox"],
        "bbox_mode": BoxMode.XYWH_ABS,
        "category_id": index_of[category_id],
    }
    # Only where the json has it: Detectron2 takes a missing flag for 0.
    if "iscrowd" in annotation:
        converted["iscrowd"] = annotation["iscrowd"]
    if annotation.get("keypoints"):
        # Detectron2 measures key points from pixel corners, COCO from pixel indices; each third
        # number is the visibility.
        converted["keypoints"] = [
            value if place % 3 == 2 else value + 0.5
            for place, value in enumerate(annotation["keypoints"])
        ]
    mask = mask_of(annotation)
    if isinstance(mask, dict):
        converted["segmentation"] = _compressed(mask)
    elif mask or some_have_masks:
        # Detectron2's mapper decides by an image's first object whether the image has masks. An
        # empty list is an empty mask: dropped with MODEL.MASK_ON, otherwise a plain box.
        converted["segmentation"] = mask or []
    return converted


def _compressed(rle: dict[str, Any]) -> dict[str, Any]:
    """Convert a run-length mask, given as numbers or a string, to Detectron2's form."""
    if not isinstance(rle["counts"], list):
        return rle
    from pycocotools import mask

    return mask.frPyObjects(rle, *rle["size"])


def _check_images(records: Sequence[Mapping[str, Any]], name: str, image_root: str) -> None:
    """Raise if image files are missing: a worker process would later say much less."""
    missing = [r["file_name"] for r in records if not PathManager.isfile(r["file_name"])]
    if missing:
        raise MissingFileError(
            f"{name}: {len(missing)} of the first {len(records)} images are missing, the first "
            f"one is {missing[0]}. Images are expected below {image_root}: see "
            "datasets/README.md, or set DETECTRON2_DATASETS. For work with only annotations, "
            "register the set with check_images=0."
        )
