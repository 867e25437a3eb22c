"""The image classifier: what it computes, how it is calibrated, and what it refuses."""

from __future__ import annotations

import copy
import doctest
import importlib

import pytest
import torch
from detectron2.config import LazyCall, get_cfg, instantiate
from detectron2.modeling import build_model
from torch.nn import functional as F

from logn_d2.classification import (
    ClassifierHead,
    ImageClassifier,
    MLPBackbone,
    TorchvisionFeatures,
)
from logn_d2.config import add_logn_config
from logn_d2.core import AffineCalibration, StatisticsError, logn
from logn_d2.errors import UnknownNameError, UserError
from logn_d2.modeling import CosineLinear, attach, calibration_of, detach, find_box_predictors, fold

from .small import K, images, raw_logits, scores_of, small_config, small_model, statistics_of


@pytest.mark.parametrize("name", ["backbones", "classifier", "head"])
def test_examples_of(name):
    failures, examples = doctest.testmod(importlib.import_module(f"logn_d2.classification.{name}"))
    assert examples and not failures


def test_logits_are_the_classifier_of_pooled_features():
    model, inputs = small_model().eval(), images()
    pixels = (torch.stack([each["image"] for each in inputs]) - 100) / 50
    features = model.backbone(pixels)["pooled"].flatten(1)
    expected = F.linear(features, model.head.cls_score.weight, model.head.cls_score.bias)
    outputs = model(inputs)
    torch.testing.assert_close(raw_logits(model, inputs), expected)
    torch.testing.assert_close(scores_of(model, inputs), expected.softmax(1))
    assert [each["pred_class"] for each in outputs] == expected.argmax(1).tolist()


def test_training_gives_the_cross_entropy_and_a_gradient():
    model, inputs = small_model().train(), images(9)
    losses = model(inputs)
    assert set(losses) == {"loss_cls"}
    losses["loss_cls"].backward()
    assert all(p.grad is not None for p in model.parameters())
    labels = torch.tensor([each["label"] for each in inputs])
    pixels = (torch.stack([each["image"] for each in inputs]) - 100) / 50
    logits = model.head.cls_score(model.backbone(pixels)["pooled"].flatten(1))
    torch.testing.assert_close(losses["loss_cls"], F.cross_entropy(logits, labels))


def test_any_loss_and_the_cosine_classifier():
    model = small_model(
        MODEL__LOGN__LOSS="seesaw(p=0.5)",
        MODEL__LOGN__CLASSIFIER="cosine",
        MODEL__LOGN__TEMPERATURE=9.0,
    )
    assert isinstance(model.head.cls_score, CosineLinear)
    assert model.head.cls_score.out_features == K and model.head.cls_score.temperature == 9
    assert model.head.loss.inner.p == 0.5
    model.train()(images())["loss_cls"].backward()
    assert int(model.head.loss.inner.roi_count.sum()) == 5
    focal = small_model(MODEL__LOGN__LOSS="focal(prior=0.01)")
    assert focal.head.cls_score.bias.sigmoid().tolist() == pytest.approx([0.01] * K)


def test_losses_without_such_a_form_are_refused():
    with pytest.raises(UserError, match="'bags' has no form without background"):
        small_model(MODEL__LOGN__LOSS="bags")


def test_logn_is_equation_1_and_standardises_the_training_logits():
    model, inputs = small_model(), images(40)
    raw = raw_logits(model, inputs).double()
    statistics = statistics_of(model, inputs)
    mean, std = raw.mean(0), raw.std(0)
    with attach(model, statistics):
        calibrated = model.head.calibration(raw)
        scores = scores_of(model, inputs)
    torch.testing.assert_close(calibrated, (raw - mean) / std, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(calibrated.mean(0), torch.zeros(K).double(), atol=1e-5, rtol=0)
    torch.testing.assert_close(calibrated.std(0), torch.ones(K).double(), atol=1e-5, rtol=0)
    torch.testing.assert_close(scores.double(), calibrated.softmax(1), rtol=1e-4, atol=1e-5)
    assert calibration_of(model.head) is None
    torch.testing.assert_close(scores_of(model, inputs).double(), raw.softmax(1))


def test_statistics_by_config_are_the_same_calibration(tmp_path):
    model, inputs = small_model(), images(40)
    path = tmp_path / "stats.safetensors"
    statistics_of(model, inputs).save(path)
    by_config = small_model(MODEL__LOGN__STATISTICS=str(path))
    attach(model, path)
    assert torch.equal(scores_of(by_config, inputs), scores_of(model, inputs))
    assert list(by_config.state_dict()) == list(model.state_dict())
    other = small_model(MODEL__LOGN__STATISTICS=str(path))
    torch.nn.init.normal_(other.head.cls_score.weight)
    with pytest.raises(StatisticsError, match="other weights"):
        other.eval()(inputs)


def test_tau_norm_by_config_follows_the_weights():
    model = small_model(MODEL__LOGN__CALIBRATION="tau_norm(tau=1, keep_bias=False)").eval()
    torch.nn.init.normal_(model.head.cls_score.weight)
    inputs = images()
    weight, bias = model.head.cls_score.weight, model.head.cls_score.bias
    expected = (raw_logits(model, inputs) - bias) / weight.norm(dim=1)
    torch.testing.assert_close(scores_of(model, inputs), expected.softmax(1))


def test_calibrations_of_detectors_are_refused():
    detector = AffineCalibration.identity(K)
    with pytest.raises(UserError, match="background column last; this model has 4 classes and the"):
        attach(small_model(), detector)
    with pytest.raises(UserError, match="background column last; this model has .* column none"):
        ClassifierHead(8, num_classes=K, calibration=detector)
    with pytest.raises(UserError, match="are normalised after it"):
        attach(small_model(MODEL__LOGN__LOSS="logit_norm"), AffineCalibration.identity(K, "none"))


@pytest.mark.parametrize("classifier", ["linear", "cosine"])
def test_fold_gives_the_same_scores_without_a_calibration(classifier):
    model, inputs = small_model(MODEL__LOGN__CLASSIFIER=classifier), images(40)
    folded = copy.deepcopy(model)
    calibration = logn(statistics_of(model, inputs).stages[0], background="none")
    attach(model, calibration)
    fold(folded, calibration)
    assert calibration_of(folded.head) is None
    torch.testing.assert_close(
        scores_of(folded, inputs), scores_of(model, inputs), rtol=1e-4, atol=1e-5
    )
    detach(model)


def test_copies_and_devices_take_the_calibration_along():
    model, inputs = small_model(), images()
    attach(model, AffineCalibration(torch.ones(K), torch.arange(float(K)), background="none"))
    again = copy.deepcopy(model).double()
    assert calibration_of(again.head) is not calibration_of(model.head)
    torch.testing.assert_close(scores_of(copy.deepcopy(model), inputs), scores_of(model, inputs))


def test_a_detectron2_backbone_and_its_maps():
    cfg = small_config(
        MODEL__BACKBONE__NAME="build_resnet_backbone",
        MODEL__PIXEL_MEAN=[0.0] * 3,
        MODEL__PIXEL_STD=[1.0] * 3,
        MODEL__RESNETS__DEPTH=18,
        MODEL__RESNETS__RES2_OUT_CHANNELS=64,
        MODEL__RESNETS__STRIDE_IN_1X1=False,
        MODEL__RESNETS__OUT_FEATURES=["res3", "res5"],
    )
    model = build_model(cfg)
    assert model.in_feature == "res5" and model.head.cls_score.in_features == 512
    inputs = [{"image": torch.rand(3, 40, 50)}]
    assert model.eval()(inputs)[0]["scores"].shape == (K,)
    cfg.MODEL.LOGN.IMAGE.IN_FEATURE = "res3"
    assert build_model(cfg).head.cls_score.in_features == 128
    cfg.MODEL.LOGN.IMAGE.IN_FEATURE = "res9"
    with pytest.raises(UserError, match="no map 'res9'. It has res3, res5"):
        build_model(cfg)


def test_torchvision_classifiers_by_name():
    backbone = TorchvisionFeatures("mobilenet_v3_small").eval()
    (shape,) = backbone.output_shape().values()
    with torch.no_grad():
        pooled = backbone(torch.rand(2, 3, 32, 32))["pooled"]
    assert pooled.shape == (2, shape.channels, 1, 1)
    cfg = small_config(
        MODEL__BACKBONE__NAME="build_torchvision_features",
        MODEL__PIXEL_MEAN=[0.0] * 3,
        MODEL__PIXEL_STD=[1.0] * 3,
        MODEL__LOGN__BACKBONE__NETWORK="resnet18",
    )
    assert build_model(cfg).head.cls_score.in_features == 512
    with pytest.raises(UnknownNameError, match="network 'resnet19'. Known:.*resnet18"):
        TorchvisionFeatures("resnet19")
    with pytest.raises(UserError, match="auxiliary"):
        TorchvisionFeatures("googlenet")
    with pytest.raises(UserError, match="squeezenet1_0 ends in a"):
        TorchvisionFeatures("squeezenet1_0")


def test_torchvision_features_are_those_before_the_classifier():
    from torchvision.models import resnet18

    torch.manual_seed(0)
    theirs = resnet18(weights=None).eval()
    backbone = TorchvisionFeatures("resnet18").eval()
    missing, unexpected = backbone.body.load_state_dict(theirs.state_dict(), strict=False)
    assert not missing and set(unexpected) == {"fc.weight", "fc.bias"}
    x = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(theirs.fc(backbone(x)["pooled"][..., 0, 0]), theirs(x))


def test_lazy_twin_builds_without_cfg():
    lazy = LazyCall(ImageClassifier)(
        backbone=LazyCall(MLPBackbone)(channels=1, size=6, hidden=[16, 8]),
        head=LazyCall(ClassifierHead)(in_features=8, num_classes=K, loss="seesaw"),
        pixel_mean=[100.0],
        pixel_std=[50.0],
    )
    model, by_config = instantiate(lazy), small_model(MODEL__LOGN__LOSS="seesaw")
    model.load_state_dict(by_config.state_dict())
    assert torch.equal(scores_of(model, images()), scores_of(by_config, images()))


def test_images_that_do_not_fit():
    model = small_model()
    two = [*images(1), {"image": torch.zeros(1, 6, 7), "file_name": "wide.png"}]
    with pytest.raises(UserError, match=r"\(1, 6, 6\) and \(1, 6, 7\) \(wide.png\)"):
        model(two)
    with pytest.raises(UserError, match="3 channels, MODEL.PIXEL_MEAN is for 1"):
        model(images(1, channels=3))
    with pytest.raises(UserError, match=r"shape \(1, 6, 6\).*found \(1, 7, 7\)"):
        model([{"image": torch.zeros(1, 7, 7)}])


def test_other_mistakes():
    with pytest.raises(UserError, match="The classifier is 'cos'"):
        small_model(MODEL__LOGN__CLASSIFIER="cos")
    with pytest.raises(UserError, match="HIDDEN is empty"):
        small_model(MODEL__LOGN__IMAGE__HIDDEN=[])
    cfg = get_cfg()
    cfg.MODEL.DEVICE, cfg.MODEL.META_ARCHITECTURE = "cpu", "ImageClassifier"
    with pytest.raises(UserError, match="no MODEL.LOGN"):
        build_model(cfg)
    add_logn_config(cfg)
    assert len(find_box_predictors(small_model())) == 1


def test_one_image_and_its_half_precision():
    model = small_model().eval()
    assert len(model(images(1))) == 1
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
        output = model(images(2))[0]
    assert output["scores"].dtype == torch.float32
