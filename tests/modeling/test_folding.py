"""A folded model against the same model with its calibration attached."""

from __future__ import annotations

import copy
import doctest

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.modeling.roi_heads import FastRCNNOutputLayers
from torch import nn
from torchvision.models.detection import fasterrcnn_mobilenet_v3_large_320_fpn

from logn_d2.core import AffineCalibration, StatisticsError, stage_calibrations
from logn_d2.modeling import (
    LogNFastRCNNOutputLayers,
    attach,
    find_box_predictors,
    fold,
    folding,
    plain_config,
)

from .small_models import (
    CHANNELS,
    NUM_CLASSES,
    PARENTS,
    assert_same,
    detections,
    images,
    small_config,
    small_model,
    statistics_of,
)


def calibrations_of(model: nn.Module, text: str = "logn") -> list[AffineCalibration]:
    statistics = statistics_of(model)
    stages = len(statistics.stages)
    return stage_calibrations(
        text, num_classes=NUM_CLASSES, num_stages=stages, statistics=statistics
    )


def calibrated(model: nn.Module, calibrations: list[AffineCalibration]) -> nn.Module:
    """A copy of the model that carries the calibrations."""
    model = copy.deepcopy(model)
    for predictor, calibration in zip(find_box_predictors(model), calibrations):
        predictor.calibration = calibration
    return model


def predictor(classifier: str = "linear", seed: int = 0) -> LogNFastRCNNOutputLayers:
    torch.manual_seed(seed)
    layer = LogNFastRCNNOutputLayers(small_config(MODEL__LOGN__CLASSIFIER=classifier), _shape())
    nn.init.normal_(layer.cls_score.weight)
    nn.init.normal_(layer.cls_score.bias)
    return layer


def _shape() -> object:
    from detectron2.layers import ShapeSpec

    return ShapeSpec(channels=CHANNELS)


def random_calibration(seed: int = 0) -> AffineCalibration:
    generator = torch.Generator().manual_seed(seed)
    scale = 0.1 + 3 * torch.rand(NUM_CLASSES, generator=generator)
    return AffineCalibration(scale, torch.randn(NUM_CLASSES, generator=generator) * 3, name="drawn")


def assert_close(left: list[dict], right: list[dict], tolerance: float = 1e-5) -> None:
    for one, other in zip(left, right, strict=True):
        assert len(one["scores"]) > 0
        assert torch.equal(one["pred_classes"], other["pred_classes"])
        torch.testing.assert_close(one["scores"], other["scores"], rtol=0, atol=tolerance)
        torch.testing.assert_close(one["pred_boxes"], other["pred_boxes"], rtol=0, atol=1e-3)


@pytest.mark.parametrize("classifier", ["linear", "cosine"])
@pytest.mark.parametrize("head", PARENTS)
def test_folded_model_has_the_detections_of_the_calibrated_one(head, classifier):
    model = small_model(head, MODEL__LOGN__CLASSIFIER=classifier)
    calibrations = calibrations_of(model)
    expected = detections(calibrated(model, calibrations), images())
    assert not torch.equal(expected[0]["scores"], detections(model, images())[0]["scores"])
    assert fold(model, calibrations) is model
    assert_close(detections(model, images()), expected)


@pytest.mark.parametrize("classifier", ["linear", "cosine"])
def test_raw_logits_of_the_folded_classifier_are_the_calibrated_ones(classifier):
    layer, calibration = predictor(classifier).double(), random_calibration()
    x = torch.randn(7, CHANNELS, dtype=torch.float64)
    expected = calibration.double()(layer(x)[0])
    fold(layer, calibration)
    torch.testing.assert_close(layer(x)[0], expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("classifier", ["linear", "cosine"])
def test_background_logit_is_untouched(classifier):
    layer, x = predictor(classifier), torch.randn(7, CHANNELS)
    before = layer(x)[0]
    fold(layer, random_calibration())
    after = layer(x)[0]
    assert torch.equal(before[:, -1], after[:, -1])
    assert not torch.isclose(before[:, :-1], after[:, :-1]).any(dim=0).all()


def test_box_deltas_are_untouched():
    layer, x = predictor(), torch.randn(7, CHANNELS)
    before = layer(x)[1]
    fold(layer, random_calibration())
    assert torch.equal(layer(x)[1], before)


def test_worked_example_of_the_paper_s_formula():
    layer = predictor()
    layer.cls_score = nn.Linear(2, 4)
    layer.num_classes = 3
    with torch.no_grad():
        layer.cls_score.weight.copy_(torch.tensor([[2, -0.5], [0.5, 0], [-1, -2], [1, 3]]))
        layer.cls_score.bias.copy_(torch.tensor([0.1, 0.2, 0.3, 0.4]))
    # LogN of means (-2, -3, -3), deviations (2, 1.5, 1), and so beta = -3.
    scale = 1 / torch.tensor([2, 1.5, 1])
    shift = torch.tensor([-3 + 2, -3 + 3, -3 + 3]) * scale
    fold(layer, AffineCalibration(scale, shift))
    weight = torch.tensor([[1, -0.25], [1 / 3, 0], [-1, -2], [1, 3]])
    bias = torch.tensor([-0.45, 0.2 / 1.5, 0.3, 0.4])
    torch.testing.assert_close(layer.cls_score.weight, nn.Parameter(weight))
    torch.testing.assert_close(layer.cls_score.bias, nn.Parameter(bias))


@pytest.mark.parametrize("classifier", ["linear", "cosine"])
def test_folding_twice_is_folding_the_composition(classifier):
    first, second = random_calibration(1), random_calibration(2)
    composed = AffineCalibration(
        second.scale * first.scale, second.scale * first.shift + second.shift
    )
    twice, once = predictor(classifier).double(), predictor(classifier).double()
    fold(fold(twice, first), second)
    fold(once, composed)
    x = torch.randn(7, CHANNELS, dtype=torch.float64)
    torch.testing.assert_close(twice(x)[0], once(x)[0], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("classifier", ["linear", "cosine"])
def test_identity_changes_nothing(classifier):
    layer, x = predictor(classifier), torch.randn(7, CHANNELS)
    before = layer(x)[0]
    fold(layer, AffineCalibration.identity(NUM_CLASSES))
    assert torch.equal(layer(x)[0], before)


@pytest.mark.parametrize("head", PARENTS)
def test_calibration_that_the_model_carries_is_not_applied_twice(head):
    model = small_model(head)
    calibrations = calibrations_of(model)
    carrying = calibrated(model, calibrations)
    expected = detections(carrying, images())
    fold(carrying, calibrations)
    assert not [m for m in carrying.modules() if isinstance(m, AffineCalibration)]
    assert_close(detections(carrying, images()), expected)


@pytest.mark.parametrize(("head", "twin"), PARENTS.items())
def test_folded_linear_model_is_a_plain_detectron2_model(head, twin):
    model = small_model(head)
    calibrations = calibrations_of(model)
    fold(model, calibrations)
    plain = small_model(twin, seed=1)
    assert list(model.state_dict()) == list(plain.state_dict())
    plain.load_state_dict(model.state_dict())
    assert_same(detections(plain, images()), detections(model, images()))


@pytest.mark.parametrize(("head", "twin"), PARENTS.items())
def test_a_model_without_our_heads_folds_equally(head, twin):
    plain, ours = small_model(twin), small_model(head)
    calibrations = calibrations_of(plain)
    fold(plain, calibrations)
    expected = detections(calibrated(ours, calibrations), images())
    assert_close(detections(plain, images()), expected)


def test_each_stage_absorbs_its_own_calibration():
    model = small_model("LogNCascadeROIHeads")
    before = [p.cls_score.weight.detach().clone() for p in find_box_predictors(model)]
    calibrations = [random_calibration(seed) for seed in range(3)]
    fold(model, calibrations)
    for predictor_, weight, calibration in zip(find_box_predictors(model), before, calibrations):
        expected = weight[:-1] * calibration.scale[:, None]
        torch.testing.assert_close(predictor_.cls_score.weight[:-1], nn.Parameter(expected))


class SigmoidOutputLayers(FastRCNNOutputLayers):
    """A head whose scores are sigmoids, as newer Detectron2 has them."""

    def predict_probs(self, predictions, proposals):
        return predictions[0].sigmoid().split([len(p) for p in proposals])


class CalibratedSigmoidOutputLayers(SigmoidOutputLayers):
    def predict_probs(self, predictions, proposals):
        logits, deltas = predictions
        return super().predict_probs((self.calibration(logits), deltas), proposals)


def test_sigmoid_heads_fold_equally():
    model = small_model("StandardROIHeads")
    model.roi_heads.box_predictor.__class__ = SigmoidOutputLayers
    calibrations = calibrations_of(model)
    other = calibrated(model, calibrations)
    other.roi_heads.box_predictor.__class__ = CalibratedSigmoidOutputLayers
    expected = detections(other, images())
    assert_close(detections(fold(model, calibrations), images()), expected)


@pytest.mark.parametrize("head", ["LogNROIHeads", "LogNCascadeROIHeads"])
def test_folded_cosine_checkpoint_loads_into_a_model_of_its_config(head):
    cfg = small_config(head, MODEL__LOGN__CLASSIFIER="cosine")
    model = small_model(head, MODEL__LOGN__CLASSIFIER="cosine")
    unfolded = set(model.state_dict())
    assert not [key for key in unfolded if key.endswith("gain")]
    fold(model, calibrations_of(model))
    gains = set(model.state_dict()) - unfolded
    assert gains and all(key.endswith("cls_score.gain") for key in gains)
    torch.manual_seed(1)
    loaded = build_model(plain_config(cfg, model)).eval()
    loaded.load_state_dict(model.state_dict())
    assert_same(detections(loaded, images()), detections(model, images()))


def test_cosine_weights_stay_as_they_are():
    layer = predictor("cosine")
    before = layer.cls_score.weight.detach().clone()
    calibration = random_calibration()
    fold(layer, calibration)
    assert torch.equal(layer.cls_score.weight, before)
    assert torch.equal(layer.cls_score.gain, calibration.column_scale)


def test_classifier_without_bias_gets_one():
    layer, calibration = predictor(), random_calibration()
    layer.cls_score = nn.Linear(CHANNELS, NUM_CLASSES + 1, bias=False)
    x = torch.randn(7, CHANNELS)
    expected = calibration(layer.cls_score(x))
    fold(layer, calibration)
    torch.testing.assert_close(layer.cls_score(x), expected)
    assert "cls_score.bias" in layer.state_dict()


def test_last_layer_of_a_sequence_is_the_classifier():
    layer, calibration = predictor(), random_calibration()
    layer.cls_score = nn.Sequential(nn.ReLU(), layer.cls_score)
    x = torch.randn(7, CHANNELS)
    expected = calibration(layer(x)[0])
    fold(layer, calibration)
    torch.testing.assert_close(layer(x)[0], expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_rounded_once(dtype):
    layer, calibration = predictor().to(dtype), random_calibration()
    weight = layer.cls_score.weight.double() * calibration.column_scale.double()[:, None]
    fold(layer, calibration)
    assert torch.equal(layer.cls_score.weight, weight.to(dtype))


def test_parameters_stay_the_same_objects():
    layer = predictor()
    parameters = list(layer.parameters())
    fold(layer, random_calibration())
    assert all(a is b for a, b in zip(parameters, layer.parameters(), strict=True))
    assert all(parameter.requires_grad for parameter in layer.parameters())


@pytest.mark.parametrize("head", [*PARENTS, *PARENTS.values()])
def test_attached_calibration_is_folded_and_removed(head):
    model = small_model(head)
    attach(model, statistics_of(model), calibration="logn(beta=mean)")
    expected = detections(model, images())
    assert_close(detections(fold(model), images()), expected)
    assert not [m for m in model.modules() if isinstance(m, AffineCalibration)]
    with pytest.raises(ValueError, match="carries no calibration"):
        fold(model)


def test_calibration_that_is_given_takes_the_place_of_the_attached_one():
    model, other = small_model("StandardROIHeads"), small_model("StandardROIHeads")
    attach(model, random_calibration(1))
    fold(model, random_calibration(2))
    fold(other, random_calibration(2))
    assert_same(detections(model, images()), detections(other, images()))


def test_statistics_of_other_weights_in_the_config_are_found(tmp_path):
    path = str(tmp_path / "stats.safetensors")
    statistics_of(small_model("LogNROIHeads", seed=1)).save(path)
    model = small_model("LogNROIHeads", MODEL__LOGN__STATISTICS=path)
    with pytest.raises(StatisticsError, match="other weights"):
        fold(model)


def test_torchvision_detectors_fold():
    torch.manual_seed(0)
    # Nothing is suppressed: among random boxes a last bit decides which of two stays.
    model = fasterrcnn_mobilenet_v3_large_320_fpn(
        weights=None, weights_backbone=None, num_classes=NUM_CLASSES + 1, min_size=64, max_size=64,
        box_nms_thresh=1.0, box_score_thresh=0.0, box_detections_per_img=10**6,
    ).eval()  # fmt: skip
    nn.init.normal_(model.roi_heads.box_predictor.cls_score.weight, std=0.01)
    scale = 0.5 + torch.rand(NUM_CLASSES)
    calibration = AffineCalibration(scale, torch.randn(NUM_CLASSES), background="first")
    image = [torch.rand(3, 64, 64)]
    with torch.no_grad():
        raw = model(image)
        attach(model, calibration)
        (expected,) = model(image)
        (found,) = fold(model)(image)
    assert len(found["scores"]) and not torch.equal(raw[0]["scores"], found["scores"])
    torch.testing.assert_close(found["scores"], expected["scores"], rtol=0, atol=1e-5)
    assert torch.equal(found["labels"].bincount(), expected["labels"].bincount())


class Strange(nn.Linear):
    """What becomes of its weights nothing tells."""

    def forward(self, x):
        return super().forward(x).square()


def test_unknown_classifier_is_refused_and_nothing_changes():
    model = small_model("LogNCascadeROIHeads")
    last = find_box_predictors(model)[-1]
    last.cls_score = Strange(last.cls_score.in_features, NUM_CLASSES + 1)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match="ends in a Strange"):
        fold(model, [random_calibration()] * 3)
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


def test_reparametrised_classifier_is_refused():
    layer = predictor()
    nn.utils.parametrizations.weight_norm(layer.cls_score)
    with pytest.raises(ValueError, match="Linear or CosineLinear named cls_score, with plain"):
        fold(layer, random_calibration())


def test_shared_weights_are_refused():
    model = small_model("LogNCascadeROIHeads")
    first, second, _ = find_box_predictors(model)
    second.cls_score = first.cls_score
    with pytest.raises(ValueError, match="shares its weights: .*0.cls_score.*1.cls_score"):
        fold(model, [random_calibration()] * 3)


def test_numbers_of_stages_and_classes_must_fit():
    with pytest.raises(ValueError, match="has 3 box predictors .* but 1 calibrations"):
        fold(small_model("LogNCascadeROIHeads"), random_calibration())
    with pytest.raises(ValueError, match="for 3 classes .*; this model has 5 classes"):
        fold(predictor(), AffineCalibration.identity(3))
    with pytest.raises(ValueError, match="background column first; this model has .* column last"):
        fold(predictor(), AffineCalibration.identity(NUM_CLASSES, "first"))


def test_weights_that_overflow_are_refused():
    layer = predictor().half()
    with pytest.raises(ValueError, match="not finite in torch.float16"):
        fold(layer, AffineCalibration(torch.full((NUM_CLASSES,), 1e9), torch.zeros(NUM_CLASSES)))
    assert layer.cls_score.weight.isfinite().all()


def test_examples_of_the_docstrings_run():
    results = doctest.testmod(folding)
    assert results.attempted and not results.failed
