"""Every command on a RetinaNet: train, collect, evaluate, sweep, fold, show."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.modeling import build_model
from PIL import Image

from logn_d2.cli.main import main
from logn_d2.config import config_file
from logn_d2.core import LogitStatistics
from logn_d2.engine import load_config

from ..command import refusal

pytestmark = pytest.mark.usefixtures("one_thread")

CLASSES = 12
CALIBRATION = "logn(use_mean=False, std_reference=geometric)"


class Run:
    """A training of two steps, which ended with statistics and both evaluations."""

    def __init__(self, folder: Path, root: Path) -> None:
        self.folder, self.root = folder, root
        cfg = load_config(config_file("glyphs_tiny_mask_rcnn_R_18_FPN.yaml"))
        cfg.merge_from_file(config_file("glyphs_demo_retinanet_R_18_FPN.yaml"))
        cfg.MODEL.RETINANET.NUM_CLASSES, cfg.MODEL.RETINANET.NUM_CONVS = CLASSES, 1
        cfg.MODEL.DEVICE = "cpu"
        cfg.MODEL.FPN.OUT_CHANNELS = 16
        cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = ("lt_glyphs_tiny_train",), ("lt_glyphs_tiny_val",)
        cfg.SOLVER.MAX_ITER, cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.WARMUP_ITERS = 2, 2, 1
        cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MIN_SIZE_TEST = (64,), 64
        cfg.INPUT.MAX_SIZE_TRAIN = cfg.INPUT.MAX_SIZE_TEST = 64
        cfg.MODEL.LOGN.COLLECT.MAX_IMAGES = 6
        cfg.MODEL.LOGN.CALIBRATION = CALIBRATION
        cfg.MODEL.LOGN.VIS_IMAGES = 1
        cfg.OUTPUT_DIR = str(folder / "train")
        self.config = folder / "retinanet.yaml"
        self.config.write_text(cfg.dump())
        self.train = main(["train", "--config-file", str(self.config)])
        self.weights = folder / "train" / "model_final.pth"
        self.stats = folder / "train" / "logn_stats.safetensors"

    def __call__(self, command: str, *more: str) -> int:
        options = ["--config-file", str(self.config), "--weights", str(self.weights)]
        return main([command, *options, *more])


@pytest.fixture(scope="module")
def run(tiny_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DETECTRON2_DATASETS", str(tiny_root))
        yield Run(tmp_path_factory.mktemp("retinanet"), tiny_root)


def rows(path: Path) -> dict[str, float]:
    content = json.loads(path.read_text())["rows"]
    return {row["calibration"]: row["bbox"]["AP"] for row in content}


def test_a_training_ends_with_statistics_and_both_evaluations(run):
    assert run.train == 0
    statistics = LogitStatistics.load(run.stats)
    assert (statistics.site, statistics.num_classes) == ("RetinaNet", CLASSES)
    assert (statistics.background, statistics.activation) == ("none", "sigmoid")
    found = rows(run.folder / "train" / "inference" / "lt_glyphs_tiny_val" / "results.json")
    assert list(found) == ["uncalibrated", CALIBRATION]


def test_collecting_again_gives_the_same_statistics(run, tmp_path):
    path = tmp_path / "again.safetensors"
    assert run("collect", "--output", str(path)) == 0
    again, first = LogitStatistics.load(path), LogitStatistics.load(run.stats)
    assert again.stages[0].mean.equal(first.stages[0].mean)
    assert main(["stats", "show", str(path)]) == 0


def test_a_sweep_has_the_figures_of_the_evaluation(run, tmp_path):
    evaluated, swept = tmp_path / "evaluated", tmp_path / "swept"
    stats = ["--stats", str(run.stats)]
    calibrations = ["--calibrations", "logn", CALIBRATION, "norcal(gamma=0.6)"]
    assert run("evaluate", *stats, "--calibration", CALIBRATION, "--output", str(evaluated)) == 0
    assert run("sweep", *stats, *calibrations, "--output", str(swept)) == 0
    first = rows(evaluated / "inference" / "lt_glyphs_tiny_val" / "results.json")
    found = rows(swept / "results.json")
    assert list(found) == ["uncalibrated", "logn", CALIBRATION, "norcal(gamma=0.6)"]
    assert {name: found[name] for name in first} == first


def test_the_folded_checkpoint_is_plain_detectron2s(run, tmp_path):
    folded = tmp_path / "folded.pth"
    given = ["--stats", str(run.stats), "--calibration", CALIBRATION, "--output", str(folded)]
    assert run("fold", *given) == 0
    cfg = get_cfg()
    cfg.merge_from_file(str(folded.with_suffix(".yaml")))
    assert cfg.MODEL.META_ARCHITECTURE == "RetinaNet" and "LOGN" not in cfg.MODEL
    model = build_model(cfg)
    state = torch.load(folded, weights_only=True)["model"]
    assert not model.load_state_dict(state, strict=False).missing_keys
    before = torch.load(run.weights, weights_only=True)["model"]
    changed = [name for name in state if not torch.equal(state[name], before[name])]
    assert changed and all(name.startswith("head.cls_score") for name in changed)


def test_both_sides_are_shown(run, tmp_path):
    picture, shown = tmp_path / "in.png", tmp_path / "out.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)).save(picture)
    given = ["--input", str(picture), "--output", str(shown), "--confidence-threshold", "0.001"]
    assert run("show", "--stats", str(run.stats), "--calibration", CALIBRATION, *given) == 0
    assert shown.is_file()


@pytest.mark.parametrize(
    ("command", "more", "says"),
    [
        ("sweep", ["--calibrations", "fracal", "--output", "out"], "only for softmax scores"),
        ("evaluate", ["--calibration", "fracal"], "only for softmax scores"),
        ("sweep", ["--save-outputs", "kept", "--output", "out"], "can't be stored"),
        ("show", ["--input", "x", "--output", "y", "--calibration", "fracal"], "softmax"),
        ("collect", ["MODEL.RETINANET.NUM_CLASSES", "13"], "MODEL.RETINANET.NUM_CLASSES is 13"),
        ("fold", ["--output", "f.pth", "MODEL.RETINANET.NUM_CLASSES", "9"], "NUM_CLASSES is 9"),
        ("train", ["MODEL.LOGN.LOSS", "seesaw"], "a RetinaNet trains with its own loss"),
        ("train", ["MODEL.LOGN.SECOND_STAGE", "crt"], "second stages are for R-CNN"),
    ],
)
def test_what_can_not_work_is_refused_before_any_pass(run, tmp_path, capsys, command, more, says):
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        assert says in refusal(capsys, run, command, *more, "OUTPUT_DIR", str(tmp_path))
