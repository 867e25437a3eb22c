"""Networks of torchvision as backbones of the image classifier."""

import pytest
import torch
from detectron2.modeling import build_model

from logn_d2.classification.backbones import TorchvisionFeatures
from logn_d2.errors import UserError

from .small import K, images, small_config


def test_an_image_classifier_takes_a_network_of_torchvision():
    cfg = small_config(
        MODEL__BACKBONE__NAME="build_torchvision_backbone",
        MODEL__BACKBONE__FREEZE_AT=2,
        MODEL__RESNETS__OUT_FEATURES=["res5"],
        MODEL__LOGN__BACKBONE__NETWORK="mobilenet_v3_small",
        MODEL__PIXEL_MEAN=[100.0] * 3,
        MODEL__PIXEL_STD=[50.0] * 3,
        INPUT__FORMAT="RGB",
    )
    torch.manual_seed(0)
    model = build_model(cfg)
    assert model.in_feature == "res5" and model.head.cls_score.in_features == 96
    sum(model(images(channels=3)).values()).backward()
    trained = {name for name, p in model.backbone.named_parameters() if p.grad is not None}
    assert trained == {name for name, p in model.backbone.named_parameters() if p.requires_grad}
    assert all(each["scores"].shape == (K,) for each in model.eval()(images(channels=3)))


def test_a_small_stem_keeps_all_pixels_and_is_for_resnets_alone():
    backbone = TorchvisionFeatures("resnet18", small_stem=True).eval()
    body = backbone.body
    with torch.no_grad():
        first = body.maxpool(body.relu(body.bn1(body.conv1(torch.zeros(1, 3, 32, 32)))))
        assert first.shape == (1, 64, 32, 32)
        assert body.layer4(body.layer3(body.layer2(body.layer1(first)))).shape == (1, 512, 4, 4)
        assert backbone(torch.zeros(2, 3, 32, 32))["pooled"].shape == (2, 512, 1, 1)
    for network, weights in (("mobilenet_v3_small", ""), ("resnet18", "x.pth")):
        with pytest.raises(UserError, match="SMALL_STEM is for a ResNet"):
            TorchvisionFeatures(network, weights, small_stem=True)
