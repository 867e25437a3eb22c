#!/usr/bin/env python
"""Time and peak memory of the report on drawn runs of LVIS's size.

Example:
    python benchmarks/report.py --images 1981 --output output/benchmark_report
    python benchmarks/report.py --images 19809 --output output/benchmark_report
"""

from __future__ import annotations

import argparse
import json
import logging
import resource
import time
from pathlib import Path

import numpy as np

from logn_d2.core import frequency_groups
from logn_d2.lvis.detections import Detections
from logn_d2.report import Settings, make_report, open_runs, write_report

SIDE = 640
OBJECTS = 12
"""In an image, as in LVIS's validation set."""


def parse_args() -> argparse.Namespace:
    """Command line arguments."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=1981)
    parser.add_argument("--detections", type=int, default=300, help="detections per image")
    parser.add_argument("--classes", type=int, default=1203)
    parser.add_argument("--runs", type=int, default=2)
    parser.add_argument("--resamples", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, required=True, help="folder for drawn runs and page")
    return parser.parse_args()


def draw_annotations(rng: np.random.Generator, images: int, classes: int) -> dict:
    """A data set in LVIS format whose classes have Zipf's frequencies."""
    weight = 1 / np.arange(1, classes + 1)
    category = rng.choice(classes, size=(images, OBJECTS), p=weight / weight.sum())
    box = draw_boxes(rng, images * OBJECTS).round(2)
    count = np.maximum((60_000 * weight).astype(int), 1)
    groups = frequency_groups(count)
    negative = rng.integers(classes, size=(images, 8))
    return {
        "images": [
            {
                "id": i + 1,
                "file_name": f"{i + 1}.jpg",
                "height": SIDE,
                "width": SIDE,
                "neg_category_ids": sorted({*negative[i].tolist()} - {*category[i].tolist()}),
                "not_exhaustive_category_ids": [],
            }
            for i in range(images)
        ],
        "categories": [
            {
                "id": k,
                "name": f"class_{k}",
                "frequency": str(groups[k]),
                "image_count": int(count[k]),
                "instance_count": int(2 * count[k]),
            }
            for k in range(classes)
        ],
        "annotations": [
            {
                "id": j + 1,
                "image_id": j // OBJECTS + 1,
                "category_id": int(category.flat[j]),
                "bbox": box[j].tolist(),
                "area": float(box[j, 2] * box[j, 3]),
            }
            for j in range(images * OBJECTS)
        ],
    }


def draw_boxes(rng: np.random.Generator, number: int) -> np.ndarray:
    """XYWH, (number, 4)."""
    size = rng.uniform(10, 250, (number, 2))
    return np.concatenate([rng.uniform(0, SIDE - size), size], axis=1)


def draw_detections(rng: np.random.Generator, content: dict, each: int) -> Detections:
    """Some near objects and of their class, the others anywhere."""
    number, classes = len(content["images"]), len(content["categories"])
    box = draw_boxes(rng, number * each).reshape(number, each, 4)
    category = rng.integers(classes, size=(number, each))
    near = min(OBJECTS, each)
    objects = np.array([a["bbox"] for a in content["annotations"]]).reshape(number, OBJECTS, 4)
    of_class = np.array([a["category_id"] for a in content["annotations"]])
    box[:, :near] = objects[:, :near] + rng.normal(0, 6, (number, near, 4))
    category[:, :near] = of_class.reshape(number, OBJECTS)[:, :near]
    score = rng.beta(0.5, 8, (number, each))
    score[:, :near] += rng.uniform(0, 0.5, (number, near))
    return Detections(
        image_id=np.repeat(np.arange(1, number + 1), each),
        category=category.reshape(-1),
        score=np.minimum(score, 1).reshape(-1),
        box=np.maximum(box, 0.5).reshape(-1, 4).astype(np.float32),
    )


def peak() -> float:
    """Largest memory of this process so far, in GiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def main() -> None:
    """Draw the runs, then measure."""
    args = parse_args()
    logging.basicConfig(level=logging.INFO, format="%(relativeCreated)8.0f ms  %(message)s")
    rng = np.random.default_rng(args.seed)
    args.output.mkdir(parents=True, exist_ok=True)
    content = draw_annotations(rng, args.images, args.classes)
    annotations = args.output / "annotations.json"
    annotations.write_text(json.dumps(content))
    folders = [args.output / f"run{number}" for number in range(args.runs)]
    for folder in folders:
        place = folder / "inference" / "drawn_val"
        place.mkdir(parents=True, exist_ok=True)
        draw_detections(rng, content, args.detections).save(place / "detections.npz")
    del content
    print(f"drawing: peak {peak():.2f} GiB")
    start = time.process_time()
    report = make_report(
        open_runs([str(folder) for folder in folders]),
        settings=Settings(resamples=args.resamples),
        annotations=annotations,
        pictures=0,
    )
    made = time.process_time()
    print(f"numbers: {made - start:.1f} s of CPU, peak {peak():.2f} GiB")
    write_report(args.output / "report.html", report)
    print(f"page: {time.process_time() - made:.1f} s of CPU, peak {peak():.2f} GiB")


if __name__ == "__main__":
    main()
