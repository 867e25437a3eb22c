"""Training, statistics, evaluation and second stages of image classifiers, as of detectors."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import inference_on_dataset

from logn_d2.classification import register_images
from logn_d2.classification.logits import ImageEvaluator, StoredLogits, collect_logits
from logn_d2.collection import collect_from_config, collect_statistics
from logn_d2.core import LogitStatistics, logn
from logn_d2.data.loader import build_evaluation_loader, build_statistics_loader
from logn_d2.engine import (
    Trainer,
    check_collection,
    check_evaluation,
    check_training,
    run_collection,
    run_evaluation,
    run_training,
)
from logn_d2.errors import UserError
from logn_d2.report import Settings, open_runs
from logn_d2.report.image_numbers import compare_images

from .small import COUNTS, NAMES, K, raw_logits, small_config, small_set


@pytest.fixture(scope="module", autouse=True)
def sets():
    register_images("im_train", lambda: small_set(COUNTS, 0))
    register_images("im_test", lambda: small_set((8,) * K, 1))
    DatasetCatalog.register("im_boxes", list)
    MetadataCatalog.get("im_boxes").set(thing_classes=list(NAMES), evaluator_type="coco")
    yield
    for name in ("im_train", "im_test", "im_boxes"):
        DatasetCatalog.remove(name)
        MetadataCatalog.pop(name)


def config(folder, **options):
    return small_config(
        DATASETS__TRAIN=("im_train",),
        DATASETS__TEST=("im_test",),
        DATALOADER__NUM_WORKERS=0,
        DATALOADER__ASPECT_RATIO_GROUPING=False,
        SOLVER__IMS_PER_BATCH=16,
        SOLVER__BASE_LR=0.05,
        SOLVER__MAX_ITER=80,
        SOLVER__WARMUP_ITERS=0,
        SOLVER__STEPS=(),
        SEED=0,
        OUTPUT_DIR=str(folder),
        MODEL__LOGN__VIS_IMAGES=0,
        MODEL__LOGN__COLLECT__POPULATION="images",
        **options,
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A training to its end, with all that it leaves behind."""
    folder = tmp_path_factory.mktemp("run")
    cfg = config(folder)
    check_training(cfg, num_processes=1)
    return cfg, folder, run_training(cfg, resume=False)


def model_of(cfg, folder):
    cfg = cfg.clone()
    model = Trainer.build_model(cfg)
    state = torch.load(folder / "model_final.pth", weights_only=False)["model"]
    model.load_state_dict({k: torch.as_tensor(v) for k, v in state.items()})
    return model.eval()


def inputs_of(cfg, dataset="im_train"):
    mapped = [image for batch in build_evaluation_loader(cfg, dataset) for image in batch]
    return sorted(mapped, key=lambda image: image["image_id"])


def test_training_ends_with_statistics_and_both_evaluations(trained):
    _, folder, results = trained
    assert set(results) == {"uncalibrated/image", "logn/image"}
    for metrics in results.values():
        assert set(metrics) == {"acc", "many", "medium", "few", "ECE"}
    assert results["uncalibrated/image"]["acc"] > 50
    for name in ("results.json", "logits.safetensors", "per_class_logn.csv"):
        assert (folder / "inference" / "im_test" / name).is_file()


def test_the_folder_of_a_training_is_a_run_of_the_report(trained):
    _, folder, results = trained
    runs = open_runs([str(folder)])
    assert [run.calibration for run in runs] == ["uncalibrated", "logn"]
    assert runs[0].folder.dataset == "im_test"
    comparison = compare_images(runs, settings=Settings(resamples=5))
    for run in runs:
        found = comparison.figures[run.name, "image"].value("All").value
        assert found == pytest.approx(results[f"{run.calibration}/image"]["acc"])


def test_statistics_are_of_each_training_image_once(trained):
    cfg, folder, _ = trained
    statistics = LogitStatistics.load(folder / "logn_stats.safetensors")
    raw = raw_logits(model_of(cfg, folder), inputs_of(cfg)).double()
    assert statistics.background == "none" and statistics.population == "images"
    assert statistics.num_images == statistics.num_rois == len(raw) == sum(COUNTS)
    torch.testing.assert_close(statistics.stages[0].mean, raw.mean(0), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(statistics.stages[0].std, raw.std(0), rtol=1e-6, atol=1e-6)
    assert statistics.class_names == NAMES


@pytest.mark.parametrize("batch", [1, 7, 100])
def test_any_split_into_batches_gives_the_same_statistics(trained, tmp_path, batch):
    cfg, folder, _ = trained
    model = model_of(cfg, folder)
    whole = LogitStatistics.load(folder / "logn_stats.safetensors").stages[0]
    other = cfg.clone()
    other.MODEL.LOGN.IMAGE.TEST_BATCH = batch
    found = collect_from_config(other, model, tmp_path / "s.safetensors").stages[0]
    # Batches of another size round float32 logits otherwise.
    torch.testing.assert_close(found.mean, whole.mean, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found.var, whole.var, rtol=1e-5, atol=1e-6)


def test_logn_after_training_is_equation_1_on_the_stored_logits(trained):
    cfg, folder, results = trained
    stored = StoredLogits.load(folder / "inference" / "im_test" / "logits.safetensors")
    statistics = LogitStatistics.load(folder / "logn_stats.safetensors").stages[0]
    right = ((stored.logits - statistics.mean) / statistics.std).argmax(1) == stored.labels
    assert results["logn/image"]["acc"] == pytest.approx(100 * right.double().mean().item())
    plain = stored.logits.argmax(1) == stored.labels
    assert results["uncalibrated/image"]["acc"] == pytest.approx(100 * plain.double().mean().item())
    few = [c for c in range(K) if COUNTS[c] <= 4]
    of_few = [right[stored.labels == c].double().mean().item() for c in few]
    assert results["logn/image"]["few"] == pytest.approx(100 * np.mean(of_few))


def test_collection_and_evaluation_on_their_own_give_the_same(trained, tmp_path):
    cfg, folder, results = trained
    cfg = cfg.clone()
    cfg.MODEL.WEIGHTS, cfg.OUTPUT_DIR = str(folder / "model_final.pth"), str(tmp_path)
    path = str(tmp_path / "stats.safetensors")
    check_collection(cfg, path)
    run_collection(cfg, path, last_checkpoint=False, resume=False)
    cfg.MODEL.LOGN.STATISTICS = path
    check_evaluation(cfg)
    again = run_evaluation(cfg, last_checkpoint=False, resume=False)
    for name, metrics in results.items():
        assert again[name] == pytest.approx(metrics, nan_ok=True)


def test_collect_statistics_in_python(trained):
    cfg, folder, _ = trained
    model = model_of(cfg, folder)
    loader = build_statistics_loader(cfg)
    statistics = collect_statistics(model, loader, class_names=NAMES, population="images")
    raw = raw_logits(model, inputs_of(cfg)).double()
    calibrated = logn(statistics.stages[0], background="none")(raw)
    torch.testing.assert_close(calibrated.std(0), torch.ones(K).double(), rtol=1e-5, atol=1e-5)
    with pytest.raises(UserError, match="population is 'sampled'"):
        collect_statistics(model, loader, class_names=NAMES)


def test_logits_and_evaluator_of_a_pass(trained, tmp_path):
    cfg, folder, results = trained
    model = model_of(cfg, folder)
    stored = collect_logits(model, build_evaluation_loader(cfg, "im_test"))
    torch.testing.assert_close(stored.logits, raw_logits(model, inputs_of(cfg, "im_test")))
    stored.save(tmp_path / "z.safetensors")
    assert torch.equal(StoredLogits.load(tmp_path / "z.safetensors").logits, stored.logits)
    (tmp_path / "z.safetensors").write_bytes(b"broken")
    with pytest.raises(UserError, match="not a complete file of logits"):
        StoredLogits.load(tmp_path / "z.safetensors")
    evaluator = ImageEvaluator()
    found = inference_on_dataset(model, build_evaluation_loader(cfg, "im_test"), evaluator)
    assert found["image"]["acc"] == pytest.approx(results["uncalibrated/image"]["acc"])


@pytest.mark.parametrize("stage", ["crt", "lws", "classifier"])
def test_second_stages_train_the_classifier_alone(trained, tmp_path, stage):
    cfg, folder, _ = trained
    options = {
        "MODEL__LOGN__SECOND_STAGE": stage,
        "MODEL__WEIGHTS": str(folder / "model_final.pth"),
        "DATALOADER__SAMPLER_TRAIN": "ClassAwareTrainingSampler",
        "MODEL__LOGN__COLLECT__ENABLED": False,
    }
    second = config(tmp_path, **options)
    check_training(second, num_processes=1)
    results = run_training(second, resume=False)
    assert set(results) == {"uncalibrated/image"}
    before = torch.load(folder / "model_final.pth", weights_only=False)["model"]
    after = torch.load(tmp_path / "model_final.pth", weights_only=False)["model"]
    changed = {
        name
        for name in after
        if name not in before or not np.array_equal(after[name], before[name])
    }
    expected = {"head.cls_score.weight", "head.cls_score.bias"}
    assert changed == ({"head.cls_score.class_scale"} if stage == "lws" else expected)


def test_a_loss_that_is_not_calibrated_trains_and_evaluates(tmp_path):
    cfg = config(tmp_path, MODEL__LOGN__LOSS="logit_norm(tau=0.1)")
    cfg.SOLVER.MAX_ITER = 2
    with pytest.raises(UserError, match="are normalised after it"):
        run_training(cfg, resume=False)
    cfg.MODEL.LOGN.COLLECT.ENABLED = False
    assert set(run_training(cfg, resume=False)) == {"uncalibrated/image"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"DATASETS__TEST": ("im_boxes",)}, "'im_boxes' is a set for the evaluator 'coco'"),
        ({"MODEL__LOGN__COLLECT__POPULATION": "sampled"}, "POPULATION is sampled"),
        ({"MODEL__ROI_HEADS__NUM_CLASSES": 5}, "'im_train' has 4 classes"),
        ({"MODEL__LOGN__LOSS": "bags"}, "no form without background"),
        ({"MODEL__LOGN__CALIBRATION": "lognn"}, "Unknown calibration"),
        ({"DATASETS__TRAIN": ("im_trian",)}, "not registered"),
    ],
)
def test_mistakes_are_found_before_a_training(tmp_path, options, message):
    cfg = config(tmp_path)
    cfg.merge_from_list([v for k, x in options.items() for v in (k.replace("__", "."), x)])
    with pytest.raises((UserError, KeyError), match=message):
        check_training(cfg, num_processes=1)
