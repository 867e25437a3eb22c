"""Every command on a LazyConfig, compared with the YAML config of the same detector."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from logn_d2.cli.main import main
from logn_d2.config import config_file
from logn_d2.core import LogitStatistics
from logn_d2.data.loader import build_statistics_loader, training_images
from logn_d2.data.samplers import build_training_sampler, described_sampler
from logn_d2.engine import load_config
from logn_d2.lazy import _read, split_lazy_overrides
from logn_d2.passes.resume import deciding_settings
from logn_d2.sites import config_site
from logn_d2.source import source_of

from ..command import refusal

pytestmark = pytest.mark.usefixtures("one_thread")

YAML = """
MODEL:
  META_ARCHITECTURE: GeneralizedRCNN
  MASK_ON: False
  PIXEL_MEAN: [127.5, 127.5, 127.5]
  PIXEL_STD: [64.0, 64.0, 64.0]
  BACKBONE: {NAME: build_backbone_of_few_weights}
  FPN: {OUT_CHANNELS: 16}
  ANCHOR_GENERATOR: {SIZES: [[16, 32]], ASPECT_RATIOS: [[1.0]]}
  RPN: {IN_FEATURES: [p5], PRE_NMS_TOPK_TRAIN: 40, PRE_NMS_TOPK_TEST: 40,
        POST_NMS_TOPK_TRAIN: 20, POST_NMS_TOPK_TEST: 20}
  ROI_HEADS: {NAME: StandardROIHeads, IN_FEATURES: [p5], NUM_CLASSES: 12,
              BATCH_SIZE_PER_IMAGE: 16, SCORE_THRESH_TEST: 0.0001}
  ROI_BOX_HEAD: {NAME: FastRCNNConvFCHead, NUM_FC: 1, FC_DIM: 16, POOLER_RESOLUTION: 3,
                 POOLER_SAMPLING_RATIO: 1}
  LOGN: {VIS_IMAGES: 0, COLLECT: {MAX_IMAGES: 8}}
DATASETS: {TRAIN: [lt_glyphs_tiny_train], TEST: [lt_glyphs_tiny_val]}
DATALOADER: {NUM_WORKERS: 0, SAMPLER_TRAIN: RepeatFactorTrainingSampler, REPEAT_THRESHOLD: 0.5}
INPUT: {MIN_SIZE_TRAIN: [64], MAX_SIZE_TRAIN: 64, MIN_SIZE_TEST: 96, MAX_SIZE_TEST: 96,
        RANDOM_FLIP: none}
TEST: {DETECTIONS_PER_IMAGE: 30}
SOLVER: {IMS_PER_BATCH: 2, BASE_LR: 0.001, MAX_ITER: 3, STEPS: [2], WARMUP_ITERS: 1,
         WARMUP_FACTOR: 0.5, WEIGHT_DECAY: 0.0001}
SEED: 3
VERSION: 2
"""

LAZY = """
import detectron2.data.transforms as T
from detectron2 import model_zoo
from detectron2.config import LazyCall as L
from detectron2.data import DatasetMapper
from detectron2.data.samplers import RepeatFactorTrainingSampler
from detectron2.layers import ShapeSpec
from detectron2.solver import WarmupParamScheduler
from fvcore.common.param_scheduler import MultiStepParamScheduler

from tests.small_backbone import SmallBackbone


_zoo = model_zoo.get_config("COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.py")
model, dataloader, train, optimizer = _zoo.model, _zoo.dataloader, _zoo.train, _zoo.optimizer

model.backbone = L(SmallBackbone)(names=["p5"], channels=16)
model.pixel_mean, model.pixel_std = [127.5] * 3, [64.0] * 3
rpn = model.proposal_generator
rpn.in_features = ["p5"]
rpn.head.update(in_channels=16, num_anchors=2)
rpn.anchor_generator.update(sizes=[[16, 32]], aspect_ratios=[1.0], strides=[32])
rpn.update(pre_nms_topk=(40, 40), post_nms_topk=(20, 20))
heads = model.roi_heads
heads.update(num_classes=12, batch_size_per_image=16, box_in_features=["p5"])
heads.box_pooler.update(output_size=3, scales=(1 / 32,), sampling_ratio=1)
heads.box_head.update(input_shape=ShapeSpec(channels=16, height=3, width=3), fc_dims=[16])
heads.box_predictor.update(input_shape=ShapeSpec(channels=16), test_score_thresh=0.0001,
                           test_topk_per_image=30)
[heads.pop(name) for name in ("mask_in_features", "mask_pooler", "mask_head")]

resize = [L(T.ResizeShortestEdge)(short_edge_length=(64,), sample_style="choice", max_size=64)]
dataloader.train.dataset.names = "lt_glyphs_tiny_train"
dataloader.train.mapper.update(augmentations=resize, use_instance_mask=False)
dataloader.train.update(total_batch_size=2, num_workers=0)
dataloader.train.sampler = L(RepeatFactorTrainingSampler)(
    repeat_factors=L(RepeatFactorTrainingSampler.repeat_factors_from_category_frequency)(
        dataset_dicts="${dataloader.train.dataset}", repeat_thresh=0.5
    )
)
dataloader.test.dataset.names = "lt_glyphs_tiny_val"
dataloader.test.mapper.augmentations = [
    # Another size than training's, which tells the mappers apart.
    L(T.ResizeShortestEdge)(short_edge_length=(96,), sample_style="choice", max_size=96)
]
dataloader.test.num_workers = 0

lr_multiplier = L(WarmupParamScheduler)(
    scheduler=L(MultiStepParamScheduler)(values=[1.0, 0.1], milestones=[2, 3]),
    warmup_length=1 / 3, warmup_method="linear", warmup_factor=0.5,
)
optimizer.lr = 0.001
optimizer.params.update(weight_decay_norm=0.0, weight_decay_bias=0.0001)
train.update(init_checkpoint="", max_iter=3, eval_period=0, seed=3)
"""

OWN = ("MODEL.LOGN.VIS_IMAGES", "0", "MODEL.LOGN.COLLECT.MAX_IMAGES", "8")


class Runs:
    """The same training from a LazyConfig and from a YAML config."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.lazy, self.yaml = folder / "lazy.py", folder / "same.yaml"
        self.lazy.write_text(LAZY)
        self.yaml.write_text(YAML)
        self.train("lazy")
        main(["train", "--config-file", str(self.yaml), "OUTPUT_DIR", str(folder / "yaml")])
        self.weights = folder / "lazy" / "model_final.pth"
        self.stats = folder / "lazy" / "logn_stats.safetensors"

    def train(self, name: str, *more: str) -> int:
        options = ("--config-file", str(self.lazy), f"train.output_dir={self.folder / name}")
        return main(["train", *options, *OWN, *more])

    def __call__(self, command: str, *more: str, config: Path | None = None) -> int:
        options = ["--config-file", str(config or self.lazy), "--weights", str(self.weights)]
        return main([command, *options, *more])


@pytest.fixture(scope="module")
def runs(tiny_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DETECTRON2_DATASETS", str(tiny_root))
        yield Runs(tmp_path_factory.mktemp("lazy"))


def results(folder: Path) -> list:
    return json.loads((folder / "results.json").read_text())["rows"]


def test_a_training_is_that_of_the_yaml_config_bit_for_bit(runs):
    first, second = (
        torch.load(runs.folder / name / "model_final.pth", weights_only=True)["model"]
        for name in ("lazy", "yaml")
    )
    assert list(first) == list(second)
    assert all(torch.equal(first[name], second[name]) for name in first)
    inference = "inference/lt_glyphs_tiny_val"
    found = results(runs.folder / "lazy" / inference)
    assert [row["calibration"] for row in found] == ["uncalibrated", "logn"]
    assert found == results(runs.folder / "yaml" / inference)


def test_statistics_are_those_of_the_yaml_config(runs, tmp_path):
    first, second = (
        LogitStatistics.load(runs.folder / name / "logn_stats.safetensors").stages[0]
        for name in ("lazy", "yaml")
    )
    assert torch.equal(first.mean, second.mean) and torch.equal(first.var, second.var)
    assert runs("collect", "--output", str(tmp_path / "s.safetensors"), *OWN) == 0
    again = LogitStatistics.load(tmp_path / "s.safetensors").stages[0]
    assert torch.equal(first.mean, again.mean)


def test_evaluate_and_sweep_equal_the_evaluation_after_training(runs, tmp_path):
    expected = results(runs.folder / "lazy" / "inference/lt_glyphs_tiny_val")
    stats = ("--stats", str(runs.stats))
    assert runs("evaluate", *stats, "--output", str(tmp_path / "evaluation")) == 0
    assert results(tmp_path / "evaluation" / "inference/lt_glyphs_tiny_val") == expected
    assert runs("sweep", *stats, "--output", str(tmp_path), "--calibrations", "logn") == 0
    swept = [{k: row[k] for k in ("calibration", "bbox")} for row in results(tmp_path)]
    assert swept == [{k: row[k] for k in ("calibration", "bbox")} for row in expected]
    # The folder's config.yaml stands for the LazyConfig.
    assert (
        runs("evaluate", "--output", str(tmp_path / "again"), config=tmp_path / "config.yaml") == 0
    )


def test_a_folded_checkpoint_is_the_calibrated_model(runs, tmp_path, capsys):
    folded = tmp_path / "folded.pth"
    assert (
        runs("fold", "--stats", str(runs.stats), "--output", str(folded), "--num-images", "2") == 0
    )
    assert f"train.init_checkpoint of {runs.lazy}" in capsys.readouterr().out
    runs.weights, weights = folded, runs.weights
    try:
        assert runs("evaluate", "--output", str(tmp_path)) == 0
    finally:
        runs.weights = weights
    (row,) = results(tmp_path / "inference/lt_glyphs_tiny_val")
    expected = results(runs.folder / "lazy" / "inference/lt_glyphs_tiny_val")[1]
    assert row["bbox"]["AP"] == pytest.approx(expected["bbox"]["AP"], abs=1e-3)


def test_pictures(runs, tiny_root, tmp_path):
    image = next(path for path in tiny_root.rglob("*") if path.suffix in (".jpg", ".png"))
    options = ("--stats", str(runs.stats), "--input", str(image), "--output", str(tmp_path))
    assert runs("show", *options) == 0
    assert list(tmp_path.glob("*.*"))


def test_an_interrupted_training_resumes_and_a_changed_file_is_refused(runs):
    assert runs.train("lazy", "--resume") == 0
    text = runs.lazy.read_text()
    config = runs.folder / "lazy" / "config.yaml"
    try:
        runs.lazy.write_text(text + "\nmodel.roi_heads.batch_size_per_image = 17\n")

        _read.cache_clear()  # as in a new process
        with pytest.raises(ValueError, match=r"lazy\.py has changed since .* was made from it"):
            load_config(config)
    finally:
        runs.lazy.write_text(text)
        _read.cache_clear()


def test_overrides_reach_the_model_and_unknown_keys_are_refused(runs, capsys):
    cfg = load_config(runs.lazy, ["model.roi_heads.num_classes=7", "train.device=cpu"])
    assert source_of(cfg).model().roi_heads.box_predictor.cls_score.out_features == 8
    assert cfg.MODEL.ROI_HEADS.NUM_CLASSES == 7
    changes = ["train.amp.enabled=true", "train.checkpointer.period=7", "train.eval_period=5"]
    changes += ["dataloader.train.num_workers=2", "dataloader.train.total_batch_size=6"]
    changes += ["+dataloader.train.aspect_ratio_grouping=false"]
    changes += ["+dataloader.train.dataset.filter_empty=false"]
    cfg = load_config(runs.lazy, changes)
    solver, loader = cfg.SOLVER, cfg.DATALOADER
    assert (solver.AMP.ENABLED, solver.CHECKPOINT_PERIOD, cfg.TEST.EVAL_PERIOD) == (True, 7, 5)
    assert (loader.NUM_WORKERS, solver.IMS_PER_BATCH) == (2, 6)
    assert not loader.ASPECT_RATIO_GROUPING and not loader.FILTER_EMPTY_ANNOTATIONS
    text = refusal(capsys, runs, "evaluate", "model.roi_heads.num_clases=7")
    assert "no key model.roi_heads.num_clases; is it model.roi_heads.num_classes?" in text
    text = refusal(capsys, runs, "evaluate", "model.pixel_std=[1.0")
    assert "is not a valid KEY=VALUE" in text
    text = refusal(capsys, runs, "evaluate", "MODEL.ROI_HEADS.NUM_CLASSES", "7")
    assert "MODEL.ROI_HEADS.NUM_CLASSES has no effect beside a LazyConfig" in text
    text = refusal(capsys, runs, "evaluate", "model.roi_heads.num_classes=7")
    assert "'lt_glyphs_tiny_train' has 12 classes, MODEL.ROI_HEADS.NUM_CLASSES is 7" in text


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("del train", "has no 'train'"),
        ("del lr_multiplier", "has no 'lr_multiplier', which training needs"),
        (
            "dataloader.train.dataset._target_ = 'builtins.dict'",
            "does not call get_detection_dataset_dicts",
        ),
        ("model.roi_heads.pop('num_classes')", "can't know its classes"),
        ("train.model_ema = dict(enabled=True)", "does not average weights"),
        ("def of_python(:", "is not valid Python"),
        ("del train.max_iter", "lacks a setting that commands need (Missing key max_iter"),
    ],
)
def test_what_commands_cannot_use_is_refused(runs, tmp_path, capsys, line, said):
    broken = tmp_path / "broken.py"
    broken.write_text(f"{LAZY}\n{line}\n")
    assert said in refusal(capsys, main, ["train", "--config-file", str(broken)])


def test_overrides_are_told_from_pairs():
    assert split_lazy_overrides(
        ["+train.seed=1", "MODEL.LOGN.CALIBRATION", "norcal(gamma=0.6)"]
    ) == (
        ["+train.seed=1"],
        ["MODEL.LOGN.CALIBRATION", "norcal(gamma=0.6)"],
    )
    assert split_lazy_overrides([]) == ([], [])
    with pytest.raises(ValueError, match=r"SOLVER\.MAX_ITER has no effect"):
        split_lazy_overrides(["SOLVER.MAX_ITER", "3"])
    with pytest.raises(ValueError, match=r"MODEL\.LOGN\.LOSS has no effect"):
        split_lazy_overrides(["MODEL.LOGN.LOSS", "seesaw"])


CASCADE = """
from detectron2 import model_zoo

_zoo = model_zoo.get_config("COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.py")
model, dataloader, train = _zoo.model, _zoo.dataloader, _zoo.train
model = model_zoo.get_config("common/models/cascade_rcnn.py").model
model.roi_heads.num_classes = 7
"""


def test_cascades_dense_detectors_and_classifiers_are_understood(tmp_path):
    (tmp_path / "cascade.py").write_text(CASCADE)
    cfg = load_config(tmp_path / "cascade.py")
    assert (cfg.MODEL.ROI_HEADS.NAME, cfg.MODEL.ROI_HEADS.NUM_CLASSES) == ("CascadeROIHeads", 7)
    assert cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST == 0.05
    assert cfg.MODEL.MASK_ON and cfg.TEST.DETECTIONS_PER_IMAGE == 100

    text = 'from detectron2 import model_zoo\n_zoo = model_zoo.get_config("COCO-Detection/retin'
    text += (
        'anet_R_50_FPN_1x.py")\nmodel, dataloader, train = _zoo.model, _zoo.dataloader, _zoo.train'
    )
    (tmp_path / "retinanet.py").write_text(text)
    cfg = load_config(tmp_path / "retinanet.py", ["model.num_classes=9"])
    assert (cfg.MODEL.META_ARCHITECTURE, cfg.MODEL.RETINANET.NUM_CLASSES) == ("RetinaNet", 9)
    assert cfg.MODEL.RETINANET.SCORE_THRESH_TEST == 0.05
    cfg.MODEL.META_ARCHITECTURE = "FCOS"  # has the same keys, and newer releases alone have it
    assert (config_site(cfg).background, config_site(cfg).classes_in(cfg)) == ("none", 9)
    assert not cfg.MODEL.MASK_ON

    cfg = load_config(config_file("lazy/mask_rcnn_R_50_FPN_lvis_v1_logn.py"))
    assert cfg.DATASETS.TRAIN == ("lvis_v1_train",)
    assert cfg.DATALOADER.SAMPLER_TRAIN == "RepeatFactorTrainingSampler"
    assert (cfg.DATALOADER.REPEAT_THRESHOLD, cfg.SOLVER.MAX_ITER) == (0.001, 149082)

    cfg = load_config(config_file("lazy/image_classifier_glyphs_lt_cosine.py"))
    assert (cfg.MODEL.META_ARCHITECTURE, cfg.MODEL.ROI_HEADS.NUM_CLASSES) == ("ImageClassifier", 60)
    assert cfg.MODEL.LOGN.COLLECT.POPULATION == "images"


def test_passes_depend_on_the_content_of_the_file_not_on_its_path(runs, tmp_path):
    settings = deciding_settings(load_config(runs.lazy))
    moved = tmp_path / "moved.py"
    moved.write_text(LAZY)
    assert deciding_settings(load_config(moved)) == settings
    # A crop can take an object's mask away, so that statistics passes read masks then.
    assert not load_config(moved).INPUT.CROP.ENABLED
    crop = 'resize += [L(T.RandomCrop)(crop_type="relative", crop_size=[0.9, 0.9])]'
    moved.write_text(
        LAZY.replace("dataloader.train.dataset.names", f"{crop}\ndataloader.train.dataset.names")
    )
    _read.cache_clear()  # as in a new process
    changed = load_config(moved)
    assert changed.INPUT.CROP.ENABLED
    assert deciding_settings(changed) != settings


def test_a_sampler_of_ones_own_trains_and_a_statistics_pass_visits_each_image_once(
    runs, tmp_path, caplog
):
    own = tmp_path / "own_sampler.py"
    own.write_text(
        f"{LAZY}\nfrom torch.utils.data import RandomSampler\n"
        "dataloader.train.sampler = L(RandomSampler)(\n"
        '    data_source="${dataloader.train.dataset}", replacement=True, num_samples=10**6\n)\n'
    )
    cfg = load_config(own, ["train.device=cpu"])
    images = training_images(cfg)
    sampler = build_training_sampler(cfg, images)
    assert type(sampler).__name__ == "RandomSampler" and len(sampler.data_source) == len(images)
    assert described_sampler(cfg) == "TrainingSampler"  # as it is in the statistics
    with caplog.at_level("WARNING"):
        loader = build_statistics_loader(cfg, dataset=images)
    assert len(loader) == len(images)
    assert "The repeat factors of RandomSampler are unknown" in caplog.text
