"""Error analysis of drawn detections: `error_analysis` against tidecv, the authors' program.

Both get the same annotations and detections, each in its own format; the time is from there to AP
and all gains. tidecv needs an ignored object for each unverified image and class to follow the
federated rule. These take most of its time and memory, so it runs on fewer images. The numbers
differ where tidecv does not follow LVIS (see `logn_d2.analysis.errors`);
`tests/analysis/test_errors.py` shows that they are equal elsewhere.

    python benchmarks/error_analysis.py                 # the comparison, and ours at LVIS size
    python benchmarks/error_analysis.py --images 0      # only the comparison
"""

from __future__ import annotations

import argparse
import contextlib
import io
import tempfile
import time
from pathlib import Path

import numpy as np
from common import machine, seconds, spread
from lvis_evaluation import draw

from logn_d2.analysis.calibration_quality import calibration_quality
from logn_d2.analysis.errors import error_analysis, error_table
from logn_d2.analysis.thresholds import ap_against_threshold
from logn_d2.lvis import Detections, LvisGroundTruth, evaluate_lvis

# tidecv's names for the cost of all false positives and all missed objects.
_NAMES = {"FalsePos": "FP", "FalseNeg": "FN"}


def load(folder: Path, args: argparse.Namespace, images: int) -> tuple[LvisGroundTruth, Detections]:
    """Draw this many images and read them back."""
    draw(folder, argparse.Namespace(**{**vars(args), "images": images}))
    truth = LvisGroundTruth.from_json(folder / "truth.json", masks=args.iou_type == "segm")
    return truth, Detections.load(folder / "detections.npz")


def run_tidecv(truth: LvisGroundTruth, detections: Detections, iou_type: str) -> dict[str, float]:
    """Everything that tidecv computes, in points of AP."""
    import tidecv

    objects, found = tidecv.Data("truth", max_dets=300), tidecv.Data("found", max_dets=300)
    shape = "box" if iou_type == "bbox" else "mask"
    boxes = truth.box.tolist() if shape == "box" else truth.masks.to_dicts()
    for image, category, box in zip(truth.image.tolist(), truth.category.tolist(), boxes):
        objects.add_ground_truth(int(truth.image_ids[image]), category, **{shape: box})
    keys = np.arange(truth.num_images * truth.num_classes)
    unknown = ~truth.is_listed(keys) | truth.is_not_exhaustive(keys)
    for key in keys[unknown].tolist():
        image, category = divmod(key, truth.num_classes)
        objects.add_ignore_region(int(truth.image_ids[image]), category)
    boxes = detections.box.tolist() if shape == "box" else detections.masks.to_dicts()
    columns = (detections.image_id, detections.category, detections.score)
    for *entry, box in zip(*(column.tolist() for column in columns), boxes, strict=True):
        found.add_detection(*entry, **{shape: box})
    tide = tidecv.TIDE()
    mode = tidecv.TIDE.BOX if shape == "box" else tidecv.TIDE.MASK
    with contextlib.redirect_stdout(io.StringIO()):
        run = tide.evaluate(objects, found, mode=mode)
        errors = tide.get_all_errors()
    gains = {**errors["main"]["found"], **errors["special"]["found"]}
    return {"AP": run.ap, **{_NAMES.get(name, name): gain for name, gain in gains.items()}}


def compare(args: argparse.Namespace) -> None:
    """Both sides in turn, on few images."""
    with tempfile.TemporaryDirectory() as folder:
        truth, detections = load(Path(folder), args, args.compared)
    ratios = []
    for _ in range(args.rounds):
        arguments = (truth, detections, args.iou_type)
        theirs = seconds(run_tidecv, arguments, clock=time.process_time)
        ours = seconds(
            lambda: error_analysis(truth, detections, iou_type=args.iou_type),
            clock=time.process_time,
        )
        ratios.append(theirs / ours)
    print(f"{args.compared} images: ours {ours:.2f} s, tidecv {theirs:.2f} s")
    print(f"tidecv takes {spread(ratios, 1)} the time.\n")
    row = error_analysis(truth, detections, iou_type=args.iou_type).as_dict()["all"]
    names = ["AP", *row["gain"]]
    print("| | " + " | ".join(names) + " |\n|:--|" + "--:|" * len(names))
    found = {"ours": {"AP": row["AP"], **row["gain"]}, "tidecv": run_tidecv(*arguments)}
    for side, values in found.items():
        print(f"| {side} | " + " | ".join(f"{values[name]:.2f}" for name in names) + " |")
    ap50 = 100 * evaluate_lvis(truth, detections, args.iou_type).metrics["AP50"]
    print(f"AP50 of `evaluate_lvis`: {ap50:.2f}\n")


def measure(args: argparse.Namespace) -> None:
    """Ours alone, on many images."""
    with tempfile.TemporaryDirectory() as folder:
        truth, detections = load(Path(folder), args, args.images)
    options = {"iou_type": args.iou_type}
    levels = np.linspace(0, 1, 20, endpoint=False)
    parts = {
        "evaluate_lvis": lambda: evaluate_lvis(truth, detections, args.iou_type).metrics,
        "error_analysis": lambda: error_analysis(truth, detections, **options),
        "calibration_quality": lambda: calibration_quality(truth, detections, **options),
        "ap_against_threshold, 20": lambda: ap_against_threshold(
            truth, detections, levels, **options
        ),
    }
    print(f"{args.images} images, processor time\n\n| | seconds |\n|:--|--:|")
    for name, part in parts.items():
        print(f"| {name} | {seconds(part, clock=time.process_time):.2f} |", flush=True)
    print("\n" + error_table({"": error_analysis(truth, detections, **options)}))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=5000, help="images for ours alone, or 0")
    parser.add_argument("--compared", type=int, default=50, help="images for both, or 0")
    parser.add_argument("--detections", type=int, default=300, help="detections per image")
    parser.add_argument("--classes", type=int, default=1203)
    parser.add_argument("--iou-type", default="bbox", choices=["bbox", "segm"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    print(
        f"{args.detections} detections of an image, {args.classes} classes, {args.iou_type}; "
        f"{machine()}\n",
        flush=True,
    )
    if args.compared:
        compare(args)
    if args.images:
        measure(args)


if __name__ == "__main__":
    main()
