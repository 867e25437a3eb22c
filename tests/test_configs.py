"""Every config loads, builds its model on the CPU, and agrees with the paper."""

import functools
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2 import model_zoo
from detectron2.config import LazyConfig, get_cfg, instantiate
from detectron2.data.datasets.lvis import get_lvis_instances_meta
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_model
from detectron2.modeling.roi_heads import build_roi_heads

from logn_d2 import add_logn_config
from logn_d2.config import config_file
from logn_d2.core import LogitMoments, LogitStatistics, StageStatistics, logn
from logn_d2.glyphs import get_size
from logn_d2.modeling import IMAGENET, CosineConv2d, CosineLinear, LogNFastRCNNOutputLayers
from logn_d2.sites import known_site

CONFIGS = Path(config_file("Base-LVIS-MaskRCNN.yaml")).parent
YAML = sorted(str(path.relative_to(CONFIGS)) for path in CONFIGS.rglob("*.yaml"))
LEAVES = [name for name in YAML if "Base" not in name]
# Configs of a method are in its folder; they are built small below, those of the models whole.
DENSE = [name for name in LEAVES if "retinanet" in name]
MODELS = [name for name in LEAVES if "/" not in name and name not in DENSE]
METHODS = [name for name in LEAVES if "/" in name and "classification/" not in name]
LAZY = sorted(str(path.relative_to(CONFIGS)) for path in CONFIGS.rglob("*.py"))
PAPER = {
    f"lvis_v1_{architecture}_FPN{sampler}.yaml": (depth, stages, sampler)
    for architecture, depth, stages in (
        ("mask_rcnn_R_50", 50, 1),
        ("mask_rcnn_R_101", 101, 1),
        ("cascade_mask_rcnn_R_101", 101, 3),
    )
    for sampler in ("", "_rfs")
}
ZOO = "LVIS{}-InstanceSegmentation/mask_rcnn_{}_FPN_1x.yaml"


def load(path):
    cfg = get_cfg()
    add_logn_config(cfg)
    cfg.merge_from_file(str(path))
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.LOGN.BACKBONE.WEIGHTS = ""  # no download, no optional package
    return cfg


def build(cfg):
    """The model; configs that differ in data and schedule alone have it in common."""
    return _build(cfg.MODEL.dump(), cfg.TEST.dump())


@functools.lru_cache(maxsize=1)  # several such models take gigabytes
def _build(model, test):
    cfg = get_cfg()
    add_logn_config(cfg)
    cfg.MODEL, cfg.TEST = cfg.load_cfg(model), cfg.load_cfg(test)
    return without_numbers(cfg)


def without_numbers(cfg):
    """The model with shapes alone: to draw the weights of the large ones takes seconds."""
    cfg.MODEL.DEVICE = "meta"
    with torch.device("meta"):
        return build_model(cfg)


@pytest.fixture(scope="module", params=MODELS)
def built(request):
    cfg = load(CONFIGS / request.param)
    return request.param, cfg, build(cfg)


def box_predictors(roi_heads):
    predictors = roi_heads.box_predictor
    return list(predictors) if isinstance(predictors, torch.nn.ModuleList) else [predictors]


def build_heads(cfg):
    strides = {"p2": 4, "p3": 8, "p4": 16, "p5": 32, "p6": 64}
    features = {name: ShapeSpec(channels=256, stride=stride) for name, stride in strides.items()}
    return build_roi_heads(cfg, features)


def test_config_builds_its_model(built):
    _, cfg, model = built
    for predictor in box_predictors(model.roi_heads):
        assert isinstance(predictor, LogNFastRCNNOutputLayers)
        assert predictor.num_classes == cfg.MODEL.ROI_HEADS.NUM_CLASSES
        assert predictor.calibration is None


@pytest.mark.parametrize("name", DENSE)
def test_detectors_without_box_predictors_have_a_site_of_all_classes(name):
    cfg = load(CONFIGS / name)
    classes = get_size(cfg.DATASETS.TRAIN[0].split("_")[2]).num_classes
    assert known_site(build(cfg)).num_classes == classes


def test_models_are_those_of_the_paper(built):
    name, cfg, model = built
    if name not in PAPER:
        return
    depth, stages, sampler = PAPER[name]
    predictors = box_predictors(model.roi_heads)
    assert len({id(predictor.cls_score) for predictor in predictors}) == stages
    for layer in (*(p.cls_score for p in predictors), model.roi_heads.mask_head.predictor):
        assert isinstance(layer, (CosineLinear, CosineConv2d))
        assert layer.temperature == 20 and layer.bias is not None
    assert (predictors[0].bbox_pred.out_features == 4) == (stages == 3)  # class-agnostic boxes
    assert (predictors[0].test_topk_per_image, predictors[0].test_nms_thresh) == (300, 0.5)
    assert cfg.MODEL.RESNETS.DEPTH == depth and f"R-{depth}.pkl" in cfg.MODEL.WEIGHTS
    rfs = "RepeatFactorTrainingSampler"
    assert cfg.DATALOADER.SAMPLER_TRAIN == (rfs if sampler else "TrainingSampler")
    assert not sampler or cfg.DATALOADER.REPEAT_THRESHOLD == 1e-3


def test_pixels_of_torchvision_backbones_are_those_of_their_weights():
    conventions = {"package": ((127.0,) * 3, (128.0,) * 3)}
    backbones = 0
    for name in YAML:
        cfg = get_cfg()
        add_logn_config(cfg)
        cfg.merge_from_file(str(CONFIGS / name))
        weights = cfg.MODEL.LOGN.BACKBONE.WEIGHTS
        if weights:
            expected = conventions.get(weights, (IMAGENET.mean, IMAGENET.std))
            assert (tuple(cfg.MODEL.PIXEL_MEAN), tuple(cfg.MODEL.PIXEL_STD)) == expected
            assert cfg.INPUT.FORMAT == "RGB" and not cfg.MODEL.WEIGHTS
            backbones += 1
    assert backbones


def test_all_models_of_the_paper_are_there():
    assert set(PAPER) <= set(MODELS)


@pytest.mark.parametrize("name", YAML)
def test_config_loads_and_has_a_description(name):
    load(CONFIGS / name)
    assert (CONFIGS / name).read_text().startswith("# ")


def test_outputs_of_two_configs_do_not_meet():
    folders = [load(CONFIGS / name).OUTPUT_DIR for name in LEAVES]
    assert len(set(folders)) == len(folders)
    assert all(folder.startswith("output/") for folder in folders)


@pytest.mark.parametrize("name", PAPER)
def test_schedule_of_the_paper_is_24_epochs(name):
    solver = load(CONFIGS / name).SOLVER
    images = 99_388  # of LVIS v1 that carry an annotation
    epochs = [step * solver.IMS_PER_BATCH / images for step in (*solver.STEPS, solver.MAX_ITER)]
    assert epochs == pytest.approx([16, 22, 24], abs=1e-3)
    assert (solver.BASE_LR, solver.MOMENTUM, solver.WEIGHT_DECAY) == (0.02, 0.9, 1e-4)


@pytest.mark.parametrize("name", [name for name in YAML if "lvis_v" in name])
def test_number_of_classes_is_that_of_the_data_set(name):
    cfg = load(CONFIGS / name)
    (dataset,) = cfg.DATASETS.TRAIN
    names = get_lvis_instances_meta(dataset.removesuffix("_train"))["thing_classes"]
    assert cfg.MODEL.ROI_HEADS.NUM_CLASSES == len(names)
    assert cfg.DATASETS.TEST == (dataset.replace("_train", "_val"),)


def write_statistics(path, version, num_classes):
    """A statistics file of the right classes."""
    moments = LogitMoments(num_classes + 1)
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        moments.update(torch.randn(20, num_classes + 1, generator=generator) - 4)
    stage = StageStatistics.from_moments(moments)
    names = tuple(get_lvis_instances_meta(f"lvis_{version}")["thing_classes"])
    LogitStatistics(stages=(stage,), class_names=names).save(path)
    return stage


@pytest.mark.parametrize("version", ["v0.5", "v1"])
def test_lvis_models_of_detectron2_need_only_the_name_of_the_heads(version, tmp_path):
    cfg = load(model_zoo.get_config_file(ZOO.format(version, "R_50")))
    plain = build_heads(cfg)
    cfg.MODEL.ROI_HEADS.NAME = "LogNROIHeads"
    heads = build_heads(cfg)
    assert heads.box_predictor.calibration is None
    heads.load_state_dict(plain.state_dict())  # their checkpoints fit
    path = tmp_path / "stats.safetensors"
    stage = write_statistics(path, version, cfg.MODEL.ROI_HEADS.NUM_CLASSES)
    cfg.MODEL.LOGN.STATISTICS = str(path)
    calibrated = build_heads(cfg)
    calibrated.load_state_dict(plain.state_dict())
    assert torch.equal(calibrated.box_predictor.calibration.scale, logn(stage).scale)


def test_a_complete_lvis_model_of_detectron2_builds():
    cfg = load(model_zoo.get_config_file(ZOO.format("v1", "X_101_32x8d")))
    cfg.MODEL.ROI_HEADS.NAME = "LogNROIHeads"
    assert isinstance(build(cfg).roi_heads.box_predictor, LogNFastRCNNOutputLayers)


def test_every_lazy_config_is_tested():
    assert LAZY == [
        "lazy/image_classifier_glyphs_lt_cosine.py",
        "lazy/mask_rcnn_R_50_FPN_lvis_v1_logn.py",
    ]


def shapes(model):
    return {name: tuple(value.shape) for name, value in model.state_dict().items()}


def test_lazy_config_is_the_yaml_config():
    lazy = LazyConfig.load(str(CONFIGS / LAZY[1]))
    cfg = load(CONFIGS / "lvis_v1_mask_rcnn_R_50_FPN_rfs.yaml")
    with torch.device("meta"):
        model = instantiate(lazy.model)
    assert shapes(model) == shapes(build(cfg))
    (mine,), (theirs,) = (box_predictors(m.roi_heads) for m in (model, build(cfg)))
    for field in ("test_score_thresh", "test_nms_thresh", "test_topk_per_image", "num_classes"):
        assert getattr(mine, field) == getattr(theirs, field)
    assert mine.cls_score.temperature == theirs.cls_score.temperature
    assert lazy.train.max_iter == cfg.SOLVER.MAX_ITER
    milestones = [*cfg.SOLVER.STEPS, cfg.SOLVER.MAX_ITER]
    assert list(lazy.lr_multiplier.scheduler.milestones) == milestones
    assert lazy.optimizer.lr == cfg.SOLVER.BASE_LR
    sampler = lazy.dataloader.train.sampler.repeat_factors
    assert sampler.repeat_thresh == cfg.DATALOADER.REPEAT_THRESHOLD
    assert lazy.train.init_checkpoint == cfg.MODEL.WEIGHTS


def test_lazy_classifier_is_the_yaml_config_and_trains():
    """A step on a few images of its own registered set, by the parts that the file names."""
    lazy = LazyConfig.load(str(CONFIGS / LAZY[0]))
    cfg = load(CONFIGS / "classification/glyphs_lt_cosine.yaml")
    model, twin = instantiate(lazy.model), build_model(cfg)
    assert shapes(model) == shapes(twin)
    model.load_state_dict(twin.state_dict())
    image = torch.randint(0, 256, (1, 16, 16), dtype=torch.uint8)
    scores = [each.eval()([{"image": image}])[0]["scores"] for each in (model, twin)]
    assert torch.equal(*scores)
    assert (lazy.train.max_iter, lazy.optimizer.lr) == (cfg.SOLVER.MAX_ITER, cfg.SOLVER.BASE_LR)
    assert lazy.optimizer.weight_decay == cfg.SOLVER.WEIGHT_DECAY
    assert lazy.dataloader.train.total_batch_size == cfg.SOLVER.IMS_PER_BATCH
    assert lazy.dataloader.train.dataset.names == cfg.DATASETS.TRAIN[0]
    assert lazy.dataloader.test.dataset.names == cfg.DATASETS.TEST[0]
    pixels = np.zeros((20, 20), np.uint8)
    record = {"file_name": "glyphs://0", "image_array": pixels, "label": 3, "image_id": 0}
    lazy.dataloader.train.dataset = [record] * 4
    lazy.dataloader.train.total_batch_size = 2
    lazy.optimizer.params.model = model
    optimizer, batch = instantiate(lazy.optimizer), next(iter(instantiate(lazy.dataloader.train)))
    before = model.head.cls_score.weight.detach().clone()
    model.train()(batch)["loss_cls"].backward()
    optimizer.step()
    assert not torch.equal(model.head.cls_score.weight, before)
    assert [instantiate(lazy.lr_multiplier)(where) for where in (0.0, 0.5)] == [1.0, 0.5]
