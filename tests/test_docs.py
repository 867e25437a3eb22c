"""The examples of docs/ run unchanged, each section in a folder with a small project."""

from __future__ import annotations

import re
import shlex
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2 import model_zoo
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import LazyConfig, get_cfg, instantiate
from detectron2.data import DatasetCatalog, MetadataCatalog, build_detection_test_loader
from detectron2.modeling import build_model
from detectron2.modeling.roi_heads import ROI_HEADS_REGISTRY
from detectron2.structures import BoxMode
from PIL import Image
from torch import nn
from torchvision.models.detection import fasterrcnn_mobilenet_v3_large_320_fpn

from logn_d2.cli import main
from logn_d2.core import (
    LOSS_REGISTRY,
    LogitMoments,
    LogitStatistics,
    StageStatistics,
    build_loss,
    logn,
)
from logn_d2.lvis import LvisGroundTruth
from logn_d2.modeling import (
    CosineLinear,
    calibration_of,
    find_box_predictors,
    predictor_fingerprint,
)

from .load_script import ROOT

PROJECT = ROOT / "docs" / "your_project.md"
FORMAT = ROOT / "docs" / "statistics_file.md"
LOSSES = ROOT / "docs" / "losses.md"
NAMES = ["axolotl", "bobsled", "cat"]
SIZE = 64

LAZY_CONFIG = """
from detectron2 import model_zoo
from detectron2.layers import ShapeSpec

_coco = model_zoo.get_config("COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.py")
dataloader, model = _coco.dataloader, _coco.model

model.backbone.bottom_up.stages.depth = 18
del model.backbone.bottom_up.stages.stride_in_1x1
model.backbone.bottom_up.out_features = ["res2", "res3"]
model.backbone.out_channels = 16
model.backbone.top_block = None
model.proposal_generator.in_features = ["p2", "p3"]
model.proposal_generator.head.in_channels = 16
model.proposal_generator.anchor_generator.sizes = [[16], [32]]
model.proposal_generator.anchor_generator.strides = [4, 8]
model.proposal_generator.post_nms_topk = (40, 40)
model.roi_heads.num_classes = 3
model.roi_heads.batch_size_per_image = 16
model.roi_heads.box_in_features = ["p2", "p3"]
model.roi_heads.box_pooler.scales = (1 / 4, 1 / 8)
model.roi_heads.box_pooler.output_size = 3
model.roi_heads.box_head.input_shape = ShapeSpec(channels=16, height=3, width=3)
model.roi_heads.box_head.fc_dims = [16]
model.roi_heads.box_predictor.input_shape = ShapeSpec(channels=16)
model.roi_heads.mask_in_features = None
model.roi_heads.mask_head = None
model.roi_heads.mask_pooler = None

dataloader.train.dataset.names = "my_train"
dataloader.train.num_workers = dataloader.test.num_workers = 0
dataloader.train.mapper.use_instance_mask = False
dataloader.train.mapper.augmentations[0].short_edge_length = (64,)
"""


def sections(page: Path, language: str) -> dict[str, list[str]]:
    """Title of each section that has code in this language -> its blocks."""
    found: dict[str, list[str]] = {}
    for part in re.split(r"^## ", page.read_text(), flags=re.M):
        title = part.partition("\n")[0]
        blocks = re.findall(rf"^```{language}\n(.*?)^```$", part, flags=re.M | re.S)
        if blocks:
            found[title] = blocks
    return found


def run_block(code: str, page: Path, namespace: dict[str, Any]) -> dict[str, Any]:
    """What the code has defined."""
    # Where the page has it, so that a traceback points there.
    line = page.read_text().partition(code)[0].count("\n")
    exec(compile("\n" * line + code, str(page), "exec"), namespace)
    return namespace


def _config_text() -> str:
    cfg = get_cfg()
    cfg.merge_from_list([
        "MODEL.DEVICE", "cpu",
        "MODEL.MASK_ON", False,
        "MODEL.META_ARCHITECTURE", "GeneralizedRCNN",
        "MODEL.BACKBONE.NAME", "build_resnet_fpn_backbone",
        "MODEL.RESNETS.RES2_OUT_CHANNELS", 8,
        "MODEL.RESNETS.STEM_OUT_CHANNELS", 8,
        "MODEL.RESNETS.WIDTH_PER_GROUP", 4,
        "MODEL.RESNETS.NORM", "BN",
        "MODEL.RESNETS.OUT_FEATURES", ["res3", "res4", "res5"],
        "MODEL.FPN.IN_FEATURES", ["res3", "res4", "res5"],
        "MODEL.FPN.OUT_CHANNELS", 16,
        "MODEL.ANCHOR_GENERATOR.SIZES", [[16], [32], [64]],
        "MODEL.RPN.IN_FEATURES", ["p3", "p4", "p5"],
        "MODEL.RPN.POST_NMS_TOPK_TRAIN", 40,
        "MODEL.RPN.POST_NMS_TOPK_TEST", 30,
        "MODEL.ROI_HEADS.NAME", "StandardROIHeads",
        "MODEL.ROI_HEADS.NUM_CLASSES", len(NAMES),
        "MODEL.ROI_HEADS.IN_FEATURES", ["p3", "p4"],
        "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", 16,
        "MODEL.ROI_BOX_HEAD.NAME", "FastRCNNConvFCHead",
        "MODEL.ROI_BOX_HEAD.NUM_FC", 1,
        "MODEL.ROI_BOX_HEAD.FC_DIM", 16,
        "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION", 3,
        "DATASETS.TRAIN", ("my_train",),
        "DATASETS.TEST", ("my_train",),
        "DATALOADER.NUM_WORKERS", 0,
        "INPUT.MIN_SIZE_TRAIN", (SIZE,),
        "INPUT.MIN_SIZE_TEST", SIZE,
    ])  # fmt: skip
    del cfg.MODEL["WEIGHTS"]  # a leaf config of somebody who gives them later
    return cfg.dump()


def _write_models(folder: Path) -> None:
    """Configs, weights, and the statistics of the YAML config's model."""
    torch.manual_seed(0)
    (folder / "my_config.yaml").write_text(_config_text())
    (folder / "my_lazy_config.py").write_text(LAZY_CONFIG)
    cfg = get_cfg()
    cfg.merge_from_file(str(folder / "my_config.yaml"))
    model = build_model(cfg)
    torch.save({"model": model.state_dict()}, folder / "my_model.pth")
    (predictor,) = find_box_predictors(model)
    stage = StageStatistics.from_moments(_moments(), predictor_fingerprint(predictor))
    LogitStatistics((stage,), tuple(NAMES)).save(folder / "logn_stats.safetensors")
    lazy = instantiate(LazyConfig.load(str(folder / "my_lazy_config.py")).model)
    torch.save({"model": lazy.state_dict()}, folder / "my_lazy_model.pth")
    theirs = fasterrcnn_mobilenet_v3_large_320_fpn(
        weights=None, weights_backbone=None, num_classes=1 + len(NAMES)
    )
    for module in theirs.modules():
        if isinstance(module, nn.Conv2d):  # else signals vanish in a network without training
            nn.init.kaiming_normal_(module.weight)
    torch.save(theirs.state_dict(), folder / "my_torchvision_model.pth")


def _moments() -> LogitMoments:
    moments = LogitMoments(1 + len(NAMES))
    for logits in _logits(3):
        moments.update(logits)
    return moments


def _logits(images: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [2 * torch.randn(8, 1 + len(NAMES), generator=generator) - 3 for _ in range(images)]


def _records(folder: Path) -> list[dict]:
    random = np.random.default_rng(0)
    records = []
    for index in range(3):
        path = folder / f"{index}.png"
        Image.fromarray(random.integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)).save(path)
        one = {"bbox": [8.0, 8, 40, 48], "bbox_mode": BoxMode.XYXY_ABS, "category_id": index}
        record = {"file_name": str(path), "image_id": index, "height": SIZE, "width": SIZE}
        records.append({**record, "annotations": [one]})
    return records


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with everything that the pages call theirs."""
    folder = tmp_path_factory.mktemp("project")
    records = _records(folder)
    DatasetCatalog.register("my_train", lambda: records)
    MetadataCatalog.get("my_train").thing_classes = NAMES
    _write_models(folder)
    yield folder
    DatasetCatalog.remove("my_train")
    MetadataCatalog.remove("my_train")


@pytest.fixture
def mine(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The names that begin with my_; the working folder is a fresh copy of the project."""
    shutil.copytree(project, tmp_path / "project")
    monkeypatch.chdir(tmp_path / "project")
    box = torch.tensor([[4.0, 4.0, 40.0, 50.0]])
    target = {"boxes": box, "labels": torch.tensor([2])}
    return {
        "my_class_names": list(NAMES),
        "my_images": [(torch.rand(3, SIZE, SIZE), target) for _ in range(3)],
        "my_training_logits": _logits(3),
        "my_logits": _logits(1)[0],
    }


def run_section(title: str, mine: dict[str, Any], page: Path = PROJECT) -> list[dict[str, Any]]:
    """Each block with the reader's names alone: an example must not lean on another."""
    return [run_block(code, page, dict(mine)) for code in sections(page, "python")[title]]


def assert_calibrated(model: nn.Module) -> None:
    """The model is calibrated by statistics of its own, and detects."""
    (predictor,) = find_box_predictors(model)
    calibration = calibration_of(predictor)
    assert calibration is not None and calibration.num_classes == len(NAMES)
    assert not torch.equal(calibration.scale, torch.ones(len(NAMES)))
    with torch.no_grad():
        (output,) = model.eval()([{"image": torch.rand(3, SIZE, SIZE) * 255}])
    assert "instances" in output


def test_every_section_with_code_is_run_by_a_test_below():
    known = {
        "A YAML config",
        "A LazyConfig",
        "Your own heads",
        "torchvision",
        "Only logits",
        "Fold and export",
        "Evaluate and sweep from Python",
    }
    assert set(sections(PROJECT, "python")) == known


def test_yaml_config(mine):
    before = Path("logn_stats.safetensors").read_bytes()
    by_config, attached = run_section("A YAML config", mine)
    assert_calibrated(by_config["model"])
    assert_calibrated(attached["model"])
    assert type(attached["model"].roi_heads).__name__ == "StandardROIHeads"
    assert Path("logn_stats.safetensors").read_bytes() != before
    statistics = LogitStatistics.load("logn_stats.safetensors")
    assert statistics.class_names == tuple(NAMES) and statistics.num_images == 3


def test_lazy_config(mine):
    attached, cosine = run_section("A LazyConfig", mine)
    assert_calibrated(attached["model"])
    assert isinstance(cosine["model"].roi_heads.box_predictor.cls_score, CosineLinear)


def test_own_heads(mine):
    try:
        (names,) = run_section("Your own heads", mine)
    finally:
        ROI_HEADS_REGISTRY._obj_map.pop("MyROIHeads", None)
    assert_calibrated(names["model"])
    assert type(names["model"].roi_heads.box_predictor).__name__ == "MyOutputLayers"


def test_torchvision(mine):
    (names,) = run_section("torchvision", mine)
    statistics = LogitStatistics.load("torchvision_stats.safetensors")
    assert statistics.background == "first"
    assert statistics.num_images == 3
    assert statistics.num_rois == int(statistics.stages[0].count[0]) > 3
    model = names["model"]
    calibration = calibration_of(model.roi_heads)
    torch.testing.assert_close(
        calibration.scale.double(), 1 / statistics.stages[0].std[1:], rtol=1e-6, atol=0
    )
    assert not model.training and not model.roi_heads.training
    with torch.no_grad():
        (output,) = model([torch.rand(3, SIZE, SIZE)])
    assert set(output["labels"].tolist()) <= {1, 2, 3}


def test_only_logits(mine):
    (names,) = run_section("Only logits", mine)
    probabilities = names["probabilities"]
    assert probabilities.shape == mine["my_logits"].shape
    assert not torch.allclose(probabilities, mine["my_logits"].softmax(dim=1), atol=0.01)
    torch.testing.assert_close(probabilities.sum(dim=1), torch.ones(8))


def test_only_logits_needs_no_detectron2(mine, monkeypatch):
    monkeypatch.setitem(sys.modules, "detectron2", None)
    run_section("Only logits", mine)


def test_evaluate_and_sweep(mine):
    cfg = get_cfg()
    cfg.merge_from_file("my_config.yaml")
    model = build_model(cfg).eval()
    DetectionCheckpointer(model).load("my_model.pth")
    truth = LvisGroundTruth.from_dict(
        {
            "images": [{"id": k, "height": SIZE, "width": SIZE} for k in range(3)],
            "categories": [{"id": k + 1, "name": name} for k, name in enumerate(NAMES)],
            "annotations": [
                {"id": k + 1, "image_id": k, "category_id": k + 1, "bbox": [8, 8, 32, 40]}
                for k in range(3)
            ],
        }
    )
    loader = build_detection_test_loader(cfg, "my_train")
    own = {"my_model": model, "my_loader": loader, "my_truth": truth}
    (names,) = run_section("Evaluate and sweep from Python", {**mine, **own})
    assert list(names["table"]) == ["uncalibrated", "logn", "logn_mean"]
    np.testing.assert_equal(dict(names["table"]["logn"]), dict(names["calibrated"]))
    np.testing.assert_equal(names["table"]["uncalibrated"]["bbox"]["AP"], names["plain"])


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_fold_and_export(mine):
    folded, exported = run_section("Fold and export", mine)
    assert "LogN" not in Path("my_folded.yaml").read_text()
    traced = torch.jit.load("my_folded.ts")
    model = folded["model"]
    image = torch.rand(3, 96, 80) * 255
    with torch.no_grad():
        expected = model.inference([{"image": image}], do_postprocess=False)[0]
    found = exported["adapter"].outputs_schema(traced(image))[0]["instances"]
    assert len(expected) and torch.equal(found.scores, expected.scores)


def test_a_loss_by_config_by_argument_and_alone(mine):
    by_config, by_argument, alone = run_section("Train with one", mine, LOSSES)
    predictor = by_config["model"].roi_heads.box_predictor
    assert isinstance(predictor.cls_score, CosineLinear)
    assert predictor.cls_score.out_features == len(NAMES) + 2
    groups = by_argument["predictor"].loss.groups()
    assert sum(map(len, groups)) == len(NAMES)
    assert alone["scores"].shape == (8, len(NAMES) + 1) and alone["logits"].grad.any()


def test_a_loss_of_ones_own(mine, monkeypatch):
    entries = dict(LOSS_REGISTRY._entries)
    monkeypatch.setattr(LOSS_REGISTRY, "_entries", entries)
    run_section("Add a method", mine, LOSSES)
    logits, labels = mine["my_logits"], torch.arange(8) % 4
    found = build_loss("smooth(smoothing=0.2)", len(NAMES))(logits, labels)
    expected = nn.functional.cross_entropy(logits, labels, label_smoothing=0.2)
    torch.testing.assert_close(found, expected)


def test_every_loss_is_in_the_table_with_its_description():
    rows = {}
    for line in LOSSES.read_text().splitlines():
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        if len(cells) == 6 and cells[0].startswith("`"):
            rows[cells[0].strip("`")] = cells
    assert set(rows) == set(LOSS_REGISTRY)
    for name, (_, _, outputs, state, _, calibrations) in rows.items():
        loss = build_loss(name, 3)
        assert outputs.startswith({4: "K + 1", 5: "K + 2", 9: "K + 2 + G"}[loss.num_outputs])
        assert bool(state) == bool(loss.state_dict()), name
        assert (calibrations == "yes") == loss.calibratable, name


def test_statistics_file_is_read_without_logn_d2(mine, monkeypatch):
    expected = logn(LogitStatistics.load("logn_stats.safetensors").stages[0])(mine["my_logits"])
    monkeypatch.setitem(sys.modules, "logn_d2", None)
    logits = mine["my_logits"].double().numpy()
    ((code,),) = sections(FORMAT, "python").values()
    names = run_block(code, FORMAT, {"my_logits": logits})
    np.testing.assert_allclose(names["calibrated"], expected.numpy(), rtol=1e-5, atol=1e-5)


def test_format_page_names_everything_in_the_file(project):
    from safetensors import safe_open

    with safe_open(project / "logn_stats.safetensors", framework="numpy") as file:
        names = [*file.metadata(), *(name.partition(".")[2] for name in file.keys())]
    text = FORMAT.read_text()
    unnamed = [name for name in names if not re.search(rf"`[^`\s]*\b{name}`", text)]
    assert not unnamed


def _commands() -> list[str]:
    """Every `logn` line of the documentation."""
    pages = [ROOT / "README.md", ROOT / "datasets" / "README.md"]
    pages += sorted((ROOT / "docs").glob("*.md"))
    lines = [
        line.strip()
        for page in pages
        for line in page.read_text().replace("\\\n", " ").splitlines()
    ]
    return [line for line in lines if line.startswith("logn ")]


@pytest.mark.parametrize("command", _commands())
def test_commands_have_arguments_that_they_know(command, monkeypatch):
    _, name, *arguments = shlex.split(command, comments=True)
    given = []
    work = f"logn_d2.commands.{WORK.get(name, name)}.run"
    monkeypatch.setattr(work, lambda args: given.append(args) or 0)
    # A shell would put the files in the place of the pattern.
    words = [each for argument in arguments for each in _expanded(argument)]
    assert main([name, *words]) == 0 and len(given) == 1


WORK = {"train": "run", "collect": "run", "evaluate": "run"}


def _expanded(argument: str) -> list[str]:
    return [argument.replace("*", index) for index in "01"] if "*" in argument else [argument]


@pytest.mark.parametrize("page", sorted((ROOT / "docs").glob("*.md")), ids=lambda path: path.name)
def test_links_lead_somewhere(page):
    text = page.read_text()
    titles = re.findall(r"^#+ (.*)$", text, flags=re.M)
    anchors = {re.sub(r"[^\w\- ]", "", title).lower().replace(" ", "-") for title in titles}
    for target in re.findall(r"\]\(([^)]+)\)", text):
        if target.startswith("#"):
            assert target[1:] in anchors, target
        elif "://" not in target:
            assert (page.parent / target.partition("#")[0]).exists(), target


def test_the_page_on_lvis_names_the_weights_that_the_zoo_has():
    text = (ROOT / "docs" / "lvis.md").read_text()
    named = re.findall(r"^\| `(mask_rcnn_\w+)` \| `(\S+)` \|", text, re.MULTILINE)
    group = "LVISv0.5-InstanceSegmentation"
    configs = (Path(model_zoo.__file__).parent / "configs" / group).glob("*.yaml")
    assert {name for name, _ in named} == {path.stem for path in configs}
    for name, weights in named:
        url = model_zoo.get_checkpoint_url(f"{group}/{name}.yaml")
        assert url.endswith(f"/{group}/{name}/{weights}")
