#!/usr/bin/env python
"""Damage annotation files field by field, and report the outcome of both readers.

A field may be missing, of another type, not a number, huge or empty, or its entry may be repeated.
A reader must find the content of the intact file, log what it leaves out, or raise a ValueError
that names the file. Any other outcome is printed with its seed, and the exit status is 1.

Example:
    python benchmarks/fuzz_annotations.py --count 2000 --seed 0
"""

from __future__ import annotations

import argparse
import collections
import copy
import json
import logging
import random
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog

from logn_d2.data import load_lvis_form, register_lvis_form
from logn_d2.lvis import LvisGroundTruth

NAME = "fuzzed"
VALUES = (
    *(None, True, "", "x", "7", [], ["x"], {}, {"x": 1}, [[]], [None]),
    *(float("nan"), float("inf"), -1, -1e300, 1e300, 2**70, 10**400),
)
# Another plausible value, which no reader can recognise as damage.
VALID = {
    *(("annotations", "id"), ("images", "file_name"), ("categories", "name")),
    *(("categories", "frequency"), ("categories", "id"), ("annotations", "")),
    *(("images", "neg_category_ids"), ("images", "not_exhaustive_category_ids")),
    *(("annotations", "iscrowd"), ("annotations", "bbox")),
}


def example(federated: bool) -> dict[str, Any]:
    """Three images, three classes, polygons and run lengths; in LVIS or COCO format."""
    images: list[dict[str, Any]] = [
        {"id": i, "file_name": f"{i}.png", "height": 40, "width": 60} for i in (1, 2, 3)
    ]
    categories: list[dict[str, Any]] = [
        {"id": i, "name": name, "synonyms": [name], "image_count": 9 * i, "instance_count": 20 * i}
        for i, name in enumerate(("axolotl", "bee", "cat"), start=1)
    ]
    if federated:
        for image in images:
            image.update(neg_category_ids=[3], not_exhaustive_category_ids=[1])
        for category, letter in zip(categories, "rcf", strict=True):
            category["frequency"] = letter
    polygon = [2.0, 2.0, 22.0, 2.0, 22.0, 12.0, 2.0, 12.0]
    masks: list[Any] = [[polygon], {"size": [40, 60], "counts": [100, 50, 2250]}]
    annotations = [
        {
            "id": 10 * image["id"] + category,
            "image_id": image["id"],
            "category_id": category,
            "bbox": [2.0, 2.0, 20.0, 10.0],
            "area": 200.0,
            "iscrowd": 0,
            "segmentation": copy.deepcopy(masks[category - 1]),
        }
        for image in images
        for category in (1, 2)
    ]
    return {"images": images, "categories": categories, "annotations": annotations}


def damage(content: dict[str, Any], draw: random.Random) -> tuple[str, str]:
    """Change one thing; return the list and the field."""
    section = draw.choice(sorted(content))
    if draw.random() < 0.03:
        content[section] = draw.choice(VALUES)
        return section, ""
    entry = draw.choice(content[section])
    if draw.random() < 0.1:
        content[section].append(copy.deepcopy(entry))
        return section, "twice"
    field = draw.choice(sorted(entry))
    if draw.random() < 0.25:
        del entry[field]
    elif isinstance(entry[field], list) and entry[field] and draw.random() < 0.5:
        place = draw.randrange(len(entry[field]))
        entry[field][place] = draw.choice(VALUES)
    else:
        entry[field] = copy.deepcopy(draw.choice(VALUES))
    return section, field


def evaluation(path: Path) -> dict[str, Any]:
    """All content that an evaluation reads from a file."""
    truth = LvisGroundTruth.from_json(path)
    names = ("image_ids", "image_size", "category_ids", "image", "category", "box", "area")
    found = {name: getattr(truth, name).tolist() for name in (*names, "ignore", "crowd")}
    for name in ("groups", "listed", "not_exhaustive", "without_mask"):
        value = getattr(truth, name)
        found[name] = None if value is None else value.tolist()
    found["masks"] = None if truth.masks is None else truth.masks.areas.tolist()
    return {**found, "class_names": truth.class_names}


def training(path: Path) -> dict[str, Any]:
    """All content that a training reads from a file."""
    register_lvis_form(NAME, path, path.parent, check_images=0, replace=True)
    records = load_lvis_form(NAME, check_images=0)
    for record in records:
        for each in record["annotations"]:
            each["iscrowd"] = int(each.get("iscrowd", 0))  # Detectron2's value for none
    return {"records": json.loads(json.dumps(records, default=str))}


class Warnings(logging.Handler):
    """Counts logged warnings."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.count = 0

    def emit(self, record: logging.LogRecord) -> None:
        self.count += 1


def outcome(reader: Any, seed: int, folder: Path) -> str:
    """Outcome of reading a damaged file: "same", "named", "refused", or the mistake."""
    draw = random.Random(seed)
    content = example(federated=draw.random() < 0.5)
    path = folder / f"fuzzed_{seed}.json"
    path.write_text(json.dumps(content))
    expected = reader(path)
    section, field = damage(content, draw)
    path.write_text(json.dumps(content))
    handler = Warnings()
    logging.getLogger("logn_d2").addHandler(handler)
    try:
        found = reader(path)
    except ValueError as error:
        return "refused" if path.name in str(error) else f"refused without the file: {error}"
    except Exception as error:
        return f"{type(error).__name__} ({section}, {field}): {error}"
    finally:
        logging.getLogger("logn_d2").removeHandler(handler)
        path.unlink()
    if repr(found) == repr(expected):
        return "same"
    if handler.count:
        return "named"
    if (section, field) in VALID:
        return "another valid value"
    return f"changed silently: {section}, {field}"


READERS = {"evaluation": evaluation, "training": training}


def main() -> int:
    """Print the outcomes; the exit status is 1 if one is neither right nor named."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    fine = {"same", "named", "refused", "another valid value"}
    begun, bad = time.perf_counter(), False
    logging.getLogger("logn_d2").propagate = False
    with tempfile.TemporaryDirectory() as name:
        for who, reader in READERS.items():
            found: collections.Counter[str] = collections.Counter()
            for seed in range(args.seed, args.seed + args.count):
                found[outcome(reader, seed, Path(name))] += 1
            for result in sorted(set(found) - fine):
                print(f"{who}: {found[result]} x {result}")
            bad = bad or bool(set(found) - fine)
            print(f"{who}: { ({key: found[key] for key in sorted(fine)}) }")
    if NAME in DatasetCatalog.list():
        DatasetCatalog.remove(NAME)
        MetadataCatalog.pop(NAME)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"{time.perf_counter() - begun:.0f} s, at most {memory:.2f} GiB")
    return int(bad)


if __name__ == "__main__":
    sys.exit(main())
