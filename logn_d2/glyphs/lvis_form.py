"""Annotations of drawn images in LVIS v1 format.

Category and image ids start at 1; classes are contiguous indices in [0, K).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .plan import ImagePlan
from .sizes import GlyphSize
from .vocabulary import category_of

if TYPE_CHECKING:  # importing it imports OpenCV
    from .drawing import DrawnObject


def image_part(plan: ImagePlan, file_name: str, objects: Sequence[DrawnObject]) -> dict[str, Any]:
    """The contribution of one image to the annotation file; its annotations have no ids yet."""
    annotations = [
        {
            "class": drawn.class_index,
            "bbox": drawn.bbox,
            "area": drawn.area,
            "segmentation": drawn.polygons,
        }
        for drawn in objects
        if drawn.annotated and drawn.polygons
    ]
    shown = {annotation["class"] for annotation in annotations}
    return {
        "index": plan.index,
        "file_name": file_name,
        "annotations": annotations,
        "negatives": plan.negatives,
        # LVIS lists here only classes with at least one annotation in the image.
        "not_exhaustive": [c for c in plan.not_exhaustive if c in shown],
    }


def lvis_json(
    images: list[dict[str, Any]],
    characters: Sequence[str],
    train_counts: np.ndarray,
    size: GlyphSize,
    split: str,
    settings: Mapping[str, Any],
) -> dict[str, Any]:
    """The annotation file of a split; as in LVIS, both splits contain the training counts."""
    categories = [
        {
            **category_of(character, index + 1, index // size.num_characters + 1),
            "image_count": int(train_counts[0, index]),
            "instance_count": int(train_counts[1, index]),
            "frequency": size.frequency_of(int(train_counts[0, index])),
        }
        for index, character in enumerate(characters)
    ]
    found = ((image, each) for image in images for each in image["annotations"])
    annotations = [
        {
            "id": number,
            "image_id": image["index"] + 1,
            "category_id": each["class"] + 1,
            **{key: each[key] for key in ("bbox", "area", "segmentation")},
        }
        for number, (image, each) in enumerate(found, start=1)
    ]
    return {
        "info": {"description": f"LT-Glyphs {size.name} {split}", **settings},
        "licenses": [],
        "categories": categories,
        "images": [_image_entry(image, size) for image in images],
        "annotations": annotations,
    }


def _image_entry(image: dict[str, Any], size: GlyphSize) -> dict[str, Any]:
    return {
        "id": image["index"] + 1,
        "file_name": image["file_name"],
        # In LVIS v1, the last two parts of this URL are the only path of an image.
        "coco_url": f"http://lt-glyphs.invalid/{image['file_name']}",
        "height": size.image_px,
        "width": size.image_px,
        "neg_category_ids": [c + 1 for c in image["negatives"]],
        "not_exhaustive_category_ids": [c + 1 for c in image["not_exhaustive"]],
    }
