"""Detectron2's FCOS through every verb, where Detectron2 has it (after 0.5)."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from detectron2.layers import ShapeSpec
from torch import nn

from logn_d2 import attach, collect, fold
from logn_d2.core import AffineCalibration
from logn_d2.lvis.detections import Detections
from logn_d2.sweeps import sweep

from ..modeling.small_models import (
    CHANNELS,
    NUM_CLASSES,
    SmallBackbone,
    assert_same,
    detections,
    images,
)

fcos = pytest.importorskip("detectron2.modeling.meta_arch.fcos")
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(0)
    shapes = [ShapeSpec(channels=CHANNELS, stride=stride) for stride in (8, 16)]
    head = fcos.FCOSHead(input_shape=shapes, num_classes=NUM_CLASSES, conv_dims=[16])
    nn.init.normal_(head.cls_score.weight, std=0.4)
    nn.init.normal_(head.cls_score.bias, mean=-2.0)
    return fcos.FCOS(
        backbone=SmallBackbone(),
        head=head,
        head_in_features=["p3", "res4"],
        num_classes=NUM_CLASSES,
        pixel_mean=[100.0] * 3,
        pixel_std=[60.0] * 3,
        test_score_thresh=0.01,
        test_topk_candidates=50,
    ).eval()


def calibration() -> AffineCalibration:
    shift = torch.linspace(-1, 1, NUM_CLASSES)
    return AffineCalibration(0.5 + shift.abs(), shift, background="none")


def test_statistics_are_of_all_points_and_of_the_matched_ones(model):
    batches = [[image] for image in images(3)]
    points = 3 * (8**2 + 4**2)
    found = {name: collect(model, batches, population=name) for name in ("sampled", "positives")}
    assert found["sampled"].stages[0].count.tolist() == [points] * NUM_CLASSES
    matched = collect(model, batches, population="foreground").num_rois
    assert 0 < matched == int(found["positives"].stages[0].count.sum())


def test_attached_detached_folded_and_swept_it_agrees(model):
    inputs = images(3)
    before = detections(model, inputs)
    with attach(model, calibration()), torch.no_grad():
        attached = detections(model, inputs)
        single = [model([image])[0]["instances"] for image in inputs]
    assert_same(detections(model, inputs), before)
    assert not torch.equal(attached[0]["scores"], before[0]["scores"])
    folded = detections(fold(copy.deepcopy(model), calibration()), inputs)
    for left, right in zip(folded, attached, strict=True):
        torch.testing.assert_close(left["scores"], right["scores"], rtol=1e-4, atol=1e-6)
    swept = sweep(model, [[image] for image in inputs], {"drawn": [calibration()]})
    left, right = swept.detections("drawn"), Detections.from_instances(single, [0, 1, 2])
    for field in ("score", "box", "category"):
        np.testing.assert_array_equal(getattr(left, field), getattr(right, field))
