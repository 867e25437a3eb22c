"""Our heads equal Detectron2's except for a calibration, which acts only at test."""

import copy
import pickle
from dataclasses import replace

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import MetadataCatalog
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_model
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.roi_heads import FastRCNNOutputLayers
from detectron2.utils.events import EventStorage

from logn_d2.core import AffineCalibration, StatisticsError, logn
from logn_d2.modeling import (
    CosineLinear,
    LogitRecorder,
    LogNFastRCNNOutputLayers,
    combine_stages,
)

from .small_models import (
    CLASS_NAMES,
    NUM_CLASSES,
    PARENTS,
    assert_same,
    detections,
    images,
    small_config,
    small_model,
    statistics_of,
)

CALIBRATED = {"MODEL__MASK_ON": False}


def predictor(**options) -> LogNFastRCNNOutputLayers:
    """Built as a LazyConfig builds it."""
    torch.manual_seed(0)
    transform = Box2BoxTransform(weights=(10.0, 10.0, 5.0, 5.0))
    shape = ShapeSpec(channels=8)
    return LogNFastRCNNOutputLayers(shape, box2box_transform=transform, num_classes=4, **options)


@pytest.mark.parametrize("head", PARENTS)
def test_without_calibration_outputs_equal_the_parents(head):
    ours, parent = small_model(head), small_model(PARENTS[head])
    assert list(ours.state_dict()) == list(parent.state_dict())
    assert_same(detections(ours, images()), detections(parent, images()))


@pytest.mark.parametrize("head", PARENTS)
def test_without_calibration_training_equals_the_parents(head):
    losses = []
    for name in (head, PARENTS[head]):
        model = small_model(name).train()
        torch.manual_seed(1)
        with EventStorage():
            losses.append(model(images()))
    assert losses[0].keys() == losses[1].keys()
    assert all(torch.equal(losses[0][k], losses[1][k]) for k in losses[0])


@pytest.mark.parametrize("head", PARENTS)
def test_a_seed_gives_the_parents_initial_weights(head):
    states = []
    for name in (head, PARENTS[head]):
        torch.manual_seed(3)
        states.append(build_model(small_config(name)))
    ours, parent = (model.state_dict() for model in states)
    assert all(torch.equal(ours[key], parent[key]) for key in parent)


@pytest.mark.parametrize("head", PARENTS)
def test_statistics_in_the_config_calibrate_each_stage(head, tmp_path):
    model = small_model(head, **CALIBRATED)
    statistics = statistics_of(model)
    statistics.save(tmp_path / "s.safetensors")
    options = {"MODEL__LOGN__STATISTICS": str(tmp_path / "s.safetensors"), **CALIBRATED}
    calibrated = small_model(head, **options)
    predictors = calibrated.roi_heads.box_predictor
    predictors = predictors if head == "LogNCascadeROIHeads" else [predictors]
    for one, stage in zip(predictors, statistics.stages):
        assert torch.equal(one.calibration.column_scale, logn(stage).column_scale)
    before, after = detections(model, images()), detections(calibrated, images())
    assert not torch.equal(before[0]["scores"], after[0]["scores"])
    assert list(calibrated.state_dict()) == list(model.state_dict())


def test_calibration_is_the_map_before_the_parents_probabilities():
    calibration = AffineCalibration(torch.tensor([2.0, 1, 1, 0.5]), torch.tensor([0.0, 1, -1, 2]))
    ours = predictor(calibration=calibration)
    logits, proposals = torch.randn(6, 5), [[0] * 2, [0] * 4]
    (first, second) = ours.predict_probs((logits, torch.zeros(6, 16)), proposals)
    scale, shift = torch.tensor([2, 1, 1, 0.5, 1]), torch.tensor([0, 1, -1, 2, 0])
    expected = torch.softmax(logits * scale + shift, dim=1)
    torch.testing.assert_close(torch.cat([first, second]), expected)
    assert (len(first), len(second)) == (2, 4)


def test_calibration_leaves_training_alone(tmp_path):
    losses = []
    for text in ("", "temperature(temperature=3)"):
        model = small_model("LogNROIHeads", MODEL__LOGN__CALIBRATION=text).train()
        torch.manual_seed(1)
        with EventStorage():
            losses.append(model(images()))
    assert all(torch.equal(losses[0][k], losses[1][k]) for k in losses[0])


def test_a_sigmoid_head_takes_the_same_foreground_map():
    class Sigmoid(FastRCNNOutputLayers):
        def predict_probs(self, predictions, proposals):
            return predictions[0].sigmoid().split([len(p) for p in proposals])

    class Ours(LogNFastRCNNOutputLayers, Sigmoid):
        pass

    transform = Box2BoxTransform(weights=(10.0, 10.0, 5.0, 5.0))
    calibration = AffineCalibration(torch.tensor([2.0]), torch.tensor([1.0]))
    ours = Ours(8, box2box_transform=transform, num_classes=1, calibration=calibration)
    logits = torch.tensor([[3.0, 5.0]])
    (probs,) = ours.predict_probs((logits, torch.zeros(1, 4)), [[0]])
    assert torch.equal(probs, torch.tensor([[7.0, 5.0]]).sigmoid())


@pytest.mark.skipif(
    "USE_SIGMOID_CE" not in get_cfg().MODEL.ROI_BOX_HEAD, reason="needs Detectron2 after 0.6"
)
@pytest.mark.parametrize("head", ["LogNROIHeads", "LogNCascadeROIHeads"])
def test_sigmoid_and_federated_losses_equal_the_parents(head):
    counts = [{"id": index + 1, "image_count": 10 * index + 1} for index in range(NUM_CLASSES)]
    MetadataCatalog.get("federated_test").class_image_count = counts
    box_head = "MODEL__ROI_BOX_HEAD__"
    options = {
        f"{box_head}USE_SIGMOID_CE": True,
        f"{box_head}USE_FED_LOSS": True,
        f"{box_head}FED_LOSS_NUM_CLASSES": 3,
        "DATASETS__TRAIN": ("federated_test",),
        **CALIBRATED,
    }
    losses, found = [], []
    for name in (head, PARENTS[head]):
        model = small_model(name, **options)
        found.append(detections(model, images()))
        torch.manual_seed(1)
        with EventStorage():
            losses.append(model.train()(images()))
    MetadataCatalog.remove("federated_test")
    assert_same(*found)
    assert all(torch.equal(losses[0][k], losses[1][k]) for k in losses[0])


def test_average_of_logits_is_of_calibrated_logits(tmp_path):
    options = {"MODEL__LOGN__CALIBRATION": "temperature(temperature=2)", **CALIBRATED}
    model = small_model("LogNCascadeROIHeads", **options)
    seen = []
    for one in model.roi_heads.box_predictor:
        one.register_forward_hook(lambda m, i, outputs: seen.append(outputs[0]))
    model.roi_heads.cascade_average = "logits"
    (found,) = detections(model, images(1))
    scale = torch.tensor([0.5] * NUM_CLASSES + [1.0])
    probs = torch.softmax(sum(logits * scale for logits in seen) / 3, dim=1)[:, :-1]
    best = probs.max()
    torch.testing.assert_close(found["scores"].max(), best)
    model.roi_heads.cascade_average = "probs"
    assert detections(model, images(1))[0]["scores"].max() != best


def test_unknown_average_names_the_known_ones():
    with pytest.raises(ValueError, match="'probs' or 'logits'"):
        small_model("LogNCascadeROIHeads", MODEL__LOGN__CASCADE_AVERAGE="mean")


def test_cascade_predictors_keep_their_stages_box_weights():
    model, parent = small_model("LogNCascadeROIHeads"), small_model("CascadeROIHeads")
    for ours, theirs in zip(model.roi_heads.box_predictor, parent.roi_heads.box_predictor):
        assert ours.box2box_transform.weights == theirs.box2box_transform.weights


def test_predictor_needs_no_config():
    ours = predictor(classifier="cosine", temperature=5.0)
    assert isinstance(ours.cls_score, CosineLinear) and ours.cls_score.temperature == 5.0
    logits, deltas = ours(torch.randn(3, 8))
    assert logits.shape == (3, 5) and deltas.shape == (3, 16)


def test_unknown_classifier_names_the_known_ones():
    with pytest.raises(ValueError, match="'linear' or 'cosine'"):
        predictor(classifier="normed")


def test_calibration_of_another_size_is_refused():
    with pytest.raises(ValueError, match="is for 9 classes .*; this model has 4"):
        predictor(calibration=AffineCalibration.identity(9))


def test_other_weights_are_noticed_at_the_first_calibrated_output(tmp_path):
    path = str(tmp_path / "s.safetensors")
    statistics_of(small_model("LogNROIHeads", seed=5)).save(path)
    model = small_model("LogNROIHeads", seed=0, MODEL__LOGN__STATISTICS=path, **CALIBRATED)
    with pytest.raises(StatisticsError, match="other weights"):
        detections(model, images(1))
    model.roi_heads.box_predictor.weights_check = None
    detections(model, images(1))


def test_other_class_names_are_noticed_when_the_model_is_built(tmp_path):
    path = str(tmp_path / "s.safetensors")
    replace(statistics_of(small_model()), class_names=tuple("abXde")).save(path)
    MetadataCatalog.get("heads_test").thing_classes = list(CLASS_NAMES)
    try:
        with pytest.raises(StatisticsError, match="class 2 is 'c'"):
            small_model(MODEL__LOGN__STATISTICS=path, DATASETS__TRAIN=("heads_test",))
    finally:
        MetadataCatalog.remove("heads_test")


def test_building_a_model_does_not_invent_data_sets():
    before = set(MetadataCatalog.list())
    small_model(MODEL__LOGN__CALIBRATION="uncalibrated", DATASETS__TRAIN=("no_such_set",))
    assert set(MetadataCatalog.list()) == before


def test_the_error_for_missing_statistics_has_the_remedy():
    with pytest.raises(FileNotFoundError, match="logn collect"):
        small_model(MODEL__LOGN__STATISTICS="/no/such/file")


@pytest.mark.parametrize("head", PARENTS)
def test_copies_work_alone(head, tmp_path):
    model = small_model(head, MODEL__LOGN__CALIBRATION="temperature(temperature=2)", **CALIBRATED)
    expected = detections(model, images())
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert_same(detections(twin, images()), expected)


def test_calibration_follows_the_model():
    model = small_model(MODEL__LOGN__CALIBRATION="temperature(temperature=2)")
    assert model.to("meta").roi_heads.box_predictor.calibration.column_scale.device.type == "meta"


@pytest.mark.parametrize("head", PARENTS)
def test_every_checkpoint_gets_a_calibration_of_its_own_weights(head):
    model = small_model(head, MODEL__LOGN__CALIBRATION="tau_norm", **CALIBRATED)
    for seed in (1, 2):
        alone = small_model(head, seed=seed, MODEL__LOGN__CALIBRATION="tau_norm", **CALIBRATED)
        model.load_state_dict(alone.state_dict())
        assert_same(detections(model, images(1)), detections(alone, images(1)))


def test_every_checkpoint_is_compared_with_the_statistics(tmp_path):
    path, own = str(tmp_path / "s.safetensors"), small_model("LogNROIHeads", **CALIBRATED)
    statistics_of(own).save(path)
    model = small_model("LogNROIHeads", MODEL__LOGN__STATISTICS=path, **CALIBRATED)
    for _ in range(2):
        model.load_state_dict(own.state_dict())
        detections(model, images(1))
        model.load_state_dict(small_model("LogNROIHeads", seed=5, **CALIBRATED).state_dict())
        with pytest.raises(StatisticsError, match="other weights"):
            detections(model, images(1))


def test_logits_of_detectron2s_predictors_are_not_averaged():
    recording = LogitRecorder(small_model("CascadeROIHeads"), "proposals")(images(1))
    with pytest.raises(ValueError, match="FastRCNNOutputLayers can't be averaged"):
        combine_stages(recording.stages, "logits")
