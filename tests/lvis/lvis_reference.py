"""Random data sets in LVIS format, and lvis-api's results for them.

Shapes: N images, K classes.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pycocotools.mask as mask_util

__all__ = [
    "in_order",
    "one_image",
    "random_detections",
    "random_lvis",
    "run_lvis_api",
    "write_json",
]

_AREA_SHARES = [0.55, 0.3, 0.05, 0.05, 0.05]


def one_image(**changes: Any) -> dict[str, Any]:
    """One image with one object of class 1; class 2 is absent, nothing is known of class 3.

    Args:
        changes (Any): fields of the image.

    Returns:
        dict: what the json file holds.
    """
    image = {"id": 7, "height": 90, "width": 90, "neg_category_ids": [2]}
    annotation = {"id": 1, "image_id": 7, "category_id": 1, "bbox": [0, 0, 40, 40], "area": 1600}
    return {
        "images": [{**image, "not_exhaustive_category_ids": [], **changes}],
        "categories": [{"id": i, "name": f"class {i}", "frequency": "r"} for i in (1, 2, 3)],
        "annotations": [annotation],
    }


def random_lvis(
    rng: np.random.Generator,
    *,
    num_images: int = 12,
    num_classes: int = 7,
    max_objects: int = 6,
    side: int = 160,
    with_masks: bool = True,
) -> dict[str, Any]:
    """Draw the annotations of an LVIS-form data set with all the awkward cases.

    Some images have no annotation, the last class never has one, some present classes are not
    exhaustively annotated, ids are neither consecutive nor ordered, and objects come in all three
    area ranges (`side` beyond 96 pixels needed for large ones) and in crowds of one class.

    Args:
        rng (Generator): source of randomness.
        num_images (int): N.
        num_classes (int): K, at least 2.
        max_objects (int): most objects of an image.
        side (int): least height and width in pixels.
        with_masks (bool): whether annotations have polygons.

    Returns:
        dict: what the json file holds.
    """
    category_ids = np.sort(rng.choice(np.arange(1, 4 * num_classes), num_classes, replace=False))
    images, annotations = [], []
    annotation_ids = iter((1 + rng.permutation(num_images * max_objects)).tolist())
    for image_id in (1 + 9 * rng.permutation(num_images)).tolist():
        height, width = (side + rng.integers(0, 60, 2)).tolist()
        number = int(rng.integers(0, max_objects + 1)) * int(rng.random() > 0.2)
        # Two classes for all objects of an image: several objects of one class are the rule.
        present = rng.choice(category_ids[:-1], min(2, num_classes - 1), replace=False)
        mine = [
            _random_annotation(rng, next(annotation_ids), image_id, present, (height, width))
            for _ in range(number)
        ]
        found = sorted({annotation["category_id"] for annotation in mine})
        absent = [int(c) for c in category_ids if c not in found and rng.random() < 0.4]
        images.append(
            {
                "id": image_id,
                "height": height,
                "width": width,
                "file_name": f"{image_id:012d}.jpg",
                "neg_category_ids": absent,
                "not_exhaustive_category_ids": [c for c in found if rng.random() < 0.3],
            }
        )
        annotations += mine
    if not with_masks:
        for annotation in annotations:
            del annotation["segmentation"]
    return {
        "images": images,
        "categories": _categories(category_ids),
        "annotations": [annotations[i] for i in rng.permutation(len(annotations))],
    }


def random_detections(
    rng: np.random.Generator,
    dataset: dict[str, Any],
    *,
    per_image: int = 30,
    score_digits: int = 1,
    with_masks: bool = True,
) -> list[dict[str, Any]]:
    """Draw results for a data set: moved copies of its objects and strays, in the result format.

    Args:
        rng (Generator): source of randomness.
        dataset (dict): from `random_lvis`.
        per_image (int): most results of an image; some images have none.
        score_digits (int): digits of the scores; few digits make many ties.
        with_masks (bool): whether results have run lengths.

    Returns:
        list[dict]: in random order.
    """
    category_ids = [category["id"] for category in dataset["categories"]]
    results = []
    for image in dataset["images"]:
        mine = [a for a in dataset["annotations"] if a["image_id"] == image["id"]]
        for _ in range(int(rng.integers(0, per_image + 1)) * int(rng.random() > 0.1)):
            if mine and rng.random() < 0.75:
                source = mine[int(rng.integers(len(mine)))]
                # A multiple of 1/4 of a pixel, often 0: equal overlaps occur as well.
                moved = np.round(rng.normal(0, 0.12, 4) * source["bbox"][2] * 4) / 4
                box = np.array(source["bbox"]) + moved * (rng.random() < 0.8)
                category_id = source["category_id"]
            else:
                box = _random_box(rng, image["height"], image["width"])
                category_id = int(rng.choice(category_ids))
            if rng.random() < 0.15:
                category_id = int(rng.choice(category_ids))
            box[2:] = np.maximum(box[2:], rng.choice([0.0, 1.0]))
            result = {
                "image_id": image["id"],
                "category_id": category_id,
                "bbox": box.tolist(),
                "score": round(float(rng.random()), score_digits),
            }
            if with_masks:
                result["segmentation"] = _rle(box, image["height"], image["width"])
            results.append(result)
    return [results[i] for i in rng.permutation(len(results))]


def in_order(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Sort results so that going by the given order at equal scores is our rule for them."""

    def key(result: dict[str, Any]) -> tuple:
        rank = (result["image_id"], result["category_id"], -result["score"], result.get("bbox"))
        return (*rank, result.get("segmentation", {}).get("counts", ""))

    return sorted(results, key=key)


def run_lvis_api(
    json_file: str | Path, results: list[dict[str, Any]], iou_type: str, max_dets: int = 300
) -> dict[str, Any]:
    """Evaluate with lvis-api itself, masks by their own area as Detectron2 does.

    Args:
        json_file (str or Path): the annotations.
        results (list[dict]): in the result format and any order; not changed.
        iou_type (str): "bbox" or "segm".
        max_dets (int): results kept of each image.

    Returns:
        dict: "metrics", lvis-api's own numbers (AR without @300); "precision" (T, 101, K, A) and
        "recall" (T, K, A), -1 where there is no object.
    """
    from lvis import LVIS, LVISEval, LVISResults

    results = copy.deepcopy(in_order(results))
    for result in results:
        result.pop("bbox" if iou_type == "segm" else "segmentation", None)
    alias = not hasattr(np, "float")
    if alias:
        np.float = float  # lvis 0.5.3 is of 2020
    try:
        truth = LVIS(str(json_file))
        evaluation = LVISEval(truth, LVISResults(truth, results, max_dets=max_dets), iou_type)
        evaluation.run()
    finally:
        if alias:
            del np.float
    metrics = {name.split("@")[0]: float(value) for name, value in evaluation.results.items()}
    return {"metrics": metrics, **{k: evaluation.eval[k] for k in ("precision", "recall")}}


def write_json(path: Path, content: Any) -> Path:
    """Write a json file and return its path."""
    path.write_text(json.dumps(content))
    return path


def _categories(category_ids: np.ndarray) -> list[dict[str, Any]]:
    return [
        {
            "id": int(c),
            "name": f"class {c}",
            "frequency": "rcf"[k % 3],
            "image_count": 10 ** (k % 3),
        }
        for k, c in enumerate(category_ids)
    ]


def _random_annotation(
    rng: np.random.Generator,
    annotation_id: int,
    image_id: int,
    category_ids: np.ndarray,
    size: tuple[int, int],
) -> dict[str, Any]:
    box = _random_box(rng, *size)
    x, y, w, h = box.tolist()
    return {
        "id": annotation_id,
        "image_id": image_id,
        "category_id": int(rng.choice(category_ids)),
        "bbox": [x, y, w, h],
        # A little less than the box, as for masks; an end of an area range itself; or nothing.
        "area": float(rng.choice([0.8 * w * h, w * h, 32.0**2, 96.0**2, 0], p=_AREA_SHARES)),
        "segmentation": [[x, y, x + w, y, x + w, y + h, x + 0.2 * w, y + h]],
    }


def _random_box(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """(4,) XYWH inside the image, of about equally many sizes in each area range."""
    extent = np.minimum(np.exp(rng.uniform(np.log(8), np.log(150), 2)), [width - 2, height - 2])
    corner = rng.uniform(0, np.array([width, height]) - extent)
    return np.round(np.concatenate([corner, extent]) * 4) / 4


def _rle(box: np.ndarray, height: int, width: int) -> dict[str, Any]:
    """Run lengths of a box, cut to the image."""
    bitmap = np.zeros((height, width), dtype=np.uint8, order="F")
    x1, y1 = np.clip(box[:2], 0, None).round().astype(int)
    x2, y2 = np.clip(box[:2] + box[2:], 0, None).round().astype(int)
    bitmap[y1:y2, x1:x2] = 1
    rle = mask_util.encode(bitmap)
    return {"size": rle["size"], "counts": rle["counts"].decode("ascii")}
