"""The feature memory draws as documented, and its RoIs train only the box head and predictor."""

import copy
import itertools

import pytest
import torch
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.utils.events import EventStorage

from logn_d2.core import stage_calibrations
from logn_d2.modeling import FeatureMemory, LogitRecorder, fold, parts_of_logn_d2, plain_config
from logn_d2.modeling.feature_memory import MemorySample, jitter_boxes

from .small_models import assert_same, detections, images, small_config, small_model, statistics_of

HEAD = "LogNMemoryROIHeads"


def sample(labels, start=0):
    """RoIs whose features are their number."""
    count = len(labels)
    features = torch.arange(start, start + count).float().reshape(-1, 1, 1, 1)
    return MemorySample(features, torch.tensor(labels), torch.ones(count, 4))


def memory(*labels, capacity=80, classes=3):
    made = FeatureMemory(classes, capacity, torch.Generator().manual_seed(0))
    if labels:
        made.add(sample(labels))
    return made


def train_step(model, count=2):
    """Losses of one step, with their gradients."""
    model.train()
    with EventStorage():
        losses = model(images(count))
    sum(losses.values()).backward()
    return losses


def test_classes_are_drawn_in_inverse_proportion_to_their_score():
    known = memory(0, 1, 2)
    drawn = known.draw(torch.tensor([0.6, 0.3, 0.1]), classes=30_000, samples=1)
    share = torch.bincount(drawn.labels) / len(drawn)
    expected = torch.tensor([1, 2, 6]) / 9
    torch.testing.assert_close(share, expected, atol=0.01, rtol=0)


def test_drawn_features_are_those_of_their_class():
    drawn = memory(0, 1, 1, 0).draw(torch.ones(3), classes=200, samples=2)
    pairs = set(zip(drawn.labels.tolist(), drawn.features.flatten().tolist()))
    assert pairs == {(0, 0.0), (0, 3.0), (1, 1.0), (1, 2.0)}


def test_unknown_classes_are_left_out():
    drawn = memory(1).draw(torch.ones(3), classes=60, samples=4)
    assert set(drawn.labels.tolist()) == {1} and 4 <= len(drawn) < 240
    assert memory().draw(torch.ones(3)) is None


def test_oldest_are_forgotten_and_of_one_batch_the_first_are_kept():
    known = memory(0, 0, 0, 1, capacity=2)
    assert len(known) == 3
    known.add(sample([0], start=9))
    drawn = known.draw(torch.ones(3), classes=100)
    assert set(drawn.features[drawn.labels == 0].flatten().tolist()) == {1.0, 9.0}


def test_remembered_features_have_no_gradient_and_no_hold_on_the_batch():
    known, batch = memory(), sample([0, 1])
    features = batch.features.requires_grad_()
    known.add(MemorySample(features * 2, batch.labels, batch.boxes))
    drawn = known.draw(torch.ones(3), classes=20)
    assert not drawn.features.requires_grad
    stored = known._rois[0][0][0]
    assert stored.untyped_storage().nbytes() == 4


def test_jittered_boxes_are_all_16_corners():
    boxes = torch.tensor([[10.0, 20.0, 22.0, 32.0], [0.0, 0.0, 6.0, 60.0]])
    found = jitter_boxes(boxes, torch.ones(16, 4), (100, 100))
    expected = {
        (10 + 2 * a, 20 + 2 * b, 22 + 2 * c, 32 + 2 * d)
        for a, b, c, d in itertools.product((-1, 1), repeat=4)
    }
    assert {tuple(box) for box in found[0].tolist()} == expected
    assert found.min() == 0
    assert jitter_boxes(boxes, torch.zeros(16, 4), (25, 100))[0, :, 3].max() == 25
    assert jitter_boxes(boxes[:0], torch.zeros(16, 4), (9, 9)).shape == (0, 16, 4)


def test_regression_targets_do_not_depend_on_the_frame():
    transform = Box2BoxTransform(weights=(10.0, 10.0, 5.0, 5.0))
    boxes = torch.tensor([[10.0, 20.0, 50.0, 44.0]])
    model = small_model(HEAD)
    jittered = jitter_boxes(boxes, torch.rand(16, 4), (64, 64))[0]
    size, corner = torch.tensor([40.0, 24.0, 40.0, 24.0]), torch.tensor([10.0, 20.0, 10.0, 20.0])
    proposals = MemorySample(
        torch.zeros(16, 1), torch.zeros(16).long(), (jittered - corner) / size * 100
    ).as_proposals()
    found = transform.get_deltas(proposals.proposal_boxes.tensor, proposals.gt_boxes.tensor)
    torch.testing.assert_close(found, transform.get_deltas(jittered, boxes.expand(16, 4)))
    assert len(model.roi_heads.memory) == 0


def test_step_remembers_16_rois_of_each_object():
    model = small_model(HEAD)
    train_step(model)
    assert len(model.roi_heads.memory) == 6 * 16


@pytest.mark.parametrize("loss", ["", "loce", "seesaw"])
def test_remembered_rois_join_the_box_head(loss):
    model = small_model(HEAD, MODEL__LOGN__LOSS=loss)
    seen = []
    model.roi_heads.box_head.register_forward_hook(lambda m, args, out: seen.append(len(out)))
    losses = train_step(model)
    assert set(losses) == set(train_step(small_model(MODEL__LOGN__LOSS=loss)))
    assert 24 < seen[0] - 32 <= 48  # 8 classes, 4 RoIs each, of classes that are known


def test_memory_without_room_is_the_parents_training():
    model, seen = small_model(HEAD, MODEL__LOGN__MEMORY__CAPACITY=0), []
    model.roi_heads.box_head.register_forward_hook(lambda m, args, out: seen.append(len(out)))
    losses = train_step(model)
    assert seen == [48] and all(loss.isfinite() for loss in losses.values())


def test_pooler_is_its_own_again_after_a_step():
    model = small_model(HEAD)
    train_step(model)
    assert model.roi_heads.box_pooler is model.roi_heads._modules["box_pooler"]


def test_remembered_rois_give_no_gradient_to_the_backbone():
    model = small_model(HEAD, MODEL__MASK_ON=False)
    train_step(model)
    model.zero_grad()
    drawn = model.roi_heads.memory.draw(torch.ones(5)).as_proposals()
    features = model.roi_heads.memory.draw(torch.ones(5)).features
    predictions = model.roi_heads.box_predictor(model.roi_heads.box_head(features))
    with EventStorage():
        sum(model.roi_heads.box_predictor.losses(predictions, [drawn]).values()).backward()
    assert all(parameter.grad is None for parameter in model.backbone.parameters())
    assert all(p.grad is not None for p in model.roi_heads.box_head.parameters())


def test_classes_that_score_badly_are_drawn_more_often():
    model = small_model(HEAD, MODEL__LOGN__LOSS="loce")
    score = model.roi_heads.box_predictor.loss.mean_score
    score[:] = torch.tensor([0.9, 0.9, 0.9, 1e-6, 0.9, 0.01])
    found = model.roi_heads._mean_score()
    assert torch.equal(found, score[:5])
    model.roi_heads.memory.add(sample([0, 1, 2, 3, 4]))
    drawn = model.roi_heads.memory.draw(found, classes=100)
    assert (drawn.labels == 3).float().mean() > 0.9


def test_inference_and_statistics_are_the_parents():
    ours, plain = small_model(HEAD), small_model()
    plain.load_state_dict(ours.state_dict())
    assert_same(detections(ours, images()), detections(plain, images()))
    recorded = [LogitRecorder(m)(images()).stages[0].logits for m in (ours, plain)]
    assert torch.equal(*recorded)
    assert len(ours.roi_heads.memory) == 0 and ours.roi_heads._objects == []


def test_folded_heads_need_no_logn_d2():
    model, cfg = small_model(HEAD), small_config(HEAD)
    fold(model, stage_calibrations("logn", num_classes=5, statistics=statistics_of(model)))
    assert parts_of_logn_d2(model) == []
    assert plain_config(cfg, model).MODEL.ROI_HEADS.NAME == "StandardROIHeads"


def test_models_can_be_copied():
    model = small_model(HEAD)
    train_step(model)
    assert len(copy.deepcopy(model).roi_heads.memory) == len(model.roi_heads.memory)


def test_memory_has_the_published_size():
    """LOCE: a ring of 80 RoIs a class, of which a step draws 8 classes with 4 each."""
    node = small_config("LogNMemoryROIHeads").MODEL.LOGN.MEMORY
    assert (node.CAPACITY, node.CLASSES, node.SAMPLES) == (80, 8, 4)
    memory, labels = FeatureMemory(3), torch.arange(3).repeat_interleave(50)
    for _ in range(2):
        memory.add(MemorySample(torch.zeros(150, 1, 1, 1), labels, torch.zeros(150, 4)))
    assert len(memory) == 3 * 80
    assert len(memory.draw(torch.full((3,), 0.01))) == 8 * 4
