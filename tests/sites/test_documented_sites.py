"""The examples of docs/sites.md run unchanged."""

from __future__ import annotations

import re

import pytest
import torch
from torch import nn

from logn_d2.modeling.attach import calibration_of
from logn_d2.sites import SITE_REGISTRY

from ..load_script import ROOT
from ..modeling.small_models import NUM_CLASSES, images
from .small_dense import retinanet
from .small_pixels import labelled, segmentor
from .small_queries import CLASSES, QUERIES, small_detr

pytestmark = pytest.mark.usefixtures("one_thread")
BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "sites.md").read_text(), re.DOTALL)


def run(block: str, **names: object) -> dict[str, object]:
    exec(compile(block, "docs/sites.md", "exec"), names)
    return names


def test_the_verbs_of_a_known_detector(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = retinanet()
    before = model.head.cls_score.weight.clone()
    names = list(map(str, range(NUM_CLASSES)))
    run(BLOCKS[0], model=model, loader=[images(2)], my_class_names=names)
    assert (tmp_path / "logn_stats.safetensors").is_file()
    assert not torch.equal(model.head.cls_score.weight, before)


def test_the_pixels_of_a_panoptic_model():
    model = segmentor("PanopticFPN")
    run(BLOCKS[1], model=model, loader=[labelled()])
    assert calibration_of(model.sem_seg_head.predictor) is not None
    assert calibration_of(model.roi_heads.box_predictor) is None


def test_a_site_in_five_lines():
    model = small_detr(no_object=True)
    before = model.class_embed.bias.clone()

    def my_matcher(instances):
        labels = torch.full((QUERIES,), CLASSES)
        labels[: len(instances)] = instances.gt_classes.clamp(max=CLASSES - 1)
        return labels

    names = list(map(str, range(CLASSES)))
    loader = [images(2, size=32)]
    found = run(BLOCKS[2], model=model, loader=loader, my_class_names=names, my_matcher=my_matcher)
    assert found["statistics"].num_rois == 2 * QUERIES
    assert calibration_of(model.class_embed) is None
    assert not torch.equal(model.class_embed.bias, before)


def test_a_registration():
    name = "my_project.models.MyDetector"
    try:
        site = run(BLOCKS[3])["my_site"]
        assert name in SITE_REGISTRY
        model = nn.Module()
        model.class_embed, model.num_classes = nn.Linear(4, 3), 3
        assert site(model).num_columns == 3
    finally:
        del SITE_REGISTRY._entries[name]
