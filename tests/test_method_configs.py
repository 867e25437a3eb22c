"""The rows of the paper's Table 1: every method's config is correct, and trains."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.utils.events import EventStorage

from logn_d2 import add_logn_config
from logn_d2.collection import collect_from_config
from logn_d2.config import config_file
from logn_d2.core import ClassCounts, LogitStatistics, build_loss, parse_calibration
from logn_d2.core.losses import parse_loss
from logn_d2.engine import Trainer
from logn_d2.engine.second_stage import get_second_stage
from logn_d2.glyphs import register_glyphs
from logn_d2.modeling import calibrations_from_config
from logn_d2.modeling.build import TrainingClassCounts

from .paper_table1 import TABLE
from .small_backbone import SMALL_BACKBONE

CONFIGS = Path(config_file("Base-LVIS-MaskRCNN.yaml")).parent
LEAVES = {
    path
    for path in CONFIGS.rglob("*.yaml")
    if "Base" not in path.name and path.parent.name != "classification"
}
MODELS = sorted(path.name for path in LEAVES if path.parent == CONFIGS)
METHODS = sorted(str(path.relative_to(CONFIGS)) for path in LEAVES if path.parent != CONFIGS)
PAPER = ("eql", "eql_v2", "bags", "seesaw", "loce", "loga", "logn")
LVIS = [name for name in MODELS if name.startswith("lvis_v1") and "torchvision" not in name]
AFTER_TRAINING = ("loga", "logn")
NUM_CLASSES = 12  # of the tiny glyphs
SMALL = {
    "DATASETS.TRAIN": ("lt_glyphs_tiny_train",),
    "DATASETS.TEST": (),
    "DATALOADER.NUM_WORKERS": 0,
    "DATALOADER.ASPECT_RATIO_GROUPING": False,
    "INPUT.MIN_SIZE_TRAIN": (72,),
    "INPUT.MAX_SIZE_TRAIN": 72,
    "MODEL.BACKBONE.NAME": SMALL_BACKBONE,
    "MODEL.DEVICE": "cpu",
    "MODEL.FPN.OUT_CHANNELS": 8,
    "MODEL.PIXEL_STD": [64.0, 64.0, 64.0],
    "MODEL.ROI_BOX_HEAD.FC_DIM": 16,
    "MODEL.ROI_BOX_HEAD.NUM_FC": 1,
    "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION": 3,
    "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": 16,
    "MODEL.ROI_HEADS.NUM_CLASSES": NUM_CLASSES,
    "MODEL.ROI_MASK_HEAD.CONV_DIM": 4,
    "MODEL.ROI_MASK_HEAD.NUM_CONV": 1,
    "MODEL.RPN.POST_NMS_TOPK_TRAIN": 20,
    "MODEL.WEIGHTS": "",
    "SOLVER.IMS_PER_BATCH": 1,
}


@pytest.fixture(scope="module")
def glyphs(tiny_root):
    register_glyphs(tiny_root)


def load(path):
    cfg = get_cfg()
    add_logn_config(cfg)
    cfg.merge_from_file(str(path))
    return cfg


def method_of(name):
    return name.partition("/")[0]


def model_of(name):
    """The config of the model that a method changes."""
    return name.partition("/")[2]


def first_stage_of(name):
    """The config of what a method goes on from: BAGS from linear predictors, as its source."""
    return f"linear/{model_of(name)}" if method_of(name) == "bags" else model_of(name)


def small(name, folder):
    """The config with everything about it small but the method."""
    cfg = load(CONFIGS / name)
    cfg.merge_from_list([part for pair in SMALL.items() for part in pair])
    cfg.MODEL.LOGN.STATISTICS = ""
    cfg.OUTPUT_DIR = str(folder)
    return cfg


def test_every_row_of_the_paper_has_a_config():
    expected = {f"{method}/{model}" for method in PAPER for model in LVIS}
    assert len(LVIS) == 6 and expected <= set(METHODS)
    # Methods are compared on the detector from random weights (docs/results.md).
    glyphs = [name for name in MODELS if "glyphs_demo_mask_rcnn_R_18" in name]
    assert len(glyphs) == 2
    assert {f"{method}/{model}" for method in PAPER for model in glyphs} <= set(METHODS)


@pytest.mark.parametrize("name", METHODS)
def test_leaf_is_a_diff(name):
    lines = (CONFIGS / name).read_text().splitlines()
    assert lines[0].startswith("# ") and len(lines) <= 8
    assert lines[1].startswith(f"_BASE_: [../{model_of(name)}, Base-")


@pytest.mark.parametrize("name", METHODS)
def test_names_in_a_config_exist(name):
    model = load(CONFIGS / name).MODEL
    node = model.LOGN
    other = node.CLASSIFIER == "linear" or model.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG
    if node.LOSS:
        parse_loss(node.LOSS)
    if node.CALIBRATION:
        parse_calibration(node.CALIBRATION)
    get_second_stage(node.SECOND_STAGE)
    assert (
        node.LOSS or node.CALIBRATION or node.SECOND_STAGE or node.CLASSIFIER == "linear" or other
    )


@pytest.mark.parametrize("name", METHODS)
def test_data_model_and_sampler_are_those_of_its_model(name):
    cfg, model = load(CONFIGS / name), load(CONFIGS / model_of(name))
    assert cfg.DATASETS == model.DATASETS and cfg.INPUT == model.INPUT
    assert cfg.MODEL.RESNETS == model.MODEL.RESNETS and cfg.TEST == model.TEST
    if method_of(name) not in ("crt", "lws"):
        assert cfg.DATALOADER == model.DATALOADER
    assert cfg.OUTPUT_DIR == model.OUTPUT_DIR.replace("output/", f"output/{method_of(name)}/")


@pytest.mark.parametrize("name", METHODS)
def test_methods_that_start_from_a_model_name_its_files(name):
    cfg, model = load(CONFIGS / name), load(CONFIGS / first_stage_of(name))
    goes_on = cfg.MODEL.LOGN.SECOND_STAGE or method_of(name) in AFTER_TRAINING
    weights = f"{model.OUTPUT_DIR}/model_final.pth"
    assert cfg.MODEL.WEIGHTS == (weights if goes_on else model.MODEL.WEIGHTS)
    statistics = f"{model.OUTPUT_DIR}/logn_stats.safetensors"
    assert cfg.MODEL.LOGN.STATISTICS == (statistics if method_of(name) == "logn" else "")


@pytest.mark.parametrize(("method", "epochs"), [("bags", (8, 11, 12)), ("loce", (3, 5, 6))])
def test_second_stages_of_the_paper_are_as_long_as_their_sources(method, epochs):
    for name in LVIS:
        solver = load(CONFIGS / method / name).SOLVER
        steps = (*solver.STEPS, solver.MAX_ITER)
        found = [step * solver.IMS_PER_BATCH / 99_388 for step in steps]
        assert found == pytest.approx(epochs, abs=1e-3)


# Iterations of the second and of the first stage in the sources: BAGS 12 epochs each, cRT and LWS
# 75,000 steps of 16 images after 12 epochs of LVIS v1, LOCE 6 epochs after 24.
PARTS = {"bags": 12 / 12, "crt": 75_000 * 16 / 99_388 / 12, "lws": 75_000 * 16 / 99_388 / 12}
PARTS["loce"] = 6 / 24


@pytest.mark.parametrize("method", PARTS)
def test_second_stages_on_glyphs_are_the_same_part_of_their_first(method):
    names = [name for name in METHODS if name.startswith(f"{method}/glyphs")]
    assert len(names) == 2
    for name in names:
        first, second = load(CONFIGS / first_stage_of(name)).SOLVER, load(CONFIGS / name).SOLVER
        assert second.MAX_ITER / first.MAX_ITER == pytest.approx(PARTS[method], rel=0.01)
        assert second.BASE_LR == first.BASE_LR


@pytest.mark.parametrize("name", [name for name in METHODS if name.startswith("bags/")])
def test_bags_has_the_predictors_of_its_first_stage(name):
    cfg, first = load(CONFIGS / name).MODEL, load(CONFIGS / first_stage_of(name)).MODEL
    assert cfg.LOGN.CLASSIFIER == first.LOGN.CLASSIFIER == "linear"
    assert cfg.ROI_MASK_HEAD == first.ROI_MASK_HEAD


def test_eql_spares_the_classes_that_its_source_spares():
    # Its table's shares are of the 99,388 images with annotations, as ours are.
    images = np.arange(1, 200)
    counts = ClassCounts(tuple(map(str, images)), images, images, 99_388)
    loss = build_loss(load(CONFIGS / "eql" / LVIS[0]).MODEL.LOGN.LOSS, len(images), counts)
    # A foreground RoI of the last class: a spared one does not push the others down.
    logits = torch.zeros(1, len(images) + 1, requires_grad=True)
    loss(logits, torch.tensor([len(images) - 1])).backward()
    assert (logits.grad[0, : len(images)] == 0).sum() == 109


def weights_of_first_stage(cfg, folder):
    """A checkpoint that a second stage can begin from."""
    cfg = cfg.clone()
    cfg.MODEL.LOGN.LOSS = cfg.MODEL.LOGN.SECOND_STAGE = ""
    path = folder / "first.pth"
    torch.save({"model": Trainer.build_model(cfg).state_dict()}, path)
    return str(path)


TRAINED = [
    name
    for name in METHODS
    if name.endswith(("/lvis_v1_mask_rcnn_R_50_FPN.yaml", "cascade_mask_rcnn_R_101_FPN.yaml"))
    and not name.startswith(AFTER_TRAINING)
]


@pytest.mark.parametrize("name", TRAINED)
def test_method_takes_a_step(name, glyphs, tmp_path):
    cfg = small(name, tmp_path)
    if cfg.MODEL.LOGN.SECOND_STAGE:
        cfg.MODEL.WEIGHTS = weights_of_first_stage(cfg, tmp_path)
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=False)
    with EventStorage() as storage:
        trainer.run_step()
    losses = {key: value for key, (value, _) in storage.latest().items() if "loss" in key}
    assert losses and all(torch.tensor(value).isfinite() for value in losses.values())
    assert any(parameter.grad is not None for parameter in trainer.model.parameters())


@pytest.mark.parametrize("method", AFTER_TRAINING)
@pytest.mark.parametrize("model", ["mask_rcnn_R_50_FPN", "cascade_mask_rcnn_R_101_FPN_rfs"])
def test_calibration_is_made_and_used(method, model, glyphs, tmp_path):
    cfg = small(f"{method}/lvis_v1_{model}.yaml", tmp_path)
    cfg.MODEL.LOGN.COLLECT.MAX_IMAGES = 2
    cfg.MODEL.LOGN.COLLECT.AUGMENT = False
    if method == "logn":
        plain = cfg.clone()
        plain.MODEL.LOGN.CALIBRATION = ""
        path = tmp_path / "stats.safetensors"
        collect_from_config(plain, Trainer.build_model(plain), path)
        assert LogitStatistics.load(path).num_classes == NUM_CLASSES
        cfg.MODEL.LOGN.STATISTICS = str(path)
    stages = 3 if "cascade" in model else 1
    calibrations, _ = calibrations_from_config(cfg, [None] * stages, TrainingClassCounts(cfg))
    assert [each.num_classes for each in calibrations] == [NUM_CLASSES] * stages
    assert not any(torch.equal(each.shift, torch.zeros(NUM_CLASSES)) for each in calibrations)


def test_docs_name_the_config_of_every_row():
    text = (Path(__file__).parents[1] / "docs" / "methods.md").read_text()
    rows = {f"{folder}{name}" for folder in ("", *(f"{each}/" for each in PAPER)) for name in LVIS}
    named = set(re.findall(r"`configs/(\S+lvis_v1\S+\.yaml|lvis_v1\S+\.yaml)`", text))
    assert named == rows and len(rows) == 48


def test_docs_have_the_papers_figures_and_mark_rows_of_our_own():
    text = (Path(__file__).parents[1] / "docs" / "methods.md").read_text()
    row_of = r"^\| ((?:Cascade )?Mask R-CNN R-\d+) \| (random|RFS) \| ([^|]+) \|(.*)"
    lines = re.findall(row_of, text, re.M)
    assert len(lines) == 48
    for detector, sampler, method, rest in lines:
        row = TABLE[detector].get(method.strip(), (None, None))[sampler == "RFS"]
        cell = rest.split("|")[-2].strip()
        expected = "ours" if row is None else " / ".join(f"{value:.1f}" for value in row)
        assert cell == expected, (detector, sampler, method)
