"""A calibration for each group of classes is one affine map: attached, folded, and in a config."""

import copy

import numpy as np
import pytest
import torch

from logn_d2.core import ClassCounts, stage_calibrations
from logn_d2.modeling import attach, fold
from logn_d2.modeling.box_predictors import find_box_predictors

from .small_models import CLASS_NAMES, assert_same, detections, images, small_model, statistics_of

TEXT = "groups(rare=logn, common=norcal(gamma=0.5), frequent=none)"
COUNTS = ClassCounts(CLASS_NAMES, np.array([5, 20, 200, 9, 500]), np.ones(5, dtype=int), 600)


@pytest.mark.parametrize("head", ["LogNROIHeads", "StandardROIHeads", "LogNCascadeROIHeads"])
def test_groups_are_attached_and_folded_like_any_other(head):
    model, inputs = small_model(head), images()
    statistics, raw = statistics_of(model), detections(model, inputs)
    folded = copy.deepcopy(model)
    with attach(model, statistics, calibration=TEXT, counts=COUNTS) as attachment:
        found = detections(model, inputs)
        calibrations = attachment.calibrations
    assert not torch.equal(found[0]["scores"], raw[0]["scores"])
    assert_same(detections(model, inputs), raw)
    assert all(each.scale[[2, 4]].tolist() == [1, 1] for each in calibrations)  # frequent
    assert all(each.shift[[2, 4]].tolist() == [0, 0] for each in calibrations)
    fold(folded, calibrations)
    for one, other in zip(detections(folded, inputs), found, strict=True):
        torch.testing.assert_close(one["scores"], other["scores"], rtol=1e-4, atol=1e-5)


def test_groups_are_usable_in_a_config(tmp_path, monkeypatch):
    statistics = statistics_of(small_model())
    statistics.save(tmp_path / "stats.safetensors")
    monkeypatch.setattr("logn_d2.data.class_counts", lambda datasets: COUNTS)
    model = small_model(
        MODEL__LOGN__STATISTICS=str(tmp_path / "stats.safetensors"), MODEL__LOGN__CALIBRATION=TEXT
    )
    (expected,) = stage_calibrations(TEXT, num_classes=5, statistics=statistics, counts=COUNTS)
    (predictor,) = find_box_predictors(model)
    assert torch.equal(predictor.calibration.scale, expected.scale)
    assert torch.equal(predictor.calibration.shift, expected.shift)
    grid = "norcal(gamma=[0.2, 0.4])"
    with pytest.raises(ValueError, match=r"grid of 2 calibrations, but one is needed"):
        small_model(MODEL__LOGN__CALIBRATION=grid)
