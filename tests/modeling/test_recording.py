"""Recording returns the model's own logits, computes nothing else, and leaves no trace."""

import copy
import random

import pytest
import torch
from detectron2.evaluation import DatasetEvaluator, inference_on_dataset
from detectron2.modeling import roi_heads as heads
from detectron2.modeling.proposal_generator import RPN
from detectron2.modeling.roi_heads import fast_rcnn
from detectron2.structures import Boxes, pairwise_iou
from torch import nn

from logn_d2.modeling import LogitRecorder, find_box_predictors

from .small_models import NUM_CLASSES, images, small_model

KEYPOINTS = {"MODEL__KEYPOINT_ON": True, "MODEL__ROI_KEYPOINT_HEAD__CONV_DIMS": [8]}
LOGITS = {"MODEL__LOGN__CASCADE_AVERAGE": "logits"}
MODELS = {
    "standard": ("StandardROIHeads", {}),
    "cascade": ("CascadeROIHeads", {}),
    "res5": ("Res5ROIHeads", {}),
    "keypoints": ("StandardROIHeads", KEYPOINTS),
    "class-agnostic": ("StandardROIHeads", {"MODEL__ROI_BOX_HEAD__CLS_AGNOSTIC_BBOX_REG": True}),
    "trained on predicted boxes": (
        "StandardROIHeads",
        {"MODEL__ROI_BOX_HEAD__TRAIN_ON_PRED_BOXES": True},
    ),
    "ours": ("LogNROIHeads", {}),
    "our cascade": ("LogNCascadeROIHeads", {}),
    "our cascade, averaged logits": ("LogNCascadeROIHeads", LOGITS),
}
POPULATIONS = ("sampled", "proposals")


class SigmoidPredictor(fast_rcnn.FastRCNNOutputLayers):
    """A user's own, with methods that only have Detectron2's names."""

    def predict_probs(self, predictions, proposals):
        return predictions[0].sigmoid().split([len(p) for p in proposals])

    def losses(self, predictions, proposals):
        raise AssertionError("losses were computed")


def sigmoid_model() -> nn.Module:
    model = small_model("StandardROIHeads")
    model.roi_heads.box_predictor.__class__ = SigmoidPredictor
    return model


def build(name: str) -> nn.Module:
    head, options = MODELS[name]
    return small_model(head, **options)


def traces(model: nn.Module) -> list:
    """All that a call could leave behind."""
    attributes = []
    for module in model.modules():
        attributes.append((module.training, dict(module.__dict__), len(module._forward_pre_hooks)))
    tensors = [value.clone() for value in model.state_dict().values()]
    return [attributes, tensors, torch.get_rng_state()]


def assert_untouched(model: nn.Module, before: list) -> None:
    now = traces(model)
    assert now[0] == before[0]
    assert all(torch.equal(a, b) for a, b in zip(now[1], before[1]))
    assert torch.equal(now[2], before[2])


@pytest.mark.parametrize("population", POPULATIONS)
@pytest.mark.parametrize("name", MODELS)
def test_logits_are_those_that_the_predictors_returned(name, population):
    model = build(name)
    seen = []
    for predictor in find_box_predictors(model):
        predictor.register_forward_hook(lambda m, i, outputs: seen.append(outputs))
    recording = LogitRecorder(model, population)(images(2))
    assert len(recording.stages) == len(seen) > 0
    for index, (stage, (logits, deltas)) in enumerate(zip(recording.stages, seen)):
        assert stage.logits is logits and stage.predictions[1] is deltas
        parts = [recording.logits(index, image) for image in range(2)]
        assert torch.equal(torch.cat(parts), logits)
        assert [len(p) for p in stage.proposals] == [len(part) for part in parts]
        assert logits.shape[1] == NUM_CLASSES + 1


@pytest.mark.parametrize("population", POPULATIONS)
def test_a_users_predictor_is_recorded(population):
    recording = LogitRecorder(sigmoid_model(), population)(images(1))
    assert recording.logits().shape[1] == NUM_CLASSES + 1


@pytest.mark.parametrize("name", MODELS)
def test_proposals_are_those_of_inference(name):
    model = build(name)
    seen = []
    for predictor in find_box_predictors(model):
        predictor.register_forward_hook(lambda m, i, outputs: seen.append(outputs[0]))
    recording = LogitRecorder(model, "proposals")(images(1))
    recorded = [stage.logits for stage in recording.stages]
    seen.clear()
    with torch.no_grad():
        model(images(1))
    assert all(torch.equal(a, b) for a, b in zip(recorded, seen))
    assert recording.labels() is None


@pytest.mark.parametrize("population", POPULATIONS)
@pytest.mark.parametrize("name", MODELS)
def test_nothing_after_the_last_logits_is_computed(name, population, monkeypatch):
    def fail(*args, **kwargs):
        raise AssertionError("computed in vain")

    model = build(name)
    monkeypatch.setattr(fast_rcnn.FastRCNNOutputLayers, "losses", fail)
    monkeypatch.setattr(fast_rcnn, "fast_rcnn_inference", fail)
    monkeypatch.setattr(heads.cascade_rcnn, "fast_rcnn_inference", fail)
    monkeypatch.setattr(RPN, "losses", fail)
    monkeypatch.setattr(RPN, "label_and_sample_anchors", fail)
    for branch in ("mask_head", "keypoint_head"):
        if hasattr(model.roi_heads, branch):
            monkeypatch.setattr(getattr(model.roi_heads, branch), "forward", fail)
    LogitRecorder(model, population)(images(1))


@pytest.mark.parametrize("population", POPULATIONS)
@pytest.mark.parametrize("name", MODELS)
def test_without_deltas_the_logits_are_the_same(name, population):
    model = build(name)
    last = find_box_predictors(model)[-1].bbox_pred
    computed = []
    last.register_forward_hook(lambda m, i, output: computed.append(output.shape[1]))
    whole = LogitRecorder(model, population)(images(2))
    assert computed.pop() > 0
    without = LogitRecorder(model, population, deltas=False)(images(2))
    assert computed == [0]
    for one, other in zip(whole.stages, without.stages, strict=True):
        assert torch.equal(one.logits, other.logits)
    assert "forward" not in last.__dict__


def test_a_predictor_with_its_own_forward_keeps_its_deltas():
    model = sigmoid_model()
    predictor = find_box_predictors(model)[-1]
    forward = type(predictor).forward

    class Own(type(predictor)):
        def forward(self, x):
            scores, deltas = forward(self, x)
            return scores, deltas[:, :4] * 2

    predictor.__class__ = Own
    recording = LogitRecorder(model, deltas=False)(images(1))
    assert recording.stages[-1].predictions[1].shape[1] == 4


def test_sampled_rois_are_labelled_as_in_training():
    model = small_model("StandardROIHeads")
    (inputs,) = images(1)
    recording = LogitRecorder(model)([inputs])
    truth, labels = inputs["instances"], recording.labels()
    boxes = recording.stages[0].proposals[0].proposal_boxes
    overlap, match = pairwise_iou(truth.gt_boxes, boxes).max(dim=0)
    expected = torch.where(overlap >= 0.5, truth.gt_classes[match], NUM_CLASSES)
    assert torch.equal(labels, expected)
    assert len(labels) == model.roi_heads.batch_size_per_image
    assert (overlap > 0.999).any(), "ground truth boxes are among the proposals"


def test_sampled_rois_come_from_the_training_proposals():
    options = {"MODEL__ROI_HEADS__BATCH_SIZE_PER_IMAGE": 1000}
    model = small_model("StandardROIHeads", **options)
    counts = [len(LogitRecorder(model, p)(images(1)).logits()) for p in POPULATIONS]
    # 40 proposals and three objects when trained, 30 proposals at test.
    assert counts == [43, 30]


def test_cascade_stages_are_labelled_at_their_own_overlap():
    model = small_model("CascadeROIHeads")
    (inputs,) = images(1)
    recording = LogitRecorder(model)([inputs])
    for index, threshold in enumerate((0.5, 0.6, 0.7)):
        boxes = recording.stages[index].proposals[0].proposal_boxes
        overlap = pairwise_iou(inputs["instances"].gt_boxes, boxes).max(dim=0).values
        assert torch.equal(recording.labels(index) < NUM_CLASSES, overlap >= threshold)


def test_backbone_and_dropout_are_as_at_test():
    model = small_model("StandardROIHeads").train()
    features = LogitRecorder(model)(images(2)).features
    with torch.no_grad():
        expected = model.eval().backbone(model.preprocess_image(images(2)).tensor)
    assert features.keys() == expected.keys()
    assert all(torch.equal(features[name], expected[name]) for name in expected)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("population", POPULATIONS)
@pytest.mark.parametrize("name", ["standard", "cascade", "our cascade, averaged logits"])
def test_no_trace_is_left(name, population, training):
    model = build(name).train(training)
    model.backbone.eval()
    before = traces(model)
    LogitRecorder(model, population)(images(2))
    assert_untouched(model, before)


@pytest.mark.parametrize("place", ["backbone", "proposal_generator", "roi_heads.box_predictor"])
@pytest.mark.parametrize("population", POPULATIONS)
def test_no_trace_is_left_after_an_error(population, place):
    class Broken(Exception):
        pass

    def fail(*args):
        raise Broken

    model = small_model("StandardROIHeads").train()
    handle = model.get_submodule(place).register_forward_hook(fail)
    before = traces(model)
    with pytest.raises(Broken):
        LogitRecorder(model, population)(images(1))
    assert_untouched(model, before)
    handle.remove()
    LogitRecorder(model, population)(images(1))


def test_a_model_that_catches_exceptions_does_not_catch_the_end_of_the_pass():
    model = small_model("StandardROIHeads")
    inner = model.roi_heads.forward

    def careful(*args, **kwargs):
        try:
            return inner(*args, **kwargs)
        except Exception:
            raise AssertionError("caught") from None

    model.roi_heads.forward = careful
    assert len(LogitRecorder(model)(images(1)).stages) == 1


def test_recorders_are_independent_and_can_be_used_again():
    model = small_model("CascadeROIHeads")
    before = traces(model)
    sampled, proposals = LogitRecorder(model), LogitRecorder(model, "proposals")
    first = sampled(images(1)).logits(2)
    proposals(images(1))
    assert torch.equal(sampled(images(1)).logits(2), first)
    assert_untouched(model, before)


def test_copies_of_a_model_are_recorded_alone():
    model = small_model("LogNCascadeROIHeads")
    record = LogitRecorder(model)
    expected = record(images(1)).logits(2)
    twin = copy.deepcopy(model)
    nn.init.zeros_(model.roi_heads.box_predictor[2].cls_score.weight)
    assert torch.equal(LogitRecorder(twin)(images(1)).logits(2), expected)
    assert torch.equal(copy.deepcopy(record)(images(1)).logits(2), record(images(1)).logits(2))


def test_rois_do_not_depend_on_earlier_recordings():
    model = small_model("StandardROIHeads", MODEL__ROI_HEADS__BATCH_SIZE_PER_IMAGE=8)
    inputs = images(4)
    one_by_one = {}
    for order in (inputs, inputs[::-1]):
        torch.manual_seed(random.randrange(1000))
        record = LogitRecorder(model, seed=7)
        found = {each["image_id"]: record([each]).logits() for each in order}
        one_by_one = one_by_one or found
        assert all(torch.equal(found[key], one_by_one[key]) for key in found)


def test_rois_depend_on_the_seed_and_on_the_image():
    model = small_model("StandardROIHeads", MODEL__ROI_HEADS__BATCH_SIZE_PER_IMAGE=8)
    (inputs,) = images(1)
    drawn = LogitRecorder(model, seed=0)([inputs]).logits()
    assert not torch.equal(LogitRecorder(model, seed=1)([inputs]).logits(), drawn)
    assert not torch.equal(LogitRecorder(model)([{**inputs, "image_id": 9}]).logits(), drawn)
    named = {**inputs, "image_id": 9}
    del named["image_id"]
    first = LogitRecorder(model)([named]).logits()
    assert not torch.equal(LogitRecorder(model)([{**named, "file_name": "x"}]).logits(), first)


def test_an_image_without_objects_has_background_only():
    (inputs,) = images(1)
    inputs["instances"] = inputs["instances"][:0]
    assert (LogitRecorder(small_model("CascadeROIHeads"))([inputs]).labels(2) == NUM_CLASSES).all()


def test_the_error_of_sampling_without_ground_truth_names_the_remedy():
    (inputs,) = images(1)
    del inputs["instances"]
    with pytest.raises(ValueError, match="is_train=True"):
        LogitRecorder(small_model())([inputs])
    LogitRecorder(small_model(), "proposals")([inputs])


def test_unknown_population_names_the_known_ones():
    with pytest.raises(ValueError, match="'sampled' or 'proposals'"):
        LogitRecorder(small_model(), "training")


def test_a_proposal_generator_with_its_own_forward_keeps_its_losses():
    class OwnRPN(RPN):
        def forward(self, images, features, gt_instances=None):
            proposals, losses = super().forward(images, features, gt_instances)
            assert not self.training or losses["loss_rpn_cls"] >= 0
            return proposals, losses

    model = small_model("StandardROIHeads")
    model.proposal_generator.__class__ = OwnRPN
    assert len(LogitRecorder(model)(images(1)).stages) == 1


def test_images_may_come_with_their_proposals():
    model = small_model("StandardROIHeads")
    (inputs,) = images(1)
    inputs["proposals"] = LogitRecorder(model, "proposals")([inputs]).stages[0].proposals[0][:5]
    model.proposal_generator = None
    assert len(LogitRecorder(model, "proposals")([inputs]).logits()) == 5


def test_a_recorder_stands_in_for_the_model_in_an_evaluation():
    class Collect(DatasetEvaluator):
        def reset(self):
            self.rows = []

        def process(self, inputs, outputs):
            self.rows.append(outputs.logits())

        def evaluate(self):
            return {"rows": sum(len(rows) for rows in self.rows)}

    model = small_model("StandardROIHeads").train()
    inputs = [[each] for each in images(12)]
    found = inference_on_dataset(LogitRecorder(model, "proposals"), inputs, Collect())
    assert found == {"rows": 12 * 30}
    assert model.training


def test_image_sizes_are_without_padding():
    first, second = images(2)
    second["image"] = second["image"][:, :48]
    assert LogitRecorder(small_model(), "proposals")([first, second]).image_sizes == [
        (64, 64),
        (48, 64),
    ]


def test_boxes_of_the_recording_are_the_proposals():
    recording = LogitRecorder(small_model(), "proposals")(images(1))
    assert isinstance(recording.stages[0].proposals[0].proposal_boxes, Boxes)


def test_images_draw_from_seeds_of_their_own():
    recorder = LogitRecorder(small_model("StandardROIHeads"))
    seeds = {recorder._call_seed([{"image_id": image}]) for image in range(2000)}
    assert len(seeds) == 2000
