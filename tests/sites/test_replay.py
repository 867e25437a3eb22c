"""Each of many calibrations in one pass equals the attached calibration."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from logn_d2 import attach
from logn_d2.core import AffineCalibration
from logn_d2.errors import UserError
from logn_d2.sites import known_site, outputs_under

from ..modeling.small_models import assert_same, detections
from .small_dense import NUM_CLASSES, images, retinanet
from .test_torchvision import KINDS, build, drawn, inputs, outputs

pytestmark = pytest.mark.usefixtures("one_thread")


def calibrations() -> dict[str, AffineCalibration]:
    shift = torch.linspace(-1, 1, NUM_CLASSES)
    return {
        "uncalibrated": AffineCalibration.identity(NUM_CLASSES, "none"),
        "shifted": AffineCalibration(torch.ones(NUM_CLASSES), shift, background="none"),
        "scaled": AffineCalibration(0.5 + shift.abs(), -shift, background="none"),
    }


def fields(outputs: list[dict]) -> list[dict]:
    found = [output["instances"].get_fields() for output in outputs]
    return [{k: getattr(v, "tensor", v) for k, v in each.items()} for each in found]


@pytest.mark.parametrize("attached", [False, True])
def test_each_calibration_equals_the_attached_one(attached):
    model, batch = retinanet(), images()
    expected = {"uncalibrated": detections(model, batch)}
    for name, calibration in list(calibrations().items())[1:]:
        with attach(model, calibration):
            expected[name] = detections(model, batch)
    if attached:
        attach(model, calibrations()["scaled"])
    found = outputs_under(model, known_site(model), batch, calibrations())
    for name in expected:
        assert_same(fields(found[name]), expected[name])
    if attached:
        assert_same(detections(model, batch), expected["scaled"])


def test_the_network_runs_once():
    model, calls = retinanet(), []
    forwards = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            forwards[name] = module.forward
            module.forward = lambda x, name=name: calls.append(name) or forwards[name](x)
    outputs_under(model, known_site(model), images(), calibrations())
    levels = 2
    assert sorted(set(calls)) == sorted(forwards)
    assert calls.count("head.cls_score") == calls.count("head.bbox_pred") == levels
    assert calls.count("backbone.stem.0") == 1


@pytest.mark.parametrize("kind", KINDS)
def test_torchvision_detectors_are_replayed_exactly(kind):
    model, batch, calibration = build(kind), inputs(), drawn(kind)
    raw = outputs(model, batch)
    identity = AffineCalibration.identity(calibration.num_classes, calibration.background)
    found = outputs_under(
        model, known_site(model), batch, {"uncalibrated": identity, "drawn": calibration}
    )
    attach(model, calibration)
    for name, expected in (("uncalibrated", raw), ("drawn", outputs(model, batch))):
        for one, other in zip(found[name], expected):
            assert all(torch.equal(one[field], other[field]) for field in other)


def test_a_calibration_of_other_columns_is_refused():
    model = retinanet()
    wrong = AffineCalibration.identity(NUM_CLASSES, "last")
    with pytest.raises(UserError, match="background column last; this model has"):
        outputs_under(model, known_site(model), images(), {"wrong": wrong})
