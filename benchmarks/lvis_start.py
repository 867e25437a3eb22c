"""Time and memory of a training of LVIS's size before its first step.

The json is synthetic, with the numbers of LVIS v1: images, annotations with polygons, federated
lists and long-tailed image counts. No image file is needed. Each step uses the result of the
previous one; time is CPU time of this process, memory its peak beyond its imports.

    python benchmarks/lvis_start.py                    # 100,170 images; a json of about 1 GB
    python benchmarks/lvis_start.py --images 10000     # a tenth
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from common import machine
from detectron2.data import DatasetCatalog, DatasetFromList
from detectron2.data.samplers import RepeatFactorTrainingSampler
from tabulate import tabulate

from logn_d2.annotations import read_annotations
from logn_d2.data import class_counts, records_kept, register_lvis_form
from logn_d2.frequency import frequency_groups
from logn_d2.lvis import LvisGroundTruth

HEIGHT, WIDTH = 480, 640
# LVIS v1's training set: 1,270,141 annotations of 100,170 images in 1.1 GB, so long polygons.
OBJECTS_PER_IMAGE, CLASSES_PER_IMAGE, POINTS = 12.7, 3.6, 45
NAME = "lvis_stand_in"


def draw(path: Path, num_images: int, num_classes: int, seed: int) -> None:
    """Write the json image by image, which needs little memory."""
    rng = np.random.default_rng(seed)
    # The number of images of class k is proportional to 1 / (k + 10), and at least 1.
    chance = 1 / np.arange(10, num_classes + 10)
    chance /= chance.sum()
    images, seen = [], np.zeros(num_classes, dtype=np.int64)
    with path.open("w") as file:
        file.write('{"annotations": [')
        count = 0
        for image in range(num_images):
            size = min(1 + rng.poisson(CLASSES_PER_IMAGE - 1), num_classes)
            present = np.unique(np.append(rng.choice(num_classes, size, p=chance),
                                          image % num_classes))  # fmt: skip
            more = rng.poisson(max(OBJECTS_PER_IMAGE - size, 0))
            classes = np.append(present, rng.choice(present, more))
            seen[present] += 1
            for category in classes:
                annotation = _annotation(rng, count + 1, image + 1, int(category) + 1)
                file.write((", " if count else "") + json.dumps(annotation))
                count += 1
            images.append(_image(image, present, rng, num_classes))
        file.write(f'], "images": {json.dumps(images)}, ')
        file.write(f'"categories": {json.dumps(_categories(seen))}}}')


def _annotation(rng: np.random.Generator, index: int, image: int, category: int) -> dict[str, Any]:
    x, y = rng.uniform(0, (WIDTH - 80, HEIGHT - 80)).round(2)
    angle = np.linspace(0, 2 * np.pi, POINTS, endpoint=False)
    outline = np.stack([x + 40 + 40 * np.cos(angle), y + 40 + 40 * np.sin(angle)], axis=1)
    return {
        "id": index,
        "image_id": image,
        "category_id": category,
        "bbox": [x, y, 80.0, 80.0],
        "area": 4944.27,
        "segmentation": [outline.round(2).flatten().tolist()],
    }


def _image(
    index: int, present: np.ndarray, rng: np.random.Generator, num_classes: int
) -> dict[str, Any]:
    absent = np.setdiff1d(rng.choice(num_classes, 8), present)
    return {
        "id": index + 1,
        "height": HEIGHT,
        "width": WIDTH,
        "coco_url": f"http://images.invalid/train2017/{index + 1:012}.jpg",
        "neg_category_ids": (absent + 1).tolist(),
        "not_exhaustive_category_ids": (present[:1] + 1).tolist(),
    }


def _categories(image_count: np.ndarray) -> list[dict[str, Any]]:
    groups = frequency_groups(image_count)
    return [
        {"id": k + 1, "name": f"class {k + 1}", "frequency": str(group), "image_count": int(count)}
        for k, (group, count) in enumerate(zip(groups, image_count, strict=True))
    ]


def measure(what: str, work: Callable[[], Any], rows: list[list[Any]]) -> Any:
    """Add a row: CPU seconds, and the peak of memory so far."""
    start = time.process_time()
    result = work()
    rows.append([what, time.process_time() - start, _peak()])
    print(f"{what}: {rows[-1][1]:.1f} s", flush=True)
    return result


def _peak() -> float:
    """Of this process, in GB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def start(path: Path) -> list[list[Any]]:
    """The steps of a start, in their order."""
    rows: list[list[Any]] = []
    imports = _peak()
    register_lvis_form(NAME, path, path.parent, check_images=0)
    with records_kept([NAME]):
        _start_kept(rows)
    measure("parse and check alone", lambda: read_annotations(path), rows)
    measure("ground truth of the evaluation", lambda: LvisGroundTruth.from_json(path), rows)
    return [[what, cpu, peak - imports] for what, cpu, peak in rows]


def _start_kept(rows: list[list[Any]]) -> None:
    """The steps of a training after one loading; its records are freed afterwards."""
    records = measure(
        "load: parse, check, Detectron2's form", lambda: DatasetCatalog.get(NAME), rows
    )
    measure("load again, kept", lambda: DatasetCatalog.get(NAME), rows)
    measure("class counts, kept", lambda: class_counts(NAME), rows)
    factors = RepeatFactorTrainingSampler.repeat_factors_from_category_frequency
    measure("repeat factors", lambda: factors(records, 0.001), rows)
    measure("serialise for the workers", lambda: DatasetFromList(records, copy=False), rows)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=100_170)
    parser.add_argument("--classes", type=int, default=1203)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "train.json")
        draw(path, args.images, args.classes, args.seed)
        size = path.stat().st_size / 1e9
        rows = start(path)
    print(f"\n{args.images:,} images, {args.classes:,} classes, json of {size:.2f} GB; {machine()}")
    headers = ["step", "CPU s", "peak so far, GB"]
    print(tabulate(rows, headers, tablefmt="github", floatfmt=(".2f", ".2f", ".2f")))


if __name__ == "__main__":
    main()
