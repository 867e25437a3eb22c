"""Every config of image classifiers names things that exist, and the small ones build."""

from __future__ import annotations

from pathlib import Path

import pytest
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog
from detectron2.modeling import build_model

from logn_d2.classification import ImageMapper, register_image_sets
from logn_d2.config import add_logn_config, config_file
from logn_d2.core import parse_calibration
from logn_d2.core.losses import build_loss_without_background
from logn_d2.modeling.second_stages import get_second_stage

FOLDER = Path(config_file("classification/glyphs_lt_linear.yaml")).parent
LEAVES = sorted(path.name for path in FOLDER.glob("*.yaml") if "Base" not in path.name)
# Kang et al.'s and the paper's rows of ImageNet-LT.
ROWS = (
    "softmax", "focal", "crt", "tau_norm", "lws", "eql", "balanced_softmax", "seesaw", "loga",
    "logn",
)  # fmt: skip


def load(name):
    cfg = get_cfg()
    add_logn_config(cfg)
    cfg.merge_from_file(str(FOLDER / name))
    cfg.MODEL.DEVICE = "cpu"
    return cfg


def test_every_row_of_the_papers_table_has_a_config():
    assert {f"imagenet_lt_{row}.yaml" for row in ROWS} <= set(LEAVES)


@pytest.mark.parametrize("name", LEAVES)
def test_config_names_things_that_exist(name):
    cfg = load(name)
    register_image_sets(cfg)
    node = cfg.MODEL.LOGN
    assert cfg.MODEL.META_ARCHITECTURE == "ImageClassifier"
    assert {*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST} <= set(DatasetCatalog.list())
    loss = build_loss_without_background(
        node.LOSS or "cross_entropy", cfg.MODEL.ROI_HEADS.NUM_CLASSES
    )
    assert loss.calibratable or not (node.COLLECT.ENABLED or node.CALIBRATION)
    if node.CALIBRATION:
        parse_calibration(node.CALIBRATION)
    get_second_stage(node.SECOND_STAGE)
    ImageMapper(cfg, is_train=True)
    assert len(cfg.MODEL.PIXEL_MEAN) == (1 if cfg.INPUT.FORMAT == "L" else 3)
    if cfg.MODEL.BACKBONE.NAME == "build_mlp_backbone":
        build_model(cfg)


def test_one_imagenet_model_builds():
    model = build_model(load("imagenet_lt_logn.yaml"))
    assert tuple(model.head.cls_score.weight.shape) == (1000, 2048)
