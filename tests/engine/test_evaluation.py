"""Evaluation in one pass, in a pass per calibration, and of other projects' heads."""

import csv
import json
import math
from pathlib import Path

import numpy as np
import pytest
from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluator

from logn_d2.core import LogitStatistics
from logn_d2.data import register_lvis_form
from logn_d2.engine import Trainer, collect, evaluation
from logn_d2.engine.evaluation import evaluate_calibrations, make_calibrations
from logn_d2.modeling import find_box_predictors
from logn_d2.modeling.build import TrainingClassCounts
from logn_d2.sweeps import SweepDetections, sweep

NORCAL = "norcal(gamma=0.6)"


@pytest.fixture
def few_images(cfg, tiny_folder, tmp_path):
    """The config with four images to evaluate, in LVIS's form and registered as COCO's."""
    content = json.loads((tiny_folder / "annotations" / "lt_glyphs_tiny_val.json").read_text())
    content["images"] = content["images"][:4]
    kept = {image["id"] for image in content["images"]}
    content["annotations"] = [
        {**a, "iscrowd": 0}  # which COCO's evaluation asks for
        for a in content["annotations"]
        if a["image_id"] in kept
    ]
    (tmp_path / "few.json").write_text(json.dumps(content))
    for kind in ("lvis", "coco"):
        register_lvis_form(
            f"few_{kind}",
            tmp_path / "few.json",
            f"{tiny_folder}/",
            {"evaluator_type": kind},
            replace=True,
        )
    cfg.DATASETS.TEST = ("few_lvis",)
    return cfg


class Scores(DatasetEvaluator):
    """An evaluator whose result is what the model said."""

    def __init__(self, cfg, dataset):
        self.scores = []

    def process(self, inputs, outputs):
        self.scores += [score for out in outputs for score in out["instances"].scores.tolist()]

    def evaluate(self):
        return {"bbox": {"sum": sum(self.scores), "number": len(self.scores)}}


def evaluate(cfg, model, statistics=None, **options):
    options = {"build_evaluator": Scores, **options}
    calibrations = make_calibrations(cfg, model, statistics, TrainingClassCounts(cfg))
    return evaluate_calibrations(cfg, model, calibrations, **options)


def test_one_pass_finds_the_detections_of_the_calibrated_model(few_images):
    few_images.MODEL.LOGN.CALIBRATION = NORCAL
    model = Trainer.build_model(few_images)
    results = evaluate(few_images, model)
    assert {"uncalibrated/bbox", "uncalibrated/segm", f"{NORCAL}/bbox"} <= set(results)
    few_images.DATASETS.TEST = ("few_coco",)
    separate = evaluate(few_images, model)
    sweep = SweepDetections.load(f"{few_images.OUTPUT_DIR}/inference/few_lvis/sweep")
    for name in ("uncalibrated", NORCAL):
        scores = sweep.detections(name).score
        assert separate[f"{name}/bbox"]["number"] == len(scores) > 50
        assert separate[f"{name}/bbox"]["sum"] == pytest.approx(float(scores.sum()), rel=1e-5)
    assert separate["uncalibrated/bbox"] != separate[f"{NORCAL}/bbox"]
    assert [each.calibration for each in find_box_predictors(model)] == [None]


def test_masks_that_the_evaluation_does_not_look_at_change_no_result(few_images, monkeypatch):
    few_images.MODEL.LOGN.CALIBRATION = NORCAL
    model, masks = Trainer.build_model(few_images), []
    model.roi_heads.mask_head.register_forward_hook(lambda m, args, out: masks.append(len(args[0])))
    results = evaluate(few_images, model)
    fewer = sum(masks)
    masks.clear()
    monkeypatch.setattr(
        "logn_d2.engine.evaluation.sweep",
        lambda *args, **options: sweep(*args, **{**options, "ground_truth": None}),
    )
    few_images.OUTPUT_DIR += "/whole"
    whole = evaluate(few_images, model)
    assert 0 < fewer < 0.8 * sum(masks)
    assert f"{NORCAL}/segm" in results
    np.testing.assert_equal(results, whole)


def test_coco_evaluator_runs(few_images):
    few_images.DATASETS.TEST = ("few_coco",)
    model = Trainer.build_model(few_images)
    results = evaluate(few_images, model, build_evaluator=Trainer.build_evaluator)
    assert set(results) == {"uncalibrated/bbox", "uncalibrated/segm"}
    assert "AP75" in results["uncalibrated/bbox"]


def test_one_pass_over_a_coco_set_equals_a_pass_for_each_calibration(few_images, monkeypatch):
    few_images.MODEL.LOGN.CALIBRATION = NORCAL
    few_images.DATASETS.TEST = ("few_coco",)
    model, passes = Trainer.build_model(few_images), []
    model.backbone.register_forward_hook(lambda *_: passes.append(1))
    one = evaluate(few_images, model, build_evaluator=Trainer.build_evaluator)
    count = len(passes)
    kind = evaluation._Evaluation
    monkeypatch.setattr(kind, "one_pass_for_evaluators", kind.one_pass_each)
    each = evaluate(few_images, model, build_evaluator=Trainer.build_evaluator)
    np.testing.assert_equal(one, each)
    assert len(passes) - count == 2 * count > 0
    assert f"{NORCAL}/segm" in one


def test_every_calibration_of_a_coco_set_keeps_its_files(few_images):
    few_images.MODEL.LOGN.CALIBRATION = NORCAL
    few_images.DATASETS.TEST = ("few_coco",)
    model = Trainer.build_model(few_images)
    evaluate(few_images, model, build_evaluator=Trainer.build_evaluator)
    folder = Path(few_images.OUTPUT_DIR, "inference", "few_coco")
    found = {
        path.relative_to(folder).parts[0] for path in folder.rglob("coco_instances_results.json")
    }
    assert found == {"uncalibrated", NORCAL}


def test_results_file_has_null_for_undefined_values(few_images):
    results = evaluate(few_images, Trainer.build_model(few_images))
    path = f"{few_images.OUTPUT_DIR}/inference/few_lvis/results.json"
    (row,) = json.load(open(path))["rows"]
    assert row["calibration"] == "uncalibrated"
    for metric, value in results["uncalibrated/bbox"].items():
        assert row["bbox"][metric] == (None if math.isnan(value) else value)
    assert None in row["bbox"].values()


def test_every_class_is_in_a_file(few_images):
    results = evaluate(few_images, Trainer.build_model(few_images))
    folder = f"{few_images.OUTPUT_DIR}/inference/few_lvis"
    with open(f"{folder}/per_class_bbox_uncalibrated.csv", newline="") as file:
        ap = np.array([float(row["AP"]) for row in csv.DictReader(file)])
    assert len(ap) == few_images.MODEL.ROI_HEADS.NUM_CLASSES
    np.testing.assert_allclose(np.nanmean(ap), results["uncalibrated/bbox"]["AP"])


def test_several_data_sets_have_their_own_results(few_images):
    few_images.DATASETS.TEST = ("few_lvis", "few_coco")
    results = evaluate(few_images, Trainer.build_model(few_images))
    assert set(results) == {"few_lvis", "few_coco"}
    assert "AP" in results["few_lvis"]["uncalibrated/bbox"]


def test_detectron2s_own_heads_are_calibrated_as_ours(few_images):
    few_images.MODEL.LOGN.CALIBRATION = NORCAL
    few_images.MODEL.LOGN.CLASSIFIER = "linear"
    ours = Trainer.build_model(few_images)
    few_images.MODEL.ROI_HEADS.NAME = "StandardROIHeads"
    theirs = Trainer.build_model(few_images)
    theirs.load_state_dict(ours.state_dict())
    found, expected = evaluate(few_images, theirs), evaluate(few_images, ours)
    assert len(found) == 4  # two calibrations of two tasks
    for name, metrics in expected.items():
        assert found[name] == pytest.approx(metrics, nan_ok=True, abs=0)


def test_statistics_of_a_finished_pass_are_taken_again_only_if_nothing_changed(cfg, tmp_path):
    cfg.MODEL.LOGN.COLLECT.MAX_IMAGES = 2
    model, path = Trainer.build_model(cfg), tmp_path / "stats.safetensors"
    first = collect(cfg, model, str(path), resume=False)
    written = path.stat().st_mtime_ns
    again = collect(cfg, model, str(path), resume=True)
    assert path.stat().st_mtime_ns == written
    assert again.stages[0].mean.equal(first.stages[0].mean)
    # Other weights of the backbone, which the classifier's fingerprint does not show.
    next(model.backbone.parameters()).data.mul_(1.5)
    other = collect(cfg, model, str(path), resume=True)
    assert not other.stages[0].mean.equal(first.stages[0].mean)
    assert LogitStatistics.load(path).stages[0].mean.equal(other.stages[0].mean)
    # Another setting, and without resume.
    written = path.stat().st_mtime_ns
    cfg.MODEL.LOGN.COLLECT.MAX_IMAGES = 1
    collect(cfg, model, str(path), resume=True)
    assert path.stat().st_mtime_ns != written


def test_changed_annotations_are_passed_over_again(few_images, tmp_path):
    few_images.DATASETS.TRAIN = ("few_lvis",)
    few_images.MODEL.LOGN.COLLECT.MAX_IMAGES = 1
    model, path = Trainer.build_model(few_images), tmp_path / "stats.safetensors"
    collect(few_images, model, str(path))
    written = path.stat().st_mtime_ns
    json_file = MetadataCatalog.get("few_lvis").json_file
    text = open(json_file).read()
    with open(json_file, "w") as file:
        file.write(text + " ")
    collect(few_images, model, str(path), resume=True)
    assert path.stat().st_mtime_ns != written


def test_a_sweep_is_known_by_all_settings_of_its_config(cfg, monkeypatch):
    seen = []
    monkeypatch.setattr(evaluation, "sweep", lambda *_, **options: seen.append(options))
    for average, size in (("probs", 64), ("logits", 48)):
        cfg.MODEL.LOGN.CASCADE_AVERAGE, cfg.INPUT.MIN_SIZE_TEST = average, size
        evaluation.sweep_dataset(cfg, None, "few_lvis", {}, cfg.OUTPUT_DIR)
        assert seen[-1]["average"] == average
    assert seen[0]["settings"]["input"] != seen[1]["settings"]["input"]


def test_a_pass_with_another_number_of_detections_does_not_resume(few_images, monkeypatch):
    """A head that can't be calibrated has no sweep, whose digest would have the number."""
    few_images.MODEL.LOGN.LOSS, few_images.MODEL.LOGN.COLLECT.ENABLED = "seesaw", False
    model, seen = Trainer.build_model(few_images), []

    def record(*_, settings, **__):
        seen.append(settings)
        return {"bbox": {"AP": 0.0}}

    monkeypatch.setattr(evaluation, "resumable_inference", record)
    for number in (100, 100, 300):
        few_images.TEST.DETECTIONS_PER_IMAGE = number
        evaluate(few_images, model, build_evaluator=Trainer.build_evaluator)
    assert seen[0] == seen[1] != seen[2]


@pytest.mark.parametrize("loss", ["seesaw", "eql"])
def test_heads_with_a_loss_are_evaluated(few_images, loss):
    few_images.MODEL.LOGN.LOSS = loss
    few_images.MODEL.LOGN.COLLECT.ENABLED = False
    model = Trainer.build_model(few_images)
    found = evaluate(few_images, model, build_evaluator=Trainer.build_evaluator)
    assert set(found) == {"uncalibrated/bbox", "uncalibrated/segm"}
    assert found["uncalibrated/bbox"]["AP"] >= 0
    if loss == "seesaw":
        few_images.MODEL.LOGN.CALIBRATION = NORCAL
        with pytest.raises(ValueError, match="SeesawLoss can't be calibrated"):
            evaluate(few_images, model)
