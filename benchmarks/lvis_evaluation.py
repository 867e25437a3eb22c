"""LVIS AP of drawn detections: `evaluate_lvis` against lvis-api itself, and against hotcoco.

Each side runs in a separate process, in turn; results are compared before the ratios are printed.
Time runs from the annotations' json file and the detections in memory, in the side's own format, to
all numbers. Memory is the process's peak beyond its imports, including the detections: arrays on
one side, a list of dictionaries on the other.

    python benchmarks/lvis_evaluation.py                 # LVIS size; the reference takes minutes
    python benchmarks/lvis_evaluation.py --images 500    # quick
    python benchmarks/lvis_evaluation.py --sides logn_d2 hotcoco  # seconds; pip install hotcoco
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pycocotools.mask as mask_util
from common import machine, spread

from logn_d2.lvis import Detections, LvisGroundTruth, RleMasks, evaluate_lvis

HEIGHT, WIDTH = 480, 640
TOLERANCE = 1e-9
# An image has objects of few classes; some others are verified as absent.
CLASSES_PER_IMAGE, OBJECTS_PER_CLASS, ABSENT_CLASSES = 4, 3, 8
SHARE_NEAR_OBJECTS = 0.2


def draw(folder: Path, args: argparse.Namespace) -> None:
    """Write annotations and detections: some near objects, the others anywhere and of any class."""
    rng = np.random.default_rng(args.seed)
    # A long tail: class k is as frequent as 1 / (k + 10).
    frequency = 1 / np.arange(10, args.classes + 10)
    frequency /= frequency.sum()
    images, annotations, parts = [], [], []
    for image_id in range(1, args.images + 1):
        few = min(CLASSES_PER_IMAGE + ABSENT_CLASSES, args.classes - 1)
        chosen = rng.choice(args.classes, few, replace=False, p=frequency)
        present, absent = chosen[: max(few // 3, 1)], chosen[max(few // 3, 1) :]
        category = rng.choice(present, len(present) * OBJECTS_PER_CLASS)
        box = draw_boxes(rng, len(category))
        images.append(
            {
                "id": image_id,
                "height": HEIGHT,
                "width": WIDTH,
                "neg_category_ids": (absent + 1).tolist(),
                "not_exhaustive_category_ids": (
                    present[rng.random(len(present)) < 0.1] + 1
                ).tolist(),
            }
        )
        for k, (x, y, w, h) in zip(category.tolist(), box.tolist(), strict=True):
            annotation = {"id": len(annotations) + 1, "image_id": image_id, "category_id": k + 1}
            outline = [x, y, x + w, y, x + w, y + h, x, y + h]
            annotation |= {"bbox": [x, y, w, h], "area": w * h, "segmentation": [outline]}
            annotations.append(annotation)
        parts.append(draw_detections(rng, args, image_id, category, box, frequency))
    categories = [
        {"id": k + 1, "name": f"class {k}", "frequency": "fcr"[k * 3 // args.classes]}
        for k in range(args.classes)
    ]
    content = {"images": images, "categories": categories, "annotations": annotations}
    (folder / "truth.json").write_text(json.dumps(content))
    Detections.concatenate(parts).save(folder / "detections.npz")


def draw_boxes(rng: np.random.Generator, number: int) -> np.ndarray:
    """(number, 4) XYWH inside the image, of all sizes."""
    extent = np.exp(rng.uniform(np.log(12), np.log(300), (number, 2)))
    corner = rng.random((number, 2)) * (np.array([WIDTH, HEIGHT]) - extent)
    return np.concatenate([corner, extent], axis=1)


def draw_detections(
    rng: np.random.Generator,
    args: argparse.Namespace,
    image_id: int,
    category: np.ndarray,
    box: np.ndarray,
    frequency: np.ndarray,
) -> Detections:
    """One image's detections; those near an object have its class and a higher score."""
    near = int(args.detections * SHARE_NEAR_OBJECTS)
    source = rng.integers(len(category), size=near)
    moved = box[source] + rng.normal(0, 0.1, (near, 4)) * box[source][:, [2, 3, 2, 3]]
    stray = args.detections - near
    boxes = np.concatenate([moved, draw_boxes(rng, stray)])
    boxes[:, :2] = np.clip(boxes[:, :2], 0, [WIDTH - 2, HEIGHT - 2])
    boxes[:, 2:] = np.clip(boxes[:, 2:], 1, [WIDTH, HEIGHT] - boxes[:, :2])
    score = np.concatenate([rng.beta(2, 3, near), rng.beta(1, 6, stray)])
    classes = np.concatenate([category[source], rng.choice(len(frequency), stray, p=frequency)])
    masks = None
    if args.iou_type == "segm":
        outlines = [[x, y, x + w, y, x + w, y + h, x, y + h] for x, y, w, h in boxes.tolist()]
        rles = [mask_util.frPyObjects([outline], HEIGHT, WIDTH)[0] for outline in outlines]
        masks = RleMasks.from_dicts(rles)
    return Detections(
        np.full(len(boxes), image_id), classes, score, boxes.astype(np.float32), masks
    )


def run_ours(folder: Path, iou_type: str) -> Callable[[], tuple[np.ndarray, np.ndarray]]:
    """Return the timed part; precision and recall are (A, T, K)."""
    detections = Detections.load(folder / "detections.npz")

    def evaluate() -> tuple[np.ndarray, np.ndarray]:
        truth = LvisGroundTruth.from_json(folder / "truth.json", masks=iou_type == "segm")
        result = evaluate_lvis(truth, detections, iou_type)
        assert result.metrics
        return result.precision, result.recall

    return evaluate


def run_lvis_api(folder: Path, iou_type: str) -> Callable[[], tuple[np.ndarray, np.ndarray]]:
    """The same for lvis-api."""
    from lvis import LVIS, LVISEval, LVISResults

    if "float" not in vars(np):
        np.float = float  # lvis 0.5.3 (2020) uses this alias, which numpy has removed
    ids = [
        category["id"] for category in json.loads((folder / "truth.json").read_text())["categories"]
    ]
    results = Detections.load(folder / "detections.npz").to_json_list(ids)
    for result in results:
        # As Detectron2 does: masks by their own area.
        result.pop("bbox" if iou_type == "segm" else "segmentation", None)

    def evaluate() -> tuple[np.ndarray, np.ndarray]:
        truth = LVIS(str(folder / "truth.json"))
        evaluation = LVISEval(truth, LVISResults(truth, results, max_dets=300), iou_type)
        evaluation.run()
        precision = np.moveaxis(evaluation.eval["precision"].mean(axis=1), -1, 0)
        recall = np.moveaxis(evaluation.eval["recall"], -1, 0)
        return np.where(recall < 0, np.nan, precision), np.where(recall < 0, np.nan, recall)

    return evaluate


def run_hotcoco(folder: Path, iou_type: str) -> Callable[[], tuple[np.ndarray, np.ndarray]]:
    """The same for hotcoco, which takes detections as an array.

    hotcoco then uses the boxes' areas for the masks, so metrics by size are left out.
    """
    from hotcoco import COCO, COCOeval

    found = Detections.load(folder / "detections.npz")
    ids = np.array(
        [each["id"] for each in json.loads((folder / "truth.json").read_text())["categories"]]
    )
    table = np.column_stack([found.image_id, found.box, found.score, ids[found.category]])
    masks = None if found.masks is None else found.masks.to_dicts(np.arange(len(found)))

    def evaluate() -> tuple[np.ndarray, np.ndarray]:
        truth = COCO(str(folder / "truth.json"))
        given = {} if iou_type == "bbox" else {"segmentation": masks}
        evaluation = COCOeval(truth, truth.load_res(table, **given), iou_type, lvis_style=True)
        evaluation.run()
        # (T, R, K, A, M) and (T, K, A, M): of all areas and the one limit.
        precision = np.asarray(evaluation.eval["precision"])[..., 0]
        recall = np.asarray(evaluation.eval["recall"])[..., 0]
        precision = np.moveaxis(precision.mean(axis=1), -1, 0)
        recall = np.moveaxis(recall, -1, 0)
        areas = slice(None) if iou_type == "bbox" else slice(1)
        absent = recall < 0
        both = (np.where(absent, np.nan, each) for each in (precision, recall))
        precision, recall = (each[areas] for each in both)
        return precision, recall

    return evaluate


SIDES = {"logn_d2": run_ours, "lvis-api": run_lvis_api, "hotcoco": run_hotcoco}


def measure(side: str, folder: Path, iou_type: str) -> None:
    """In a separate process: write the numbers, print seconds and bytes."""
    before = _resident_bytes()
    evaluate = SIDES[side](folder, iou_type)
    gc.collect()
    start, used = time.perf_counter(), time.process_time()
    precision, recall = evaluate()
    seconds, cpu = time.perf_counter() - start, time.process_time() - used
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    np.savez(folder / f"{side}.npz", precision=precision, recall=recall)
    print(json.dumps({"seconds": seconds, "cpu": cpu, "bytes": peak - before, "peak": peak}))


def _resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def in_own_process(side: str, folder: Path, iou_type: str) -> dict[str, Any]:
    """Run `measure` and return what it printed."""
    command = [sys.executable, __file__, "--side", side, "--folder", str(folder)]
    done = subprocess.run(
        [*command, "--iou-type", iou_type], stdout=subprocess.PIPE, text=True, check=True
    )
    return json.loads(done.stdout.splitlines()[-1])


def check_equal(folder: Path, sides: list[str]) -> float:
    """Return the largest difference of any number of any class; stop if it is too large."""
    first, *others = (np.load(folder / f"{side}.npz") for side in sides)
    worst = 0.0
    for other in others:
        for name in ("precision", "recall"):
            theirs = other[name]
            ours = first[name][: len(theirs)]
            np.testing.assert_allclose(ours, theirs, rtol=0, atol=TOLERANCE)
            worst = max(worst, float(np.nanmax(np.abs(ours - theirs))))
    return worst


def compare(folder: Path, args: argparse.Namespace) -> None:
    """Run the sides in turn and print a table; ratios are of processor time, in the same round."""
    found: dict[str, list[dict[str, Any]]] = {side: [] for side in args.sides}
    for _ in range(args.rounds):
        for side in args.sides:
            found[side].append(in_own_process(side, folder, args.iou_type))
    worst = check_equal(folder, args.sides)
    print("| side | seconds | CPU seconds | memory, GB | whole process, GB |\n" + "|---" * 5 + "|")
    for side, rounds in found.items():
        seconds, cpu, extra, peak = (
            statistics.median(each[name] for each in rounds)
            for name in ("seconds", "cpu", "bytes", "peak")
        )
        print(f"| {side} | {seconds:.2f} | {cpu:.2f} | {extra / 1e9:.2f} | {peak / 1e9:.2f} |")
    first, *others = args.sides
    for side in others:
        pairs = list(zip(found[first], found[side], strict=True))
        times = spread([theirs["cpu"] / ours["cpu"] for ours, theirs in pairs], 2)
        memory = spread([theirs["bytes"] / ours["bytes"] for ours, theirs in pairs], 2)
        print(f"\n{side} takes {times} the processor time of {first}, and {memory} the memory.")
    print(f"Largest difference of precision or recall of any class: {worst:.1e}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--detections", type=int, default=300, help="detections per image")
    parser.add_argument("--classes", type=int, default=1203)
    parser.add_argument("--iou-type", default="bbox", choices=["bbox", "segm"])
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--sides", nargs="+", choices=list(SIDES), default=["logn_d2", "lvis-api"])
    parser.add_argument("--side", choices=list(SIDES), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side:
        measure(args.side, args.folder, args.iou_type)
        return
    print(
        f"{args.images} images x {args.detections} detections, {args.classes} classes, "
        f"{args.iou_type}; {machine()}\n",
        flush=True,
    )
    with tempfile.TemporaryDirectory() as folder:
        draw(Path(folder), args)
        compare(Path(folder), args)


if __name__ == "__main__":
    main()
