"""TIDE's errors the slow way, straight from paper and json: loops, dictionaries, bitmaps."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pycocotools.mask as mask_util

from ..lvis.lvis_reference import in_order

__all__ = ["SlowTide", "iou_of"]


class SlowTide:
    """Labels and AP of one run.

    Args:
        dataset (dict): LVIS-form (or COCO-form without crowds) json.
        results (list[dict]): in the result format.
        iou_type (str): "bbox" or "segm".
        foreground (float): overlap that finds an object.
        background (float): overlap up to which a detection is on background.
        max_dets (int): kept of each image.
    """

    def __init__(
        self,
        dataset: dict[str, Any],
        results: list[dict[str, Any]],
        iou_type: str = "bbox",
        foreground: float = 0.5,
        background: float = 0.1,
        max_dets: int = 300,
    ) -> None:
        self.iou_type, self.foreground, self.background = iou_type, foreground, background
        results = in_order(results)
        self.categories = sorted(category["id"] for category in dataset["categories"])
        self.found: dict[int, dict] = {}
        self.detections: list[dict[str, Any]] = []
        self.objects: list[dict[str, Any]] = []
        for image in sorted(dataset["images"], key=lambda image: image["id"]):
            mine = [a for a in dataset["annotations"] if a["image_id"] == image["id"]]
            mine = [a for a in mine if a["area"] > 0]
            mine.sort(key=lambda a: a["category_id"])  # stable: else the order of the file
            dets = [
                {**r, "index": i} for i, r in enumerate(results) if r["image_id"] == image["id"]
            ]
            dets.sort(key=lambda d: -d["score"])
            self._image(image, mine, dets[:max_dets])

    def _image(self, image: dict, objects: list[dict], detections: list[dict]) -> None:
        size = image["height"], image["width"]
        present = {a["category_id"] for a in objects}
        if "neg_category_ids" in image:
            verified = present | set(image["neg_category_ids"])
        else:
            verified = set(self.categories)
        detections = [
            d for d in detections if d["category_id"] in verified and self._area(d, size) > 0
        ]
        iou = {
            (d["index"], a["id"]): iou_of(d, a, self.iou_type, size)
            for d in detections
            for a in objects
        }
        for d in detections:
            d["kind"], d["target"] = self._match(d, objects, iou), None
        unexhausted = set(image.get("not_exhaustive_category_ids", ()))
        for d in detections:
            if d["kind"] != "TP" and d["category_id"] in unexhausted:
                d["kind"] = None
            elif d["kind"] != "TP":
                d["kind"], nearest = self._error(d, objects, iou)
                claimed = [other["target"] for other in detections if other is not d]
                if nearest and nearest["id"] not in self.found and nearest not in claimed:
                    d["target"] = nearest
        self.detections += [d for d in detections if d["kind"]]
        self.objects += objects

    def _area(self, detection: dict, size: tuple[int, int]) -> float:
        if self.iou_type == "bbox":
            return detection["bbox"][2] * detection["bbox"][3]
        return _bitmap(detection["segmentation"], size).sum()

    def _match(self, detection: dict, objects: list[dict], iou: dict) -> str:
        best = None
        for a in objects:
            overlap = iou[detection["index"], a["id"]]
            free = a["category_id"] == detection["category_id"] and a["id"] not in self.found
            if free and overlap >= max(self.foreground, best[0] if best else 0):
                best = (overlap, a["id"])
        if best:
            self.found[best[1]] = detection
        return "TP" if best else "FP"

    def _error(self, detection: dict, objects: list[dict], iou: dict) -> tuple[str, dict | None]:
        def nearest(same: bool) -> tuple[float, dict | None]:
            best: tuple[float, dict | None] = (0.0, None)
            for a in objects:
                overlap = iou[detection["index"], a["id"]]
                if (a["category_id"] == detection["category_id"]) == same and overlap > best[0]:
                    best = (overlap, a)
            return best

        own, other = nearest(True), nearest(False)
        if self.background <= own[0] <= self.foreground:
            return "Loc", own[1]
        if other[0] >= self.foreground:
            return "Cls", other[1]
        if own[0] >= self.foreground:
            return "Dupe", None
        return ("Bkg" if max(own[0], other[0]) <= self.background else "Both"), None

    def missed(self) -> list[dict]:
        """Objects that nothing finds, not even mended detections."""
        targets = [d["target"]["id"] for d in self.detections if d["target"]]
        return [a for a in self.objects if a["id"] not in self.found and a["id"] not in targets]

    def ap(self, without: str | None = None) -> list[float]:
        """AP of each class in [0, 1], NaN without objects."""
        ranking, objects = [], {c: 0 for c in self.categories}
        for a in self.objects:
            objects[a["category_id"]] += 1
        present = {c for c in self.categories if objects[c]}
        for d in self.detections:
            category, hit = d["category_id"], d["kind"] == "TP"
            if not hit and without == "FP":
                continue
            if d["kind"] == without:
                if not d["target"]:
                    continue
                category, hit = d["target"]["category_id"], True
            ranking.append((-d["score"], d["image_id"], d["index"], category, hit))
        gone = self.missed() if without == "Miss" else []
        if without == "FN":
            gone = [a for a in self.objects if a["id"] not in self.found]
        for a in gone:
            objects[a["category_id"]] -= 1
        hits = {c: [r[4] for r in sorted(ranking) if r[3] == c] for c in self.categories}
        return [_ap(hits[c], objects[c]) if c in present else math.nan for c in self.categories]


def _ap(hits: list[bool], number: int) -> float:
    """Mean over 101 recalls of the best precision at that recall or a higher one."""
    points = []
    for n in range(1, len(hits) + 1):
        true = sum(hits[:n])
        points.append((true / max(number, 1), true / n))
    best = [
        max([p for r, p in points if r >= at and p], default=0) for at in np.linspace(0, 1, 101)
    ]
    return sum(best) / 101


def iou_of(detection: dict, annotation: dict, iou_type: str, size: tuple[int, int]) -> float:
    """IoU of one detection and one object."""
    if iou_type == "segm":
        one = _bitmap(detection["segmentation"], size)
        other = _bitmap(annotation["segmentation"], size)
        return np.logical_and(one, other).sum() / max(np.logical_or(one, other).sum(), 1)
    (x, y, w, h), (u, v, s, t) = detection["bbox"], annotation["bbox"]
    width, height = min(x + w, u + s) - max(x, u), min(y + h, v + t) - max(y, v)
    overlap = max(width, 0) * max(height, 0)
    return overlap / (w * h + s * t - overlap) if overlap else 0.0


def _bitmap(segmentation: Any, size: tuple[int, int]) -> np.ndarray:
    """(height, width) bool of polygons or run lengths."""
    if isinstance(segmentation, list):
        segmentation = mask_util.merge(mask_util.frPyObjects(segmentation, *size))
    return mask_util.decode(segmentation).astype(bool)
