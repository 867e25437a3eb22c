"""Calibrations by posteriors act like any other: attached, folded, in a config, in torchvision."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch

from logn_d2.core import ClassCounts, LogitStatistics, StatisticsError, auto, stage_calibrations
from logn_d2.modeling import attach, fold
from logn_d2.modeling.attach import find_sites
from logn_d2.modeling.box_predictors import (
    find_box_predictors,
    has_sigmoid_scores,
    predictor_fingerprint,
)
from logn_d2.sweeps import sweep

from .small_models import (
    CLASS_NAMES,
    NUM_CLASSES,
    assert_same,
    detections,
    images,
    small_model,
    statistics_of,
)
from .test_attach import torchvision_model

TEXTS = (
    "auto",
    "p2p(source=negatives, centre=mass)",
    "p2p(source=labels, alpha=0.5)",
    "norcal(gamma=auto)",
    "norcal(gamma=0.6, centre=mean, offset=-1)",
    "logn(source=negatives, std_reference=geometric)",
    "groups(rare=auto, common=logn)",
    "fracal",
)
COUNTS = ClassCounts(
    CLASS_NAMES,
    np.array([5, 20, 200, 9, 500]),
    np.ones(5, dtype=int),
    600,
    fractal_dimensions=np.array([1, 1.2, 1.9, 1, 2]),
)


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("head", ["LogNROIHeads", "StandardROIHeads", "LogNCascadeROIHeads"])
def test_attached_and_folded_are_the_same(head, text):
    model, inputs = small_model(head), images()
    statistics, raw = statistics_of(model), detections(model, inputs)
    folded = copy.deepcopy(model)
    with attach(model, statistics, calibration=text, counts=COUNTS) as attachment:
        found = detections(model, inputs)
        calibrations = attachment.calibrations
    assert not torch.equal(found[0]["scores"], raw[0]["scores"])
    assert_same(detections(model, inputs), raw)
    if len(calibrations) > 1 and not any(word in text for word in ("0.6", "labels", "fracal")):
        assert not torch.equal(calibrations[0].shift, calibrations[1].shift)
    fold(folded, calibrations)
    for one, other in zip(detections(folded, inputs), found, strict=True):
        torch.testing.assert_close(one["scores"], other["scores"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("text", TEXTS)
def test_usable_in_a_config(text, tmp_path, monkeypatch):
    statistics = statistics_of(small_model())
    statistics.save(tmp_path / "stats.safetensors")
    monkeypatch.setattr("logn_d2.data.class_counts", lambda datasets: COUNTS)
    model = small_model(
        MODEL__LOGN__STATISTICS=str(tmp_path / "stats.safetensors"), MODEL__LOGN__CALIBRATION=text
    )
    (expected,) = stage_calibrations(text, num_classes=5, statistics=statistics, counts=COUNTS)
    (predictor,) = find_box_predictors(model)
    assert torch.equal(predictor.calibration.scale, expected.scale)
    assert torch.equal(predictor.calibration.shift, expected.shift)


def test_torchvision_has_the_background_first():
    model = torchvision_model()
    (site,) = find_sites(model)
    stage = statistics_of(small_model("StandardROIHeads")).stages[0]
    stage = replace(stage, fingerprint=predictor_fingerprint(site.classifier))
    statistics = LogitStatistics((stage,), CLASS_NAMES, background="first")
    with attach(model, statistics, calibration="auto") as attachment:
        (found,) = attachment.calibrations
    assert torch.equal(found.shift, auto(stage, background="first").shift)
    assert found.column_shift[0] == 0 and found.num_classes == NUM_CLASSES


def test_statistics_without_posteriors_are_refused_and_leave_the_model_alone():
    model, inputs = small_model(), images()
    statistics, raw = statistics_of(model), detections(model, inputs)
    old = replace(statistics, stages=tuple(replace(s, posteriors=None) for s in statistics.stages))
    with pytest.raises(StatisticsError, match="Collect them again"):
        attach(model, old, calibration="auto")
    assert_same(detections(model, inputs), raw)


@pytest.mark.parametrize("head", ["LogNROIHeads", "StandardROIHeads"])
def test_fracal_is_refused_where_scores_are_sigmoids(head, tmp_path, monkeypatch):
    options = {"MODEL__LOGN__LOSS": "focal"} if head == "LogNROIHeads" else {}
    model, inputs = small_model(head, **options), images()
    (predictor,) = find_box_predictors(model)
    if not options:
        predictor.use_sigmoid_ce = True  # as Detectron2 after 0.6
    raw = detections(model, inputs)
    (calibration,) = stage_calibrations("fracal", num_classes=5, counts=COUNTS)
    for refused in (
        lambda: attach(model, "fracal", counts=COUNTS),
        lambda: fold(model, calibration),
        lambda: sweep(model, [inputs], {"fracal": [calibration]}, output_dir=tmp_path),
    ):
        with pytest.raises(ValueError, match="'fracal' is .* this head has sigmoid scores"):
            refused()
    assert_same(detections(model, inputs), raw)
    if options:
        monkeypatch.setattr("logn_d2.data.class_counts", lambda datasets: COUNTS)
        with pytest.raises(ValueError, match="this head has sigmoid scores"):
            small_model(head, MODEL__LOGN__CALIBRATION="fracal", **options)


@pytest.mark.parametrize(
    ("loss", "sigmoid"),
    [("", False), ("cross_entropy", False), ("sigmoid_cross_entropy", True), ("focal", True)],
)
def test_scores_of_sigmoid_losses_are_sigmoids(loss, sigmoid):
    (predictor,) = find_box_predictors(small_model(MODEL__LOGN__LOSS=loss))
    assert has_sigmoid_scores(predictor) is sigmoid
