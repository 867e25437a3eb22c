"""Tests of `logn fold`, ending in a Detectron2 that can't import logn_d2."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.detection_utils import read_image
from detectron2.engine import DefaultPredictor
from detectron2.modeling import build_model
from detectron2.modeling.roi_heads import (
    ROI_HEADS_REGISTRY,
    FastRCNNOutputLayers,
    StandardROIHeads,
)
from detectron2.structures import Boxes, Instances
from PIL import Image
from torch import nn

from logn_d2.config import add_logn_config
from logn_d2.core import LogitMoments, LogitStatistics, StageStatistics
from logn_d2.data import register_lvis_form
from logn_d2.modeling import LogitRecorder, find_box_predictors, predictor_fingerprint

from ..command import command

NUM_CLASSES = 5
HEADS = ["LogNROIHeads", "LogNRes5ROIHeads", "LogNCascadeROIHeads"]

# Everything that a project without logn_d2 does.
PLAIN_DETECTRON2 = """
import sys
sys.modules["logn_d2"] = None  # any import of it fails
import torch
from detectron2.config import get_cfg
from detectron2.data.detection_utils import read_image
from detectron2.engine import DefaultPredictor

for config, image, output in zip(sys.argv[1::3], sys.argv[2::3], sys.argv[3::3]):
    cfg = get_cfg()
    cfg.merge_from_file(config)
    found = DefaultPredictor(cfg)(read_image(image, format="BGR"))["instances"]
    torch.save([found.pred_boxes.tensor, found.scores, found.pred_classes], output)
"""


script = command("fold")


def tiny_config(head: str) -> CfgNode:
    """A detector that Detectron2 alone can build, with very few channels."""
    cfg = get_cfg()
    add_logn_config(cfg)
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.MASK_ON = False
    cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = cfg.MODEL.RESNETS.STEM_OUT_CHANNELS = 8
    cfg.MODEL.RESNETS.WIDTH_PER_GROUP = 4
    cfg.MODEL.RESNETS.NORM = "BN"
    cfg.MODEL.PIXEL_STD = [60.0, 60.0, 60.0]
    cfg.MODEL.RPN.POST_NMS_TOPK_TEST = 30
    cfg.MODEL.ROI_HEADS.NAME = head
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = NUM_CLASSES
    cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = 0.01
    cfg.INPUT.MIN_SIZE_TEST = 64
    cfg.TEST.DETECTIONS_PER_IMAGE = 20
    cfg.DATASETS.TRAIN = cfg.DATASETS.TEST = ()
    if "Res5" not in head:
        cfg.MODEL.BACKBONE.NAME = "build_resnet_fpn_backbone"
        cfg.MODEL.RESNETS.OUT_FEATURES = cfg.MODEL.FPN.IN_FEATURES = ["res3", "res4", "res5"]
        cfg.MODEL.FPN.OUT_CHANNELS = 16
        cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[16], [32], [64]]
        cfg.MODEL.RPN.IN_FEATURES = ["p3", "p4", "p5"]
        cfg.MODEL.ROI_HEADS.IN_FEATURES = ["p3", "p4"]
        cfg.MODEL.ROI_BOX_HEAD.NAME = "FastRCNNConvFCHead"
        cfg.MODEL.ROI_BOX_HEAD.NUM_FC = 1
        cfg.MODEL.ROI_BOX_HEAD.FC_DIM = 16
        cfg.MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION = 3
        cfg.MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG = "Cascade" in head
    return cfg


class Project:
    """A folder with a config, weights, statistics and images."""

    def __init__(self, folder: Path, head: str = "LogNROIHeads", **options: object) -> None:
        self.folder = folder
        self.cfg = tiny_config(head)
        for key, value in options.items():
            self.cfg.merge_from_list([key.replace("__", "."), value])
        folder.mkdir(exist_ok=True)
        (folder / "model.yaml").write_text(self.cfg.dump())
        torch.manual_seed(0)
        model = _outspoken(build_model(self.cfg))
        torch.save({"model": model.state_dict()}, folder / "model.pth")
        self.statistics = _statistics_of(model)
        self.statistics.save(folder / "stats.safetensors")
        (folder / "images").mkdir()
        random = np.random.default_rng(0)
        for index in range(3):
            pixels = random.integers(0, 256, (64, 80, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / "images" / f"{index}.png")
        (folder / "images" / "notes.txt").write_text("not an image")

    def path(self, name: str) -> str:
        return str(self.folder / name)

    def fold(self, *more: str, stats: bool = True, images: bool = True) -> int:
        """The exit status of the tool."""
        arguments = ["--config-file", self.path("model.yaml"), "--weights", self.path("model.pth")]
        arguments += ["--output", self.path("folded.pth")]
        arguments += ["--images", self.path("images")] if images else []
        arguments += ["--stats", self.path("stats.safetensors")] if stats else []
        try:
            return script.main([*arguments, *more])
        except SystemExit as stopped:
            return stopped.code

    def written(self) -> list[str]:
        return sorted(path.name for path in self.folder.glob("*folded*"))

    def calibrated_detections(self) -> list[torch.Tensor]:
        """Of the first image, by the config with its statistics."""
        cfg = self.cfg.clone()
        cfg.MODEL.LOGN.STATISTICS = self.path("stats.safetensors")
        cfg.MODEL.WEIGHTS = self.path("model.pth")
        return _detections(cfg, self.path("images/0.png"))


def _outspoken(model: nn.Module) -> nn.Module:
    """The model with logits of deviation 1, so that its scores are neither equal nor saturated."""
    for predictor in find_box_predictors(model):
        nn.init.normal_(predictor.cls_score.weight)
    image = {"image": torch.rand(3, 64, 64) * 255}
    for stage in LogitRecorder(model, "proposals")([image]).stages:
        stage.predictor.cls_score.weight.data /= stage.logits.std()
    return model


def _statistics_of(model: nn.Module) -> LogitStatistics:
    stages = []
    for predictor in find_box_predictors(model):
        moments = LogitMoments(NUM_CLASSES + 1)
        moments.update(torch.randn(50, NUM_CLASSES + 1) * (0.5 + torch.rand(NUM_CLASSES + 1)) - 1)
        stages.append(StageStatistics.from_moments(moments, predictor_fingerprint(predictor)))
    return LogitStatistics(stages=tuple(stages), class_names=tuple("abcde"))


def _detections(cfg: CfgNode, image: str) -> list[torch.Tensor]:
    found = DefaultPredictor(cfg)(read_image(image, format="BGR"))["instances"]
    return [found.pred_boxes.tensor, found.scores, found.pred_classes]


def row_of(text: str, name: str) -> float:
    (found,) = re.findall(rf"\| {re.escape(name)} +\| +(\S+) \|", text)
    return float(found)


def test_folded_files_work_in_a_detectron2_that_can_not_import_logn_d2(tmp_path, capsys):
    projects = [Project(tmp_path / head, head) for head in HEADS]
    arguments = []
    for project in projects:
        assert project.fold() == 0
        text = capsys.readouterr().out
        assert "No part of logn_d2 is needed" in text
        assert row_of(text, "images") == 3 and row_of(text, "RoIs, all stages") > 0
        assert row_of(text, "detections") >= 30
        assert row_of(text, "detections of one model only") == 0
        assert row_of(text, "largest difference of class probabilities") < 1e-5
        assert row_of(text, "largest difference of detection scores") < 1e-5
        assert project.written() == ["folded.pth", "folded.yaml"]
        arguments += [project.path(name) for name in ("folded.yaml", "images/0.png", "found.pt")]
    command = [sys.executable, "-c", PLAIN_DETECTRON2, *arguments]
    subprocess.run(command, check=True, cwd=tmp_path)
    for project in projects:
        found = torch.load(project.path("found.pt"))
        boxes, scores, classes = project.calibrated_detections()
        assert len(scores) >= 10
        torch.testing.assert_close(found[0], boxes, rtol=0, atol=1e-3)
        torch.testing.assert_close(found[1], scores, rtol=0, atol=1e-5)
        assert torch.equal(found[2], classes)


def test_calibration_changes_the_detections(tmp_path):
    project = Project(tmp_path / "a")
    cfg = project.cfg.clone()
    cfg.MODEL.WEIGHTS = project.path("model.pth")
    raw = _detections(cfg, project.path("images/0.png"))
    calibrated = project.calibrated_detections()
    assert abs(raw[1][0] - calibrated[1][0]) > 0.01


def test_checkpoint_has_the_keys_of_the_original(tmp_path):
    project = Project(tmp_path / "a")
    assert project.fold() == 0
    before, after = (torch.load(project.path(n)) for n in ("model.pth", "folded.pth"))
    assert list(after) == ["model"]
    assert list(after["model"]) == list(before["model"])
    changed = [k for k, v in before["model"].items() if not torch.equal(v, after["model"][k])]
    assert changed == [f"roi_heads.box_predictor.cls_score.{n}" for n in ("weight", "bias")]


def test_plain_detectron2_config_folds_too(tmp_path):
    ours, plain = Project(tmp_path / "a"), Project(tmp_path / "b", "StandardROIHeads")
    assert ours.fold() == plain.fold() == 0
    states = [torch.load(project.path("folded.pth"))["model"] for project in (ours, plain)]
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[1])


@pytest.mark.parametrize("head", ["LogNROIHeads", "LogNCascadeROIHeads"])
def test_cosine_classifier_keeps_a_config_of_logn_d2(tmp_path, capsys, head):
    project = Project(tmp_path / "a", head, MODEL__LOGN__CLASSIFIER="cosine")
    assert project.fold() == 0
    assert "Loading it needs logn_d2 for: CosineLinear." in capsys.readouterr().out
    cfg = get_cfg()
    add_logn_config(cfg)
    cfg.merge_from_file(project.path("folded.yaml"))
    found = _detections(cfg, project.path("images/0.png"))
    torch.testing.assert_close(found[1], project.calibrated_detections()[1], rtol=0, atol=1e-5)


def test_other_calibrations_and_config_keys_are_taken(tmp_path, capsys):
    project = Project(tmp_path / "a")
    options = ["--calibration", "temperature(temperature=2)", "TEST.DETECTIONS_PER_IMAGE", "2"]
    assert project.fold(*options, stats=False) == 0
    assert row_of(capsys.readouterr().out, "detections") == 6
    weights = [
        torch.load(project.path(name))["model"]["roi_heads.box_predictor.cls_score.weight"]
        for name in ("model.pth", "folded.pth")
    ]
    torch.testing.assert_close(weights[1][:-1], weights[0][:-1] / 2)
    assert torch.equal(weights[1][-1], weights[0][-1])


class DoublingOutputLayers(FastRCNNOutputLayers):
    """Its logits are not those of its classifier."""

    def forward(self, x):
        scores, deltas = super().forward(x)
        return 2 * scores, deltas


@ROI_HEADS_REGISTRY.register()
class DoublingROIHeads(StandardROIHeads):
    @classmethod
    def _init_box_head(cls, cfg, input_shape):
        arguments = super()._init_box_head(cfg, input_shape)
        arguments["box_predictor"].__class__ = DoublingOutputLayers
        return arguments


def test_nothing_is_written_where_folding_changes_scores(tmp_path, capsys):
    project = Project(tmp_path / "a", "DoublingROIHeads")
    assert project.fold() == 1
    output = capsys.readouterr()
    assert row_of(output.out, "largest difference of class probabilities") > 1e-4
    assert "more than --tolerance 0.0001. Nothing was written." in output.err
    assert project.written() == []
    assert project.fold("--tolerance", "1") == 0
    assert project.written() == ["folded.pth", "folded.yaml"]


def test_statistics_of_other_weights_are_refused(tmp_path, capsys):
    project = Project(tmp_path / "a")
    stages = tuple(replace(s, fingerprint=-s.fingerprint) for s in project.statistics.stages)
    replace(project.statistics, stages=stages).save(project.path("stats.safetensors"))
    assert project.fold() == 1
    assert "collected with other weights" in capsys.readouterr().err
    assert project.written() == []


def test_training_sets_of_other_classes_are_refused(tmp_path, capsys):
    project = Project(tmp_path / "a")
    content = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "one"}]}
    (tmp_path / "one.json").write_text(json.dumps(content))
    register_lvis_form("one_class", tmp_path / "one.json", tmp_path)
    try:
        assert project.fold("DATASETS.TRAIN", "('one_class',)") == 1
        assert "'one_class' has 1 classes" in capsys.readouterr().err
    finally:
        DatasetCatalog.remove("one_class")
        MetadataCatalog.remove("one_class")
    assert project.written() == []


def test_a_folded_model_is_not_folded_again(tmp_path, capsys):
    project = Project(tmp_path / "a")
    assert project.fold() == 0
    again = ["--weights", project.path("folded.pth"), "--output", project.path("twice.pth")]
    assert project.fold(*again) == 1
    assert "collected with other weights" in capsys.readouterr().err


def test_checkpoint_of_another_model_is_refused(tmp_path, capsys):
    project = Project(tmp_path / "a")
    state = torch.load(project.path("model.pth"))
    del state["model"]["roi_heads.box_predictor.cls_score.bias"]
    torch.save(state, project.path("model.pth"))
    assert project.fold() == 1
    assert "lacks 1 of the model's parameters" in capsys.readouterr().err
    content = Path(project.path("model.pth")).read_bytes()
    Path(project.path("model.pth")).write_bytes(content[: len(content) // 2])
    assert project.fold() == 1
    assert "truncated" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--stats", "missing.safetensors"], "no statistics file at 'missing.safetensors'"),
        (["--weights", "missing.pth"], "weights missing.pth can't be loaded"),
        (["--images", "no_such_set"], "'no_such_set' is neither a folder nor a registered"),
        (["--num-images", "0"], "There are no images in"),
        (["--config-file", "missing.yaml"], "missing.yaml"),
        (["--calibration", "lgn"], "logn"),
        (["MODEL.NO_SUCH_KEY", "1"], "MODEL.NO_SUCH_KEY"),
    ],
)
def test_mistakes_exit_with_1_and_name_the_remedy(tmp_path, capsys, arguments, message):
    project = Project(tmp_path / "a")
    assert project.fold(*arguments) == 1
    assert message in capsys.readouterr().err
    assert project.written() == []


def test_originals_can_not_be_overwritten(tmp_path, capsys):
    project = Project(tmp_path / "a")
    assert project.fold("--output", project.path("model.pth")) == 2
    (tmp_path / "a" / "other.pth").write_bytes((tmp_path / "a" / "model.pth").read_bytes())
    other = ["--weights", project.path("other.pth"), "--output", project.path("model.pth")]
    assert project.fold(*other) == 2
    assert "replace --config-file" in capsys.readouterr().err


def test_wrong_command_lines_exit_with_2(tmp_path, capsys):
    project = Project(tmp_path / "a")
    assert project.fold("--output", project.path("folded.pkl")) == 2
    assert "ending in .pth" in capsys.readouterr().err
    assert project.fold("--weights", project.path("folded.pth")) == 2
    assert "keep the unfolded weights" in capsys.readouterr().err


def test_options_may_follow_config_keys(tmp_path):
    assert Project(tmp_path / "a").fold("MODEL.DEVICE", "cpu", "--tolerance", "1") == 0


def test_images_come_from_the_config_s_test_set(tmp_path, capsys):
    project = Project(tmp_path / "a")
    records = [{"file_name": project.path(f"images/{index}.png")} for index in range(2)]
    DatasetCatalog.register("fold_calibration_test", lambda: records)
    try:
        assert project.fold("DATASETS.TEST", "('fold_calibration_test',)", images=False) == 0
    finally:
        DatasetCatalog.remove("fold_calibration_test")
    assert row_of(capsys.readouterr().out, "images") == 2


def found(boxes: list[list[float]], scores: list[float], classes: list[int]) -> Instances:
    instances = Instances((100, 100))
    instances.pred_boxes = Boxes(torch.tensor(boxes).reshape(-1, 4))
    instances.scores = torch.tensor(scores)
    instances.pred_classes = torch.tensor(classes, dtype=torch.long)
    return instances


A, B = [0.0, 0, 50, 50], [0.0, 0, 50, 40]


@pytest.mark.parametrize(
    ("theirs", "matched", "change"),
    [
        (found([A], [0.8], [1]), True, 0.0),
        (found([A], [0.7], [1]), True, 0.1),
        # The best of several that could be it.
        (found([A, A], [0.2, 0.75], [1, 1]), True, 0.05),
        # Suppressed by a box of its class whose score is as good as its own.
        (found([B], [0.8], [1]), False, 0.0),
        # Another class does not suppress; it would have to fall to the threshold.
        (found([A], [0.8], [2]), False, 0.79),
        (found([], [], []), False, 0.79),
    ],
)
def test_change_of_a_detection(theirs, matched, change):
    cfg = tiny_config("StandardROIHeads")
    is_matched, apart = script._score_changes(found([A], [0.8], [1]), theirs, cfg)
    assert is_matched.tolist() == [matched]
    assert apart.item() == pytest.approx(change, abs=1e-6)


def test_detection_that_just_misses_a_full_list_is_no_difference():
    cfg = tiny_config("StandardROIHeads")
    cfg.TEST.DETECTIONS_PER_IMAGE = 1
    mine, theirs = found([A], [0.5], [1]), found([B], [0.5001], [2])
    assert script._score_changes(mine, theirs, cfg)[1].item() == 0
    assert script._score_changes(theirs, mine, cfg)[1].item() == pytest.approx(1e-4, rel=1e-2)


def test_no_agreement_without_numbers():
    with pytest.raises(ValueError, match="nothing was compared"):
        script.Difference(images=1).check(1.0)
    with pytest.raises(ValueError, match="differ"):
        script.Difference(images=1, rois=1, scores=float("nan")).check(1.0)
    with pytest.raises(ValueError, match="differ"):  # boxes move, while all probabilities agree
        script.Difference(images=1, rois=1, detection_scores=0.5).check(0.1)
    assert np.isnan(script._larger(0.5, torch.tensor([0.1, float("nan")])))
