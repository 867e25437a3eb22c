"""The trainer's hooks, evaluators and samplers; whole trainings are in test_train_net.py."""

import collections
import itertools
import math

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.engine.hooks import EvalHook, PeriodicCheckpointer, PeriodicWriter
from detectron2.evaluation import COCOEvaluator

from logn_d2.data import class_counts
from logn_d2.engine import Trainer, check_training
from logn_d2.engine.hooks import StatisticsHook
from logn_d2.evaluators import LVISFormEvaluator
from logn_d2.passes.resume import deciding_settings


def kinds(trainer):
    known = (PeriodicCheckpointer, StatisticsHook, EvalHook, PeriodicWriter)
    return [type(hook) for hook in trainer._hooks if isinstance(hook, known)]


def test_writers_come_after_evaluation_and_evaluation_after_statistics(cfg):
    expected = [PeriodicCheckpointer, StatisticsHook, EvalHook, PeriodicWriter]
    assert kinds(Trainer(cfg)) == expected
    cfg.MODEL.LOGN.COLLECT.ENABLED = False
    expected.remove(StatisticsHook)
    assert kinds(Trainer(cfg)) == expected


def test_model_gives_raw_logits_whatever_the_config_calibrates(cfg):
    cfg.MODEL.LOGN.CALIBRATION = "norcal(gamma=0.6)"
    trainer = Trainer(cfg)
    assert trainer.model.roi_heads.box_predictor.calibration is None
    assert cfg.MODEL.LOGN.CALIBRATION == "norcal(gamma=0.6)"


def test_model_on_a_cpu_computes_in_channels_last_layout_and_gives_the_same(cfg):
    torch.manual_seed(0)
    model = Trainer.build_model(cfg).eval()
    images = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        found = model.backbone(images)["p3"]
        assert found.is_contiguous(memory_format=torch.channels_last)
        expected = model.to(memory_format=torch.contiguous_format).backbone(images)["p3"]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_evaluations_are_calibrated_where_there_are_statistics(cfg, monkeypatch):
    cfg.MODEL.LOGN.CALIBRATION = "logn(beta=mean)"
    cfg.MODEL.LOGN.VIS_IMAGES = 0
    calls = []

    def record(cfg, model, statistics, *, resume, **options):
        calls.append((cfg.MODEL.LOGN.CALIBRATION, statistics, resume))
        return {"uncalibrated/bbox": {"AP": 1.0, "APr": math.nan}}

    monkeypatch.setattr("logn_d2.engine.trainer.evaluate_calibrations", record)
    # What is made of the statistics is told by what it is made of.
    monkeypatch.setattr(
        "logn_d2.engine.trainer.make_calibrations",
        lambda cfg, model, statistics, counts: statistics,
    )
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=True)
    trainer.iter = 14
    assert trainer._evaluate() == {"uncalibrated/bbox": {"AP": 1.0}}
    trainer.statistics = "of iteration 14"
    trainer._evaluate()
    assert trainer.statistics is None  # the next iteration has other weights
    trainer.iter, trainer.statistics = 20, "gathered"
    trainer._evaluate()
    name = "logn(beta=mean)"
    assert calls == [
        ("", None, False),
        (name, "of iteration 14", False),
        (name, "gathered", True),
    ]
    assert trainer.statistics == "gathered"


def test_all_evaluations_of_a_training_count_the_classes_once(cfg, monkeypatch):
    cfg.MODEL.LOGN.CALIBRATION = "norcal(gamma=0.6)"
    cfg.MODEL.LOGN.COLLECT.ENABLED = False
    cfg.MODEL.LOGN.VIS_IMAGES = 1
    counted, shown, evaluated = [], [], []
    monkeypatch.setattr(
        "logn_d2.data.class_counts", lambda names: counted.append(names) or class_counts(names)
    )

    def record(cfg, model, calibrations, **options):
        evaluated.append(calibrations)
        return {}

    monkeypatch.setattr("logn_d2.engine.trainer.evaluate_calibrations", record)
    trainer = Trainer(cfg)
    trainer._compared_images.put = lambda storage, model, name, after: shown.append((name, after))
    trainer.storage = None
    for trainer.iter in (14, 20):
        trainer._evaluate()
    assert counted == [cfg.DATASETS.TRAIN]
    assert [name for name, _ in shown] == ["norcal(gamma=0.6)"] * 2
    for (name, after), calibrations in zip(shown, evaluated, strict=True):
        assert list(calibrations) == ["uncalibrated", name] and calibrations[name] is after


def test_failed_training_gathers_nothing(cfg):
    cfg.DATASETS.TEST = ()
    trainer = Trainer(cfg)
    collected = []
    trainer._collect = collected.append
    trainer._hooks = [h for h in trainer._hooks if not isinstance(h, StatisticsHook)]
    trainer.register_hooks([StatisticsHook(0, lambda: collected.append("statistics"))])

    def fail():
        raise FloatingPointError("diverged")

    trainer.run_step = fail
    with pytest.raises(FloatingPointError):
        trainer.train()
    assert collected == []


def test_evaluator_follows_the_metadata(cfg):
    cfg.freeze()
    assert isinstance(Trainer.build_evaluator(cfg, "lt_glyphs_tiny_val"), LVISFormEvaluator)
    MetadataCatalog.get("coco_like").set(
        evaluator_type="coco", json_file=MetadataCatalog.get("lt_glyphs_tiny_val").json_file
    )
    assert isinstance(Trainer.build_evaluator(cfg, "coco_like"), COCOEvaluator)
    MetadataCatalog.get("panoptic").evaluator_type = "panoptic"
    with pytest.raises(ValueError, match="'panoptic', expected 'lvis', 'coco' or 'classification'"):
        Trainer.build_evaluator(cfg, "panoptic")


def share_of_images_with_rare_classes(cfg, batches=40):
    """How large a share of the images that a training sees have one of the rarest classes."""
    counts = class_counts("lt_glyphs_tiny_train").image_count
    rare = set(np.flatnonzero(counts == counts.min()))
    np.random.seed(0)  # where Detectron2's samplers take their seed from
    records = DatasetCatalog.get("lt_glyphs_tiny_train")
    has_rare = {r["file_name"]: bool(rare & {a["category_id"] for a in r["annotations"]})
                for r in records}  # fmt: skip
    seen = collections.Counter()
    for batch in itertools.islice(Trainer.build_train_loader(cfg), batches):
        seen.update(has_rare[image["file_name"]] for image in batch)
    return seen[True] / seen.total()


def test_repeat_factor_sampling_shows_rare_classes_more_often(cfg):
    uniform = share_of_images_with_rare_classes(cfg)
    cfg.DATALOADER.SAMPLER_TRAIN = "RepeatFactorTrainingSampler"
    cfg.DATALOADER.REPEAT_THRESHOLD = 1.0
    assert share_of_images_with_rare_classes(cfg) > 1.2 * uniform


def test_settings_of_a_pass_omit_keys_without_effect(cfg):
    settings = deciding_settings(cfg)
    cfg.MODEL.LOGN.STATISTICS = cfg.MODEL.WEIGHTS = "other"
    cfg.MODEL.LOGN.COLLECT.CHECKPOINT_PERIOD = cfg.DATALOADER.NUM_WORKERS = 3
    cfg.MODEL.LOGN.COLLECT.STOP_AT = 0.5  # an evaluation has its statistics already
    cfg.SOLVER.BASE_LR = 1.0
    assert deciding_settings(cfg) == settings
    cfg.MODEL.RPN.POST_NMS_TOPK_TEST = 7
    assert deciding_settings(cfg) != settings


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("MODEL.LOGN.COLLECT.STOP_AT", 0.5),
        ("DATALOADER.REPEAT_THRESHOLD", 0.5),
        ("DATALOADER.REPEAT_SQRT", False),
        ("INPUT.MIN_SIZE_TEST", 33),
    ],
)
def test_settings_of_a_statistics_pass_include_population_and_repetition(cfg, key, value):
    cfg.DATALOADER.REPEAT_SQRT = True  # a key of newer releases of Detectron2
    settings = deciding_settings(cfg, collects=True)
    cfg.MODEL.LOGN.COLLECT.CHECKPOINT_PERIOD = cfg.MODEL.LOGN.COLLECT.PERIODIC_IMAGES = 3
    assert deciding_settings(cfg, collects=True) == settings
    cfg.merge_from_list([key, value])
    assert deciding_settings(cfg, collects=True) != settings


def test_a_loss_that_the_heads_do_not_know_is_refused(cfg):
    cfg.MODEL.LOGN.LOSS = "seesaw"
    cfg.MODEL.ROI_HEADS.NAME = "StandardROIHeads"
    with pytest.raises(ValueError, match="LOSS is seesaw, but .* is StandardROIHeads"):
        Trainer(cfg)


def test_statistics_of_a_loss_without_calibrations_are_refused_before_training(cfg):
    cfg.MODEL.LOGN.LOSS = "seesaw"
    with pytest.raises(ValueError, match="COLLECT.ENABLED to False"):
        Trainer(cfg)
    cfg.MODEL.LOGN.COLLECT.ENABLED = False
    assert StatisticsHook not in kinds(Trainer(cfg))


def test_test_time_augmentation_is_refused_before_any_work(cfg):
    cfg.TEST.AUG.ENABLED = True
    with pytest.raises(ValueError, match="TEST.AUG.ENABLED is True"):
        check_training(cfg, 1)
