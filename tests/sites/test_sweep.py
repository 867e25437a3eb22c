"""A sweep over a detector without box predictors equals inference with each calibration."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from detectron2.structures import Instances

from logn_d2 import attach
from logn_d2.core import AffineCalibration
from logn_d2.errors import UserError
from logn_d2.lvis.detections import Detections
from logn_d2.sweeps import SweepDetections, sweep

from .small_dense import NUM_CLASSES, images, retinanet

pytestmark = pytest.mark.usefixtures("one_thread")


def calibrations() -> dict[str, list[AffineCalibration]]:
    shift = torch.linspace(-1, 1, NUM_CLASSES)
    scaled = AffineCalibration(0.5 + shift.abs(), -shift, background="none")
    return {"uncalibrated": [AffineCalibration.identity(NUM_CLASSES, "none")], "scaled": [scaled]}


def batches() -> list[list[dict]]:
    return [[image] for image in images(3)]


def of(model: torch.nn.Module) -> list[Instances]:
    with torch.no_grad():
        return [model(batch)[0]["instances"] for batch in batches()]


@pytest.mark.parametrize("on_disk", [False, True])
def test_each_calibrations_detections_are_those_of_the_attached_one(on_disk, tmp_path):
    model = retinanet()
    expected = {"uncalibrated": of(model)}
    with attach(model, calibrations()["scaled"]):
        expected["scaled"] = of(model)
    folder = tmp_path / "sweep" if on_disk else None
    found = sweep(model, batches(), calibrations(), output_dir=folder)
    found = SweepDetections.load(folder) if on_disk else found
    for name, instances in expected.items():
        right = Detections.from_instances(instances, [0, 1, 2])
        left = found.detections(name)
        assert len(right) > 0
        for field in ("image_id", "category", "score", "box"):
            np.testing.assert_array_equal(getattr(left, field), getattr(right, field))


def test_what_does_not_fit_is_refused_before_the_pass(tmp_path):
    model = retinanet()
    with pytest.raises(UserError, match="can't be stored"):
        sweep(model, batches(), calibrations(), store=tmp_path / "store")
    two = {name: stages * 2 for name, stages in calibrations().items()}
    with pytest.raises(UserError, match="has 2 calibrations"):
        sweep(model, batches(), two)
    (softmax,) = calibrations()["scaled"]
    softmax.softmax_only = True
    with pytest.raises(UserError, match="only for softmax scores"):
        sweep(model, batches(), {"fracal": [softmax]})
