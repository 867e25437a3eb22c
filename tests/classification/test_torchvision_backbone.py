"""Networks of torchvision as backbones of the image classifier."""

import torch
from detectron2.modeling import build_model

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
