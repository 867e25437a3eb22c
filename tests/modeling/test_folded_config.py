"""Configs of folded models, and their remaining need for logn_d2."""

from __future__ import annotations

import pytest
import torch
from detectron2.modeling import build_model
from torch import nn

from logn_d2.core import AffineCalibration
from logn_d2.modeling import (
    CosineLinear,
    find_box_predictors,
    fold,
    parts_of_logn_d2,
    plain_config,
)

from .small_models import (
    NUM_CLASSES,
    PARENTS,
    assert_same,
    detections,
    images,
    small_config,
    small_model,
)


def calibrations_of(model: nn.Module) -> list[AffineCalibration]:
    generator = torch.Generator().manual_seed(0)
    return [
        AffineCalibration(
            0.5 + torch.rand(NUM_CLASSES, generator=generator),
            torch.randn(NUM_CLASSES, generator=generator),
        )
        for _ in find_box_predictors(model)
    ]


@pytest.mark.parametrize(("head", "twin"), PARENTS.items())
def test_config_of_a_folded_linear_model_names_nothing_of_logn_d2(head, twin):
    cfg = small_config(head, MODEL__LOGN__STATISTICS="stats.safetensors")
    model = small_model(head)
    before = cfg.dump()
    plain = plain_config(cfg, fold(model, calibrations_of(model)))
    assert plain.MODEL.ROI_HEADS.NAME == twin
    assert "LOGN" not in plain.MODEL and "LogN" not in plain.dump()
    assert cfg.dump() == before


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ({"MODEL__LOGN__CLASSIFIER": "cosine"}, "CosineLinear"),
        ({"MODEL__ROI_MASK_HEAD__NAME": "CosineMaskHead"}, "CosineMaskHead"),
        ({"MODEL__LOGN__CASCADE_AVERAGE": "logits"}, "CASCADE_AVERAGE logits"),
    ],
)
def test_config_keeps_settings_that_detectron2_lacks(options, part):
    cfg = small_config("LogNCascadeROIHeads", **options, MODEL__LOGN__CALIBRATION="logn")
    model = small_model("LogNCascadeROIHeads", **options)
    fold(model, calibrations_of(model))
    assert part in parts_of_logn_d2(model)
    plain = plain_config(cfg, model)
    assert plain.MODEL.ROI_HEADS.NAME == "LogNCascadeROIHeads"
    assert plain.MODEL.LOGN.CALIBRATION == ""
    loaded = build_model(plain).eval()
    loaded.load_state_dict(model.state_dict())
    assert_same(detections(loaded, images()), detections(model, images()))


def test_config_that_never_had_our_keys_stays_as_it_is():
    cfg, model = small_config("StandardROIHeads"), small_model("StandardROIHeads")
    del cfg.MODEL["LOGN"]
    assert plain_config(cfg, fold(model, calibrations_of(model))).dump() == cfg.dump()


def test_a_project_s_own_subclass_is_a_part_that_needs_logn_d2():
    class Mine(CosineLinear):
        pass

    assert parts_of_logn_d2(nn.Sequential(Mine(4, 3), nn.Linear(3, 2))) == ["Mine"]
