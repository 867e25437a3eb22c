"""The box head trains with any registered loss, and uses that loss's scores."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.roi_heads import FastRCNNOutputLayers
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from torch import Tensor, nn

from logn_d2.collection import collect_statistics
from logn_d2.core import LOSS_REGISTRY, AffineCalibration, ClassCounts, build_loss
from logn_d2.data import class_counts
from logn_d2.modeling import (
    CosineLinear,
    LogNFastRCNNOutputLayers,
    attach,
    fold,
    parts_of_logn_d2,
    plain_config,
)
from logn_d2.sweeps import sweep

from .small_models import (
    CLASS_NAMES,
    NUM_CLASSES,
    PARENTS,
    assert_same,
    detections,
    images,
    small_config,
    small_model,
)

NAMES = sorted(LOSS_REGISTRY)
IMAGES_OF_CLASS = [30, 12, 5, 1, 0]
DATASET = "counted_in_test_losses"


def _records() -> list[dict]:
    return [
        {"annotations": [{"category_id": c} for c in range(NUM_CLASSES) if i < IMAGES_OF_CLASS[c]]}
        for i in range(40)
    ]


@pytest.fixture(autouse=True, scope="module")
def _counted():
    DatasetCatalog.register(DATASET, _records)
    MetadataCatalog.get(DATASET).thing_classes = list(CLASS_NAMES)
    yield
    DatasetCatalog.remove(DATASET)
    MetadataCatalog.remove(DATASET)


def model_with(loss: str, head: str = "LogNROIHeads", **options: object) -> nn.Module:
    options = {"MODEL__MASK_ON": False, "DATASETS__TRAIN": (DATASET,), **options}
    return small_model(head, MODEL__LOGN__LOSS=loss, **options)


def predictor(loss: object = None, **options: object) -> LogNFastRCNNOutputLayers:
    """Built as a LazyConfig builds it."""
    torch.manual_seed(0)
    transform = Box2BoxTransform(weights=(10.0, 10.0, 5.0, 5.0))
    return LogNFastRCNNOutputLayers(
        8, box2box_transform=transform, num_classes=4, loss=loss, **options
    )


def proposals(labels: list[int], objects: list[int]) -> Instances:
    """One image's matched RoIs."""
    instances = Instances((50, 50))
    corner = torch.arange(len(labels), dtype=torch.float32)[:, None]
    instances.proposal_boxes = Boxes(torch.cat([corner, corner, corner + 9, corner + 8], dim=1))
    place = torch.tensor(objects, dtype=torch.float32)[:, None]
    instances.gt_boxes = Boxes(torch.cat([place, place, place + 10, place + 10], dim=1))
    instances.gt_classes = torch.tensor(labels)
    return instances


def step(model: nn.Module) -> dict[str, Tensor]:
    torch.manual_seed(1)
    with EventStorage() as storage:
        losses = model.train()(images())
        sum(losses.values()).backward()
        return {**losses, "accuracy": storage.latest().get("fast_rcnn/cls_accuracy")}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("head", PARENTS)
def test_every_head_trains_and_detects_with_every_loss(head, name):
    model = model_with(name, head)
    losses = step(model)
    stages = model.roi_heads.box_predictor
    stages = list(stages) if isinstance(stages, nn.ModuleList) else [stages]
    assert len({id(stage.loss) for stage in stages}) == len(stages)
    for index, stage in enumerate(stages):
        suffix = f"_stage{index}" if len(stages) > 1 else ""
        assert losses[f"loss_cls{suffix}"] > 0 and losses[f"loss_box_reg{suffix}"] >= 0
        assert stage.cls_score.out_features == stage.loss.num_outputs
        assert stage.cls_score.weight.grad.any()
    assert all(len(each["scores"]) for each in detections(model, images()))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("head", list(PARENTS)[:2])
def test_every_loss_trains_a_cosine_classifier(head, name):
    model = model_with(name, head, MODEL__LOGN__CLASSIFIER="cosine")
    assert step(model)
    classifiers = [each for each in model.modules() if isinstance(each, CosineLinear)]
    assert classifiers and all(each.weight.grad.any() for each in classifiers)


@pytest.mark.parametrize("head", PARENTS)
def test_cross_entropy_by_name_is_detectron2s_own(head):
    ours, theirs = model_with("cross_entropy", head), model_with("", head)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    ours.load_state_dict(theirs.state_dict())
    assert_same(detections(ours, images()), detections(theirs, images()))
    found, expected = step(ours), step(theirs)
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-6, atol=0)


def test_other_modules_begin_with_the_same_weights_whatever_the_loss():
    plain = model_with("").state_dict()
    state = model_with("seesaw").state_dict()
    assert all(torch.equal(state[name], plain[name]) for name in plain if "cls_score" not in name)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("classifier", ["linear", "cosine"])
def test_the_classifier_starts_from_the_prior_of_the_loss(name, classifier):
    ours = model_with(name, MODEL__LOGN__CLASSIFIER=classifier).roi_heads.box_predictor
    assert torch.equal(
        ours.cls_score.bias, torch.full((ours.loss.num_outputs,), ours.loss.initial_bias)
    )


@pytest.mark.parametrize("name", NAMES)
def test_the_loss_is_that_of_core_and_boxes_are_the_parents(name):
    counts = ClassCounts(tuple("abcd"), *2 * (torch.tensor([40, 9, 2, 1]).numpy(),), 99)
    ours, loss = predictor(name, counts=counts), build_loss(name, 4, counts)
    plain = predictor()
    ours.loss_weight = plain.loss_weight = {"loss_cls": 3.0, "loss_box_reg": 2.0}
    given = [proposals([0, 4, 1, 1], [0, 0, 1, 1]), proposals([4, 3], [5, 5])]
    logits, deltas = torch.randn(6, loss.num_outputs), torch.randn(6, 16)
    with EventStorage():
        torch.manual_seed(0)
        found = ours.losses((logits, deltas), given)
        boxes = plain.losses((logits[:, :5], deltas), given)["loss_box_reg"]
    torch.manual_seed(0)
    expected = 3 * loss(logits, torch.tensor([0, 4, 1, 1, 4, 3]), torch.tensor([0, 9, 1, 1, 9, 2]))
    torch.testing.assert_close(found["loss_cls"], expected)
    assert torch.equal(found["loss_box_reg"], boxes)


def test_objects_are_told_apart_by_image_and_box():
    ours = predictor("loce(momentum=0.5)")
    # One object with two RoIs; one of the same class and box in the other image; another one.
    given = [proposals([1, 1, 4], [7, 7, 7]), proposals([1, 1], [7, 8])]
    with EventStorage():
        ours.losses((torch.zeros(5, 5), torch.zeros(5, 16)), given)
    assert ours.loss.mean_score[1].item() == pytest.approx(0.125 * 0.01 + 0.875 * 0.2)


@pytest.mark.parametrize("name", NAMES)
def test_no_images_and_images_without_regions_cost_nothing(name):
    ours = model_with(name).roi_heads.box_predictor
    empty = Instances((50, 50))
    empty.proposal_boxes, empty.gt_classes = Boxes(torch.zeros(0, 4)), torch.zeros(0).long()
    logits = torch.zeros(0, ours.loss.num_outputs, requires_grad=True)
    deltas = torch.zeros(0, 4, requires_grad=True)
    for given in ([], [empty], [empty, empty]):
        with EventStorage():
            losses = ours.losses((logits, deltas), given)
        assert losses["loss_cls"].item() == 0
        losses["loss_cls"].backward()


@pytest.mark.parametrize("name", NAMES)
def test_exact_topk_finds_the_detections_of_detectron2(name):
    model = model_with(name)
    exact = detections(model, images())
    parents = FastRCNNOutputLayers.inference
    ours = model.roi_heads.box_predictor
    ours.__dict__["inference"] = parents.__get__(ours)
    assert_same(exact, detections(model, images()))


@pytest.mark.parametrize("average", ["probs", "logits"])
@pytest.mark.parametrize("name", ["seesaw", "bags", "eql_v2"])
def test_cascade_stages_are_averaged(name, average):
    model = model_with(name, "LogNCascadeROIHeads", MODEL__LOGN__CASCADE_AVERAGE=average)
    assert all(len(each["scores"]) for each in detections(model, images()))


@pytest.mark.parametrize("name", ["seesaw", "eql_v2", "loce", "inverse_logn", "bags", "eql"])
def test_a_checkpoint_has_the_state_and_needs_no_training_set(name, tmp_path):
    trained = model_with(name)
    step(trained)
    torch.save(trained.state_dict(), tmp_path / "model.pth")
    loaded = model_with(name, DATASETS__TRAIN=("not_on_this_machine",))
    loaded.load_state_dict(torch.load(tmp_path / "model.pth", weights_only=True))
    assert_same(detections(loaded, images()), detections(trained, images()))


def test_models_can_be_copied_and_pickled():
    model = model_with("bags")
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert_same(detections(other, images()), detections(model, images()))


def test_accuracies_are_logged_of_the_scores():
    ours = predictor("seesaw")
    logits = torch.tensor([[9.0, 0, 0, 0, 9, 0], [9, 0, 0, 0, 0, 9], [0, 9, 0, 0, 9, 0]])
    with EventStorage() as storage:
        ours.losses((logits, torch.zeros(3, 16)), [proposals([0, 4, 2], [0, 0, 1])])
        latest = storage.latest()
    assert latest["fast_rcnn/cls_accuracy"][0] == pytest.approx(2 / 3)
    assert latest["fast_rcnn/false_negative"][0] == 0


CALIBRATION = AffineCalibration(torch.tensor([2.0, 1, 1, 0.5]), torch.tensor([0.0, 1, -1, 2]))


@pytest.mark.parametrize("name", ["cross_entropy", "loce", "eql", "focal", "sigmoid_cross_entropy"])
def test_calibrations_act_on_the_logits_before_the_losss_scores(name):
    counts = ClassCounts(tuple("abcd"), *2 * (torch.tensor([40, 9, 2, 1]).numpy(),), 99)
    ours = predictor(name, counts=counts)
    logits = torch.randn(6, 5)
    expected = ours.loss.scores(CALIBRATION(logits))
    with attach(ours, CALIBRATION):
        assert torch.equal(ours.predict_probs((logits, None), [range(6)])[0], expected)
    (plain,) = ours.predict_probs((logits, None), [range(6)])
    assert torch.equal(plain, ours.loss.scores(logits))


@pytest.mark.parametrize("name", ["seesaw", "bags", "eql_v2", "logit_norm"])
def test_the_error_of_logits_that_can_not_be_calibrated_gives_the_reason(name):
    model = model_with(name)
    calibration = AffineCalibration.identity(NUM_CLASSES)
    for attempt in (
        lambda: attach(model, calibration),
        lambda: fold(model, calibration),
        lambda: collect_statistics(model, []),
        lambda: sweep(model, [images()], {"uncalibrated": [calibration]}),
        lambda: model_with(name, MODEL__LOGN__CALIBRATION="temperature(temperature=2)"),
    ):
        with pytest.raises(ValueError, match="can't be calibrated: "):
            attempt()


def test_sigmoid_heads_take_statistics_and_fold():
    model = model_with("sigmoid_cross_entropy")
    statistics = collect_statistics(model, [images()], class_names=CLASS_NAMES)
    with attach(model, statistics):
        expected = detections(model, images())
        folded = fold(copy.deepcopy(model))
    assert parts_of_logn_d2(folded) == ["SigmoidCrossEntropy"]
    for found, each in zip(detections(folded, images()), expected):
        torch.testing.assert_close(found["scores"], each["scores"], rtol=1e-4, atol=1e-5)


def test_a_folded_softmax_head_is_plain_detectron2():
    model = model_with("loce")
    folded = fold(copy.deepcopy(model), AffineCalibration.identity(NUM_CLASSES))
    assert parts_of_logn_d2(folded) == []
    cfg = plain_config(small_config(MODEL__LOGN__LOSS="loce", MODEL__MASK_ON=False), folded)
    assert "LOGN" not in cfg.MODEL and cfg.MODEL.ROI_HEADS.NAME == "StandardROIHeads"
    plain = small_model("StandardROIHeads", MODEL__MASK_ON=False)
    plain.load_state_dict(folded.state_dict())
    assert_same(detections(plain, images()), detections(model, images()))


def test_a_folded_cosine_head_forgets_its_loss():
    model = model_with("loce", MODEL__LOGN__CLASSIFIER="cosine")
    folded = fold(model, AffineCalibration.identity(NUM_CLASSES))
    cfg = small_config(MODEL__LOGN__LOSS="loce", MODEL__LOGN__CLASSIFIER="cosine")
    assert plain_config(cfg, folded).MODEL.LOGN.LOSS == ""


def test_a_loss_is_given_by_name_or_built():
    assert predictor("").loss is None and predictor(None).loss is None
    assert predictor("focal(gamma=1)").loss.gamma == 1
    own = build_loss("seesaw", 4)
    assert predictor(own).loss is own
    with pytest.raises(ValueError, match="for 3 classes, this head has 4"):
        predictor(build_loss("seesaw", 3))
    with pytest.raises(KeyError, match="Unknown loss 'sesaw'. Known: bags"):
        model_with("sesaw")


def test_detectron2s_sigmoid_and_a_loss_of_ours_exclude_each_other():
    class Newer(FastRCNNOutputLayers):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            self.use_sigmoid_ce = True

    class Ours(LogNFastRCNNOutputLayers, Newer):
        pass

    transform = Box2BoxTransform(weights=(10.0, 10.0, 5.0, 5.0))
    with pytest.raises(ValueError, match="USE_SIGMOID_CE .* to False, or leave"):
        Ours(8, box2box_transform=transform, num_classes=4, loss="focal")


@pytest.mark.skipif(
    "USE_SIGMOID_CE" not in get_cfg().MODEL.ROI_BOX_HEAD, reason="needs Detectron2 after 0.6"
)
def test_sigmoid_cross_entropy_is_detectron2s():
    options = {"MODEL__ROI_BOX_HEAD__USE_SIGMOID_CE": True}
    ours, theirs = model_with("sigmoid_cross_entropy"), model_with("", **options)
    ours.load_state_dict(theirs.state_dict())
    assert_same(detections(ours, images()), detections(theirs, images()))
    torch.testing.assert_close(step(ours)["loss_cls"], step(theirs)["loss_cls"])


@pytest.mark.skipif(
    "USE_FED_LOSS" not in get_cfg().MODEL.ROI_BOX_HEAD, reason="needs Detectron2 after 0.6"
)
def test_federated_class_weights_and_loss_are_detectron2s():
    counted = [{"id": i, "image_count": n} for i, n in enumerate(IMAGES_OF_CLASS[:4])]
    MetadataCatalog.get(DATASET).class_image_count = [*counted, {"id": 4, "image_count": 1}]
    options = {"USE_SIGMOID_CE": True, "USE_FED_LOSS": True, "FED_LOSS_NUM_CLASSES": 2}
    options = {f"MODEL__ROI_BOX_HEAD__{name}": value for name, value in options.items()}
    theirs = model_with("", **options).roi_heads.box_predictor
    ours = build_loss("federated(classes=2)", NUM_CLASSES, lambda: class_counts(DATASET))
    assert torch.equal(ours.class_weights(), theirs.fed_loss_cls_weights.float())
    # With as many labels as there are classes to take, none is drawn.
    logits, labels = torch.randn(6, NUM_CLASSES + 1), torch.tensor([0, 3, 5, 3, 0, 5])
    torch.testing.assert_close(
        ours(logits, labels), theirs.sigmoid_cross_entropy_loss(logits, labels)
    )
