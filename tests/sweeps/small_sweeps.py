"""Shared by the tests of sweeps: calibrations, ground truth, interruptions."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from torch import nn

from logn_d2.core import AffineCalibration
from logn_d2.lvis import Detections, LvisGroundTruth
from logn_d2.sweeps.network import SweepRunner

from ..small_detectors import CLASS_NAMES, NUM_CLASSES

NUM_IMAGES = 5


def calibrations(stages: int = 1, count: int = 3) -> dict[str, list[AffineCalibration]]:
    """The one that changes nothing, and some that move the ranking."""
    generator = torch.Generator().manual_seed(0)

    def drawn() -> AffineCalibration:
        scale = 0.5 + torch.rand(NUM_CLASSES, generator=generator)
        shift = torch.randn(NUM_CLASSES, generator=generator)
        return AffineCalibration(scale, shift)

    named = {f"drawn {number}": [drawn() for _ in range(stages)] for number in range(count)}
    return {"uncalibrated": [AffineCalibration.identity(NUM_CLASSES)] * stages, **named}


def assert_equal(left: Detections, right: Detections) -> None:
    """Bit for bit, and in the same order."""
    arrays, others = left.to_arrays(), right.to_arrays()
    assert arrays.keys() == others.keys()
    for name in arrays:
        np.testing.assert_array_equal(arrays[name], others[name], err_msg=name)


class Interruption(Exception):
    pass


@contextmanager
def interrupted_after(images: int) -> Iterator[None]:
    call, seen = SweepRunner.__call__, []

    def call_or_stop(self: SweepRunner, inputs: list) -> object:
        if len(seen) == images:
            raise Interruption
        seen.append(inputs)
        return call(self, inputs)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Interruption):
        patch.setattr(SweepRunner, "__call__", call_or_stop)
        yield


@contextmanager
def count_passes(model: nn.Module) -> Iterator[list[int]]:
    passes: list[int] = []
    handle = model.backbone.register_forward_hook(lambda *_: passes.append(1))
    try:
        yield passes
    finally:
        handle.remove()


def ground_truth(
    records: list[dict], masks: bool = True, negatives: list[list[int]] | None = None
) -> LvisGroundTruth:
    annotations = []
    for record in records:
        for each in record["annotations"]:
            x0, y0, x1, y1 = each["bbox"]
            annotation = {
                "id": len(annotations) + 1,
                "image_id": record["image_id"],
                "category_id": each["category_id"] + 1,
                "bbox": [x0, y0, x1 - x0, y1 - y0],
                "area": (x1 - x0) * (y1 - y0),
            }
            polygons = {"segmentation": each["segmentation"]} if masks else {}
            annotations.append({**annotation, **polygons})
    images = [
        {
            "id": record["image_id"],
            "height": record["height"],
            "width": record["width"],
            "neg_category_ids": [1, 2, 3, 4] if negatives is None else negatives[index],
            "not_exhaustive_category_ids": [],
        }
        for index, record in enumerate(records)
    ]
    categories = [
        {"id": index + 1, "name": name, "frequency": "ffcr"[index]}
        for index, name in enumerate(CLASS_NAMES)
    ]
    return LvisGroundTruth.from_dict(
        {"images": images, "annotations": annotations, "categories": categories}
    )
