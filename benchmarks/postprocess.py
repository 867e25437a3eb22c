"""Box post-processing of one image: ours against Detectron2's `fast_rcnn_inference`.

Both sides run in turn in one process, after a check that their results are equal, bit for bit.

    python benchmarks/postprocess.py --rounds 5
"""

from __future__ import annotations

import argparse
import statistics

import torch
from common import machine, seconds, spread
from detectron2.modeling.roi_heads.fast_rcnn import fast_rcnn_inference
from torch import Tensor

from logn_d2.modeling import fast_rcnn_inference_exact

IMAGE = (800, 1333)
OBJECTS = 20
# (score threshold, detections kept): LVIS, the released LogN evaluation, COCO.
SETTINGS = [(1e-4, 300), (0.0, 300), (0.05, 100)]


def detector_output(rois: int, classes: int, agnostic: bool, device: str) -> tuple[Tensor, Tensor]:
    """Boxes and scores like a detector's: RoIs crowd around objects, a few classes stand out.

    Returns:
        tuple[Tensor, Tensor]: (rois, 4 or classes * 4) and (rois, classes + 1).
    """
    generator = torch.Generator().manual_seed(0)
    objects = torch.rand(OBJECTS, 4, generator=generator) * torch.tensor([900.0, 500, 300, 250])
    objects[:, 2:] += 30
    owner = torch.randint(OBJECTS, (rois,), generator=generator)
    corner, extent = objects[owner].split(2, dim=1)
    shift = torch.randn(rois, 4, generator=generator) * 0.15 * extent.repeat(1, 2)
    proposals = torch.cat([corner, corner + extent], dim=1) + shift
    columns = 1 if agnostic else classes
    noise = torch.randn(rois, columns, 4, generator=generator) * 3
    boxes = (proposals[:, None] + noise).flatten(1)
    logits = torch.randn(rois, classes + 1, generator=generator) * 1.2
    likely = torch.randn(OBJECTS, classes + 1, generator=generator) * 1.5
    logits += likely[owner]
    logits[:, -1] += 8
    return boxes.to(device), logits.softmax(dim=1).to(device)


def assert_equal(left: tuple, right: tuple) -> None:
    """Fail unless both results are equal, bit for bit and in order."""
    (one,), (one_rows,) = left
    (other,), (other_rows,) = right
    assert torch.equal(one.pred_boxes.tensor, other.pred_boxes.tensor)
    assert torch.equal(one.scores, other.scores)
    assert torch.equal(one.pred_classes, other.pred_classes)
    assert torch.equal(one_rows, other_rows)


def compare(arguments: tuple, rounds: int, device: str) -> tuple[float, float, list[float]]:
    """Median seconds of Detectron2 and of ours, and each round's ratio."""
    sides = (fast_rcnn_inference, fast_rcnn_inference_exact)
    assert_equal(*(side(*arguments) for side in sides))
    first = seconds(sides[0], arguments, device)
    # Short calls scatter more.
    rounds *= max(1, min(20, int(1 / first)))
    times = [[seconds(side, arguments, device) for side in sides] for _ in range(rounds)]
    theirs, ours = zip(*times)
    ratios = [their / our for their, our in times]
    return statistics.median(theirs), statistics.median(ours), ratios


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rois", type=int, default=1000)
    parser.add_argument("--classes", type=int, default=1203)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print(f"{args.rois} RoIs x {args.classes} classes; {machine(args.device)}\n")
    print("| boxes | threshold | kept | candidates | Detectron2 ms | ours ms | ratio (range) |")
    print("|---|---|---|---|---|---|---|")
    for agnostic in (False, True):
        boxes, scores = detector_output(args.rois, args.classes, agnostic, args.device)
        for threshold, kept in SETTINGS:
            arguments = ([boxes], [scores], [IMAGE], threshold, 0.5, kept)
            theirs, ours, ratios = compare(arguments, args.rounds, args.device)
            candidates = int((scores[:, :-1] > threshold).count_nonzero())
            print(
                f"| {'agnostic' if agnostic else 'of each class'} | {threshold:g} | {kept} "
                f"| {candidates:,} | {theirs * 1e3:.1f} | {ours * 1e3:.1f} "
                f"| {spread(ratios, 1)} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
