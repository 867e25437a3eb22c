#!/usr/bin/env python
"""How often do bootstrap intervals contain the true AP?

Many validation sets of the same size are drawn from one population, with the detections of two
models. The true figure is the mean over all sets. A 95 % interval should contain it in 95 % of the
sets. The table also shows how often it contains the AP of the next set, which varies as much again.

Example:
    python benchmarks/interval_coverage.py --sets 200 --resamples 300
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
from common import machine

from logn_d2.analysis import BootstrapResult, bootstrap_difference, bootstrap_lvis
from logn_d2.lvis import Detections, LvisGroundTruth, match_lvis

NUM_CLASSES = 30
# Images per class in a set: as for LVIS's frequent classes, and as for its rare ones.
IMAGES_PER_CLASS = {"many (30)": 30, "few (3)": 3}
BOX = [0.0, 0.0, 40.0, 40.0]
MISSED = [100.0, 100.0, 40.0, 40.0]


def draw(rng: np.random.Generator, images_per_class: int) -> tuple[LvisGroundTruth, list]:
    """A validation set: one object an image, all classes about equally often, and two models.

    The classes differ in difficulty in the same way in all sets. The second model's scores of right
    detections are a little higher; everything else is common to both.
    """
    num_images = NUM_CLASSES * images_per_class
    category = rng.integers(NUM_CLASSES, size=num_images)
    truth = LvisGroundTruth.from_dict(
        {
            "images": [{"id": i} for i in range(num_images)],
            "categories": [{"id": c + 1, "name": str(c)} for c in range(NUM_CLASSES)],
            "annotations": [
                {"id": i + 1, "image_id": i, "category_id": int(c) + 1, "bbox": BOX}
                for i, c in enumerate(category)
            ],
        }
    )
    found = rng.random(num_images) < 0.3 + 0.5 * category / NUM_CLASSES
    right = rng.normal(1.0, 1.0, num_images)
    wrong_category = rng.integers(NUM_CLASSES, size=3 * num_images)
    wrong_image = rng.integers(num_images, size=3 * num_images)
    wrong = rng.normal(0.0, 1.0, 3 * num_images)
    models = []
    for gain in (0.0, 0.3):
        score = np.concatenate([(right + gain)[found], wrong])
        models.append(
            Detections(
                np.concatenate([np.arange(num_images)[found], wrong_image]),
                np.concatenate([category[found], wrong_category]),
                1 / (1 + np.exp(-score)),
                [BOX] * int(found.sum()) + [MISSED] * len(wrong),
            )
        )
    return truth, models


def results(args: argparse.Namespace, images: int) -> Iterator[tuple[BootstrapResult, ...]]:
    """For each set: the first model's figures, and the second's differences from them."""
    rng = np.random.default_rng(args.seed)
    for number in range(args.sets):
        truth, models = draw(rng, images)
        first, second = (match_lvis(truth, each) for each in models)
        options = {"resamples": args.resamples, "seed": number}
        yield bootstrap_lvis(first, **options), bootstrap_difference(first, second, **options)


def coverage(found: list[BootstrapResult], method: str) -> tuple[float, float]:
    """Share of the intervals that contain the mean over sets, and the estimate of the next set."""
    estimates = np.array([each.estimate["AP"] for each in found])
    ends = np.array([replace(each, method=method).intervals["AP"] for each in found])
    figures = (estimates.mean(), np.roll(estimates, 1))
    hold = [(ends[:, 0] <= figure) & (figure <= ends[:, 1]) for figure in figures]
    return float(hold[0].mean()), float(hold[1].mean())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sets", type=int, default=200)
    parser.add_argument("--resamples", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    print(machine("cpu"))
    print("| images of a class | figure | interval | holds the mean | holds the next set's |")
    print("|---|---|---|---|---|")
    for name, images in IMAGES_PER_CLASS.items():
        both = list(results(args, images))
        for figure, found in zip(("AP", "difference of AP"), zip(*both)):
            for method in ("percentile", "centred"):
                mean, following = coverage(list(found), method)
                print(f"| {name} | {figure} | {method} | {mean:.1%} | {following:.1%} |")


if __name__ == "__main__":
    main()
