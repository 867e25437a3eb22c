"""torchvision's one-stage detectors through every verb."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torchvision.models.detection import (
    FCOS,
    RetinaNet,
    fcos_resnet50_fpn,
    ssd300_vgg16,
    ssdlite320_mobilenet_v3_large,
)
from torchvision.models.detection.anchor_utils import AnchorGenerator, DefaultBoxGenerator
from torchvision.models.detection.retinanet import retinanet_resnet50_fpn_v2
from torchvision.models.detection.ssd import SSD

from logn_d2 import attach, collect, detach, fold
from logn_d2.core import AffineCalibration
from logn_d2.errors import UserError
from logn_d2.sites import known_site

pytestmark = pytest.mark.usefixtures("one_thread")

COLUMNS = 5
KINDS = {"retinanet": "none", "fcos": "none", "ssd": "first"}


class OneLevel(nn.Module):
    """Features of stride 16 in 32 channels."""

    out_channels = 32

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 32, 16, stride=16)

    def forward(self, x: Tensor) -> Tensor:
        return self.stem(x)


class TwoLevels(OneLevel):
    """A second level of stride 32."""

    out_channels = (32, 32)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        features = self.stem(x)
        return {"0": features, "1": nn.functional.max_pool2d(features, 2)}


def build(kind: str) -> nn.Module:
    torch.manual_seed(0)
    sizes = {"min_size": 64, "max_size": 64}
    if kind == "retinanet":
        anchors = AnchorGenerator(((16, 32),), ((0.5, 1.0, 2.0),))
        model = RetinaNet(OneLevel(), COLUMNS, anchor_generator=anchors, score_thresh=0.0, **sizes)
    elif kind == "fcos":
        anchors = AnchorGenerator(((16,),), ((1.0,),))
        model = FCOS(OneLevel(), COLUMNS, anchor_generator=anchors, score_thresh=0.0, **sizes)
    else:
        anchors = DefaultBoxGenerator([[2], [2, 3]])
        model = SSD(TwoLevels(), anchors, (64, 64), COLUMNS, score_thresh=0.0)
    for name, parameter in model.named_parameters():
        if "classification" in name and name.endswith("weight"):
            nn.init.normal_(parameter, std=0.05)
    return model.eval()


def inputs(count: int = 3) -> list[dict]:
    generator = torch.Generator().manual_seed(1)
    boxes = torch.tensor([[4.0, 4.0, 30.0, 34.0], [20.0, 8.0, 60.0, 60.0]])
    found = []
    for index in range(count):
        image = torch.rand(3, 64, 64, generator=generator)
        labels = torch.tensor([1 + index % 2, 4])
        some = slice(0) if index == 2 else slice(None)  # an image without objects
        target = {"boxes": boxes[some], "labels": labels[some]}
        found.append({"image": image, "target": target, "image_id": index})
    return found


def logits_of(model: nn.Module, images: list[dict]) -> Tensor:
    """(N, R, columns), as the head gives them."""
    images, _ = model.transform([each["image"] for each in images])
    with torch.no_grad():
        features = model.backbone(images.tensors)
        features = [features] if isinstance(features, Tensor) else list(features.values())
        return model.head(features)["cls_logits"]


def outputs(model: nn.Module, images: list[dict]) -> list[dict[str, Tensor]]:
    with torch.no_grad():
        return model([each["image"] for each in images])


def drawn(kind: str) -> AffineCalibration:
    generator = torch.Generator().manual_seed(5)
    background = KINDS[kind]
    count = COLUMNS - (background != "none")
    scale, shift = torch.rand(2, count, generator=generator)
    return AffineCalibration(scale + 0.5, shift, background=background)


@pytest.mark.parametrize("kind", KINDS)
def test_statistics_are_of_all_anchors_with_the_labels_of_the_matcher(kind):
    model, images = build(kind), inputs()
    found = collect(model, [images[:2], images[2:]])
    raw = logits_of(model, images).double()
    site = known_site(model)
    labels = site.matched(model, images)
    counted = torch.stack(list(labels)) >= 0
    logits = raw[counted]
    torch.testing.assert_close(found.stages[0].mean, logits.mean(dim=0))
    torch.testing.assert_close(found.stages[0].var, logits.var(dim=0))
    assert found.num_rois == len(logits)
    assert (found.background, found.site) == (KINDS[kind], type(model).__name__)
    # Objects of three labels, and no others, are among the foreground.
    columns = set(range(COLUMNS)) - ({0} if kind == "ssd" else set())
    matched = {int(label) for label in torch.cat(list(labels)).unique()} & columns
    assert matched == {1, 2, 4}
    background = 0 if kind == "ssd" else COLUMNS
    assert (labels[2] == background).all()


@pytest.mark.parametrize("kind", KINDS)
def test_attach_acts_on_the_logits_and_detach_undoes_it(kind):
    model, images, calibration = build(kind), inputs(), drawn(kind)
    raw, before = logits_of(model, images), outputs(model, images)
    attach(model, calibration)
    torch.testing.assert_close(logits_of(model, images), calibration(raw), rtol=1e-6, atol=1e-6)
    after = outputs(model, images)
    assert any(not torch.equal(a["scores"], b["scores"]) for a, b in zip(after, before))
    detach(model)
    for one, other in zip(outputs(model, images), before):
        assert all(torch.equal(one[name], other[name]) for name in other)


@pytest.mark.parametrize("kind", KINDS)
def test_folding_gives_the_calibrated_logits(kind):
    model, images, calibration = build(kind), inputs(), drawn(kind)
    expected, keys = calibration(logits_of(model, images)), list(model.state_dict())
    fold(model, calibration)
    torch.testing.assert_close(logits_of(model, images), expected, rtol=1e-5, atol=1e-5)
    assert list(model.state_dict()) == keys


@pytest.mark.parametrize("kind", KINDS)
def test_candidates_as_at_test_need_no_ground_truth(kind):
    model = build(kind)
    model.topk_candidates = 3
    images = [{"image": each["image"], "image_id": each["image_id"]} for each in inputs()]
    found = collect(model, [images], population="proposals")
    limit = 3 * (COLUMNS - 1 if kind == "ssd" else 1)
    assert 0 < found.num_rois <= limit * len(images)
    with pytest.raises(UserError, match="'target'"):
        collect(model, [images])


def test_the_models_of_torchvision_have_the_layers_that_their_sites_name():
    builders = (
        retinanet_resnet50_fpn_v2, fcos_resnet50_fpn, ssd300_vgg16, ssdlite320_mobilenet_v3_large,
    )  # fmt: skip
    for builder in builders:
        model = builder(weights=None, weights_backbone=None, num_classes=7)
        site = known_site(model)
        assert site.num_columns == 7
        assert len(site.fingerprint()) == 7
