"""Class scales of LWS, folded and not; calibrations from a config and loaded weights."""

import copy
import pickle

import pytest
import torch
from torch import nn

from logn_d2.core import AffineCalibration, lws, tau_norm
from logn_d2.modeling import (
    CosineLinear,
    calibration_of,
    find_box_predictors,
    fold,
    parts_of_logn_d2,
    plain_config,
    predictor_fingerprint,
)
from logn_d2.modeling.class_scales import ScaledLinear, add_class_scales, merge_class_scales

from .small_models import assert_same, detections, images, small_config, small_model

LWS = {"MODEL__LOGN__SECOND_STAGE": "lws"}
COSINE = {"MODEL__LOGN__CLASSIFIER": "cosine"}
HEADS = ["LogNROIHeads", "LogNCascadeROIHeads"]


def scaled_model(head="LogNROIHeads", **options):
    """A model whose class scales say something."""
    model = small_model(head, **LWS, **options)
    for predictor in find_box_predictors(model):
        gain = torch.linspace(0.5, 2.0, len(predictor.cls_score.class_scale))
        gain[-1] = 1.0
        predictor.cls_score.class_scale.data.copy_(gain)
    return model


def assert_close(left, right):
    for one, other in zip(left, right, strict=True):
        for name in ("scores", "pred_boxes"):
            torch.testing.assert_close(one[name], other[name], rtol=1e-4, atol=1e-5)


def test_scales_multiply_weights_and_not_the_bias():
    layer = ScaledLinear(3, 4).double()
    layer.class_scale.data.copy_(torch.tensor([0.5, 1.0, 2.0, 1.0]))
    x = torch.randn(5, 3, dtype=torch.float64)
    expected = torch.stack([layer.class_scale[c] * (x @ layer.weight[c]) for c in range(4)], dim=1)
    torch.testing.assert_close(layer(x), expected + layer.bias)


@pytest.mark.parametrize("options", [{}, COSINE], ids=["linear", "cosine"])
@pytest.mark.parametrize("head", HEADS)
def test_new_scales_change_nothing(head, options):
    plain, scaled = (small_model(head, **options, **stage) for stage in ({}, LWS))
    scaled.load_state_dict(plain.state_dict(), strict=False)
    assert_same(detections(plain, images()), detections(scaled, images()))
    gains = {name for name, _ in scaled.named_parameters() if name.endswith("class_scale")}
    assert set(scaled.state_dict()) - set(plain.state_dict()) == gains
    assert len(gains) == len(find_box_predictors(scaled))


@pytest.mark.parametrize("head", HEADS)
def test_scales_are_the_calibration_lws(head):
    scaled = scaled_model(head)
    plain = small_model(head)
    plain.load_state_dict(scaled.state_dict(), strict=False)
    for predictor, other in zip(find_box_predictors(plain), find_box_predictors(scaled)):
        predictor.calibration = lws(other.cls_score.class_scale, predictor.cls_score.bias)
    assert_close(detections(plain, images()), detections(scaled, images()))


def test_folding_leaves_a_plain_linear_classifier():
    model, cfg = scaled_model(), small_config(**LWS)
    calibration = AffineCalibration(torch.full((5,), 0.5), torch.full((5,), -1.0))
    attached = copy.deepcopy(model)
    find_box_predictors(attached)[0].calibration = calibration
    expected = detections(attached, images())
    fold(model, calibration)
    (predictor,) = find_box_predictors(model)
    assert type(predictor.cls_score) is nn.Linear
    assert parts_of_logn_d2(model) == []
    assert "LOGN" not in plain_config(cfg, model).MODEL
    assert_close(detections(model, images()), expected)


def test_folding_cosine_scales_keeps_the_gain():
    model, cfg = scaled_model(**COSINE), small_config(**LWS, **COSINE)
    before = detections(model, images())
    fold(model, AffineCalibration.identity(5))
    assert_close(detections(model, images()), before)
    assert plain_config(cfg, model).MODEL.LOGN.SECOND_STAGE == ""
    reloaded = small_model(**COSINE)  # the gain is loaded without being asked for
    reloaded.load_state_dict(model.state_dict())
    assert_close(detections(reloaded, images()), before)


def test_merging_keeps_outputs_and_fingerprint():
    model = scaled_model()
    (predictor,) = find_box_predictors(model)
    before, fingerprint = detections(model, images()), predictor_fingerprint(predictor)
    merge_class_scales(predictor)
    assert_close(detections(model, images()), before)
    torch.testing.assert_close(predictor_fingerprint(predictor), fingerprint)


def test_scales_are_added_once_and_only_to_known_layers():
    predictor = nn.Module()
    predictor.cls_score = ScaledLinear(2, 3)
    predictor.cls_score.class_scale.data.fill_(2.0)
    add_class_scales(predictor)
    assert predictor.cls_score.class_scale.tolist() == [2.0, 2.0, 2.0]
    predictor.cls_score = CosineLinear(2, 3, gain=torch.tensor([1.0, 2.0, 3.0]))
    add_class_scales(predictor)
    assert isinstance(predictor.cls_score.class_scale, nn.Parameter)
    assert predictor.cls_score.class_scale.tolist() == [1.0, 1.0, 1.0]
    assert predictor.cls_score.factors.tolist() == [1.0, 2.0, 3.0]
    predictor.cls_score = nn.Sequential(nn.Linear(2, 3))
    with pytest.raises(ValueError, match="is a Sequential; the second stage 'lws'"):
        add_class_scales(predictor)


@pytest.mark.parametrize("head", HEADS)
def test_config_calibrates_with_the_weights_that_are_loaded_later(head):
    model = small_model(head, MODEL__LOGN__CALIBRATION="tau_norm(tau=0.5)")
    model = pickle.loads(pickle.dumps(model))
    trained = small_model(head, seed=3)
    model.load_state_dict(trained.state_dict())
    found = detections(model, images())
    for predictor in find_box_predictors(trained):
        layer = predictor.cls_score
        predictor.calibration = tau_norm(layer.weight, layer.bias, tau=0.5)
    assert_same(found, detections(trained, images()))


def test_config_folds_with_the_weights_that_are_loaded_later():
    model = small_model(MODEL__LOGN__CALIBRATION="tau_norm")
    model.load_state_dict(small_model(seed=3).state_dict())
    (predictor,) = find_box_predictors(model)
    fold(model)
    norms = predictor.cls_score.weight.norm(dim=1)
    torch.testing.assert_close(norms[:-1], torch.ones(5))
    assert calibration_of(predictor) is None
