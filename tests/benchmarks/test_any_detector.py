"""The small query-based detector supports every verb; the table shows the measured values."""

from __future__ import annotations

import argparse
import copy
import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from detectron2.data import MetadataCatalog
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from torch import nn

from logn_d2 import attach, collect, fold
from logn_d2.core import AffineCalibration
from logn_d2.glyphs import register_glyphs
from logn_d2.lvis.detections import Detections
from logn_d2.sites import known_site
from logn_d2.sweeps import sweep

from ..load_script import load_script
from ..modeling.small_models import assert_same, detections

pytestmark = pytest.mark.usefixtures("one_thread")

CLASSES = 12


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    return load_script("benchmarks/any_detector.py")


@pytest.fixture(scope="module")
def detector(tool, tmp_path_factory) -> nn.Module:
    args = argparse.Namespace(
        size="tiny", start=None, iterations=4, output=tmp_path_factory.mktemp("benchmark")
    )
    torch.manual_seed(0)
    model = build_model(tool.make_config(args, "queries", 0)).eval()
    nn.init.normal_(model.class_embed.weight, std=0.5)
    return model


def images(count: int = 2) -> list[dict]:
    generator = torch.Generator().manual_seed(0)
    found = []
    for index in range(count):
        corner = torch.rand(index + 1, 2, generator=generator) * 40
        target = Instances((96, 96), gt_boxes=Boxes(torch.cat([corner, corner + 30], dim=1)))
        target.gt_classes = torch.arange(index + 1) + 3
        pixels = torch.randint(256, (3, 96, 96), generator=generator).float()
        found.append({"image": pixels, "instances": target, "image_id": index})
    return found


def scaled() -> AffineCalibration:
    shift = torch.linspace(-2, 2, CLASSES)
    return AffineCalibration(0.5 + shift.abs(), shift)


def raw_logits(model: nn.Module, inputs: list[dict]) -> torch.Tensor:
    """(N, Q, C) of the last decoder layer, by a hook of the test's own."""
    kept = []
    handle = model.class_embed.register_forward_hook(lambda m, args, out: kept.append(out))
    with torch.no_grad():
        model(inputs)
    handle.remove()
    return kept[0][-1]


def test_its_own_size_has_classes_of_every_frequency_and_is_found(tool, tmp_path):
    letters = [tool.FEW.frequency_of(count) for count in tool.FEW.train_image_counts()]
    assert {letter: letters.count(letter) for letter in "rcf"} == {"r": 11, "c": 16, "f": 13}
    assert register_glyphs(tmp_path, [tool.FEW]) == ["lt_glyphs_few_train", "lt_glyphs_few_val"]
    assert str(tmp_path) in MetadataCatalog.get("lt_glyphs_few_val").json_file


def test_the_backbone_learns_more_slowly_than_new_layers(tool, detector):
    args = argparse.Namespace(size="tiny", start=None, iterations=4, output=Path())
    cfg = tool.make_config(args, "queries", 0)
    new, old = tool.Adam.build_optimizer(cfg, detector).param_groups
    assert (new["lr"], old["lr"]) == (pytest.approx(2e-3), pytest.approx(6e-4))
    assert len(new["params"]) + len(old["params"]) == len(list(detector.parameters()))


def test_every_object_has_one_query_and_the_others_have_none(detector):
    site, inputs = known_site(detector), images(3)
    for label, image in zip(site.matched(detector, inputs), inputs, strict=True):
        assert len(label) == len(detector.points)
        found = label[label < CLASSES].sort().values
        assert found.tolist() == image["instances"].gt_classes.tolist()
    assert not detector.training


def test_statistics_are_those_of_the_last_decoder_layer(detector):
    inputs = images()
    statistics = collect(detector, [inputs])
    logits = raw_logits(detector, inputs).double().flatten(0, 1)
    assert (statistics.background, statistics.activation) == ("last", "softmax")
    torch.testing.assert_close(statistics.stages[0].mean, logits.mean(dim=0), rtol=0, atol=1e-12)
    var = logits.var(dim=0)
    torch.testing.assert_close(statistics.stages[0].var, var, rtol=0, atol=1e-12)


def test_a_detached_model_equals_the_original_and_a_folded_one_the_attached(detector):
    inputs = images()
    before = detections(detector, inputs)
    with attach(detector, scaled()):
        attached = detections(detector, inputs)
    assert_same(detections(detector, inputs), before)
    assert not torch.equal(attached[0]["scores"], before[0]["scores"])
    folded = detections(fold(copy.deepcopy(detector), scaled()), inputs)
    torch.testing.assert_close(folded[0]["scores"], attached[0]["scores"])


def test_a_sweep_finds_the_detections_of_the_attached_calibration(detector):
    batches = [[image] for image in images()]
    calibrations = {"raw": [AffineCalibration.identity(CLASSES)], "scaled": [scaled()]}
    found = sweep(detector, batches, calibrations)
    for name, (calibration,) in calibrations.items():
        with attach(detector, calibration), torch.no_grad():
            expected = [detector(batch)[0]["instances"] for batch in batches]
        right = Detections.from_instances(expected, [0, 1])
        left = found.detections(name)
        for field in ("image_id", "category", "score", "box"):
            np.testing.assert_array_equal(getattr(left, field), getattr(right, field))


def test_losses_are_finite_and_reach_all_that_is_trained(detector):
    model = copy.deepcopy(detector).train()
    losses = model(images())
    assert set(losses) == {f"loss_{what}_{layer}" for what in ("class", "box") for layer in (0, 1)}
    sum(losses.values()).backward()
    silent = [
        name
        for name, parameter in model.named_parameters()
        if parameter.grad is None or not parameter.grad.isfinite().all()
    ]
    # A pyramid's finest level is for others.
    assert all(name.startswith("backbone.fpn_") for name in silent)


def test_the_table_has_means_over_seeds_and_the_worst_of_them(tool, tmp_path):
    metrics = dict.fromkeys(tool.METRICS, 10.0)
    for seed, gain in enumerate((1.0, 3.0)):
        folder = tmp_path / "retinanet" / f"seed{seed}"
        folder.mkdir(parents=True)
        scores = {"uncalibrated": metrics, "logn, sampled": {**metrics, "AP": 10.0 + gain}}
        content = {"scores": scores, "refused": {"fracal": "why"}, "loss": 1.5}
        (folder / "scores.json").write_text(json.dumps(content))
    text = tool.write(argparse.Namespace(output=tmp_path))
    assert text == (tmp_path / "any_detector.md").read_text()
    (row,) = (line for line in text.splitlines() if line.startswith("| logn"))
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[1].startswith("12.0") and cells[-1] == "+2.0 (+1.0)"
    assert "`fracal` is refused: why" in text
