"""The verbs of `logn_d2` share one grammar, and equal attaching followed by evaluating."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import logn_d2
from logn_d2.core import AffineCalibration
from logn_d2.lvis import LvisGroundTruth, evaluate_lvis
from logn_d2.sweeps import sweep as detections_of_sweep

from ..detector_fixtures import data_set, image_folder, model, models
from ..small_detectors import CASCADE, CLASS_NAMES, NUM_CLASSES
from ..sweeps.test_sweep import loader

__all__ = ["data_set", "image_folder", "loader", "model", "models"]

NUM_IMAGES = 4


@pytest.fixture
def truth(loader):
    images = [image for batch in loader for image in batch]
    return LvisGroundTruth.from_dict(
        {
            "images": [
                {"id": each["image_id"], "height": each["height"], "width": each["width"]}
                for each in images
            ],
            "categories": [{"id": k + 1, "name": name} for k, name in enumerate(CLASS_NAMES)],
            "annotations": [
                {"id": k + 1, "image_id": each["image_id"], "category_id": 1 + k % NUM_CLASSES,
                 "bbox": [4, 4, 24, 24], "area": 576}
                for k, each in enumerate(images)
            ],
        }
    )  # fmt: skip


def test_one_evaluation_equals_a_sweep_and_leaves_the_model_as_it_was(model, loader, truth):
    shift = AffineCalibration(
        torch.ones(NUM_CLASSES), torch.arange(NUM_CLASSES).float(), name="shifted"
    )
    where = {"loader": loader, "dataset": truth}
    plain = logn_d2.evaluate(model, **where)
    calibrated = logn_d2.evaluate(model, shift, **where)
    both = logn_d2.sweep(model, calibrations=["uncalibrated", shift], **where)
    assert list(both) == ["uncalibrated", "shifted"]
    np.testing.assert_equal(dict(both["uncalibrated"]), dict(plain))
    np.testing.assert_equal(dict(both["shifted"]), dict(calibrated))
    with logn_d2.attach(model, shift):  # ignored, as it was not asked for
        np.testing.assert_equal(dict(logn_d2.evaluate(model, **where)), dict(plain))
    identity = [AffineCalibration.identity(NUM_CLASSES)]
    found = detections_of_sweep(model, loader, {"uncalibrated": identity}).detections(
        "uncalibrated"
    )
    expected = evaluate_lvis(truth, found).as_dict()
    assert plain["bbox"]["AP"] == pytest.approx(expected["AP"], nan_ok=True)


def test_statistics_and_text_are_taken_as_attach_takes_them(model, loader, truth, tmp_path):
    statistics = logn_d2.collect(model, loader, population="proposals", class_names=CLASS_NAMES)
    statistics.save(tmp_path / "stats.safetensors")
    where = {"loader": loader, "dataset": truth}
    options = {"calibrations": ["logn", "logn_mean"], **where}
    swept = [
        logn_d2.sweep(model, each, **options)
        for each in (statistics, tmp_path / "stats.safetensors")
    ]
    np.testing.assert_equal(*swept)
    alone = logn_d2.evaluate(model, statistics, calibration="logn_mean", **where)
    np.testing.assert_equal(dict(alone), dict(swept[0]["logn_mean"]))
    with pytest.raises(ValueError, match="needs logit statistics"):
        logn_d2.evaluate(model, "logn", **where)
    with pytest.raises(KeyError, match="Unknown calibration 'lgon'"):
        logn_d2.sweep(model, statistics, calibrations=["lgon"], **where)


def test_a_cascade_averages_as_its_own_heads_do(models, loader, monkeypatch):
    model = models[CASCADE]
    shift = AffineCalibration(torch.full((NUM_CLASSES,), 3.0), torch.arange(NUM_CLASSES).float())
    stages = len(model.roi_heads.box_predictor)
    named = {"one": [shift] * stages}
    scores = {}
    for average in ("probs", "logits"):
        # As LogNCascadeROIHeads has it; Detectron2's own heads average probabilities.
        monkeypatch.setattr(model.roi_heads, "cascade_average", average, raising=False)
        own = detections_of_sweep(model, loader, named).detections("one")
        given = detections_of_sweep(model, loader, named, average=average).detections("one")
        np.testing.assert_array_equal(own.score, given.score)
        scores[average] = own.score
    assert not np.array_equal(scores["probs"][:5], scores["logits"][:5])


def test_processes_with_a_part_of_the_images_have_no_figures(model, loader, truth, monkeypatch):
    monkeypatch.setattr("logn_d2.engine.verbs.comm.is_main_process", lambda: False)
    assert logn_d2.evaluate(model, loader=loader, dataset=truth) == {}
