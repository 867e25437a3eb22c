"""Box post-processing equals Detectron2's, bit for bit and in the same order."""

import copy

import pytest
import torch
from detectron2.modeling.roi_heads.fast_rcnn import fast_rcnn_inference
from hypothesis import example, given, settings
from hypothesis import strategies as st

from logn_d2.modeling import fast_rcnn_inference_exact, topk_inference

SHAPE = (90, 120)


@pytest.fixture(autouse=True)
def _small_steps(monkeypatch):
    """Few candidates at a time, so that small cases take all the paths that large ones take."""
    monkeypatch.setattr(topk_inference, "MIN_CANDIDATES", 4)
    monkeypatch.setattr(topk_inference, "CANDIDATES_PER_DETECTION", 1)
    monkeypatch.setattr(topk_inference, "GROWTH", 2)
    monkeypatch.setattr(topk_inference, "CHUNK", 4)


def case(
    seed: int,
    rows: int,
    classes: int,
    *,
    agnostic: bool = False,
    grid: int = 0,
    levels: int = 0,
    crowd: float = 1.0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Boxes and scores.

    Args:
        grid: boxes on a grid of so many pixels, where overlaps equal thresholds exactly; 0: none.
        levels: so many different scores, hence ties; 0 for all different.
        crowd: how far apart boxes are; small means that few survive.
    """
    generator = torch.Generator().manual_seed(seed)
    columns = 1 if agnostic else classes
    corner = torch.rand(rows, columns, 2, generator=generator) * 150 * crowd - 10
    extent = torch.rand(rows, columns, 2, generator=generator) * 30 + 15
    boxes = torch.cat([corner, corner + extent], dim=2)
    if grid:
        boxes = (boxes / grid).round() * grid
    scores = torch.randn(rows, classes + 1, generator=generator).mul(2).softmax(dim=1)
    if levels:
        scores = (scores * levels).round() / levels
    return boxes.flatten(1), scores


def both(boxes, scores, *limits, shapes=None):
    """What Detectron2 returns and what we return, each from its own copy."""
    shapes = shapes or [SHAPE] * len(boxes)
    arguments = (list(boxes), list(scores), shapes, *limits)
    return [
        function(*copy.deepcopy(arguments))
        for function in (fast_rcnn_inference, fast_rcnn_inference_exact)
    ]


def assert_equal(expected, found):
    assert len(expected[0]) == len(found[0]) == len(found[1])
    for theirs, ours, their_rows, our_rows in zip(expected[0], found[0], expected[1], found[1]):
        assert theirs.image_size == ours.image_size
        assert list(theirs.get_fields()) == list(ours.get_fields())
        pairs = [
            (theirs.pred_boxes.tensor, ours.pred_boxes.tensor),
            (theirs.scores, ours.scores),
            (theirs.pred_classes, ours.pred_classes),
            (their_rows, our_rows),
        ]
        for one, other in pairs:
            assert one.dtype == other.dtype and torch.equal(one, other)


@settings(max_examples=100, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    rows=st.sampled_from([0, 1, 2, 7, 30]),
    classes=st.sampled_from([1, 2, 5, 9, 40]),
    agnostic=st.booleans(),
    grid=st.sampled_from([0, 5, 15]),
    levels=st.sampled_from([0, 3, 20]),
    crowd=st.sampled_from([0.02, 0.3, 1.0]),
    score_thresh=st.sampled_from([-1.0, 0.0, 1e-4, 0.05, 0.1, 0.5, 1.0]),
    nms_thresh=st.sampled_from([0.0, 0.3, 0.5, 0.7, 1.0]),
    topk=st.sampled_from([-1, 0, 1, 5, 20, 100, 5000]),
)
@example(0, 30, 40, False, 5, 20, 0.02, 0.0, 0.5, 20)
def test_equals_detectron2(
    seed, rows, classes, agnostic, grid, levels, crowd, score_thresh, nms_thresh, topk
):
    boxes, scores = case(
        seed, rows, classes, agnostic=agnostic, grid=grid, levels=levels, crowd=crowd
    )
    assert_equal(*both([boxes], [scores], score_thresh, nms_thresh, topk))


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    bad=st.sampled_from([float("nan"), float("inf"), float("-inf")]),
    in_boxes=st.booleans(),
    topk=st.sampled_from([-1, 5]),
)
def test_equals_detectron2_where_values_are_not_finite(seed, bad, in_boxes, topk):
    boxes, scores = case(seed, 20, 6)
    generator = torch.Generator().manual_seed(seed)
    spoilt = boxes if in_boxes else scores
    for _ in range(3):
        row, column = (int(torch.randint(size, (1,), generator=generator)) for size in spoilt.shape)
        spoilt[row, column] = bad
    assert_equal(*both([boxes], [scores], 0.01, 0.5, topk))


def test_opposite_infinities_do_not_cancel():
    boxes, scores = case(0, 20, 6)
    boxes[3, 1], boxes[9, 2] = float("inf"), float("-inf")
    assert_equal(*both([boxes], [scores], 0.01, 0.5, 5))


def test_values_whose_sum_overflows_are_finite():
    boxes, scores = case(0, 20, 6)
    boxes[3:9] = 3e38
    assert_equal(*both([boxes], [scores], 0.01, 0.5, 5))


@pytest.mark.parametrize("agnostic", [True, False])
def test_a_batch_of_unlike_images(agnostic):
    images = [case(seed, rows, 7, agnostic=agnostic) for seed, rows in enumerate((0, 40, 3))]
    shapes = [(90, 120), (60, 60), (200, 10)]
    assert_equal(*both(*zip(*images), 0.01, 0.5, 10, shapes=shapes))
    assert_equal(*both([], [], 0.01, 0.5, 10))


@pytest.mark.parametrize("topk", [-1, 0, 5])
def test_no_candidate(topk):
    boxes, scores = case(0, 20, 6)
    assert_equal(*both([boxes], [scores], 1.0, 0.5, topk))


def test_all_scores_equal():
    boxes, scores = case(0, 40, 30, crowd=0.3)
    assert_equal(*both([boxes], [torch.full_like(scores, 0.25)], 0.01, 0.5, 10))


def test_a_tie_across_the_last_place():
    # Ranks 5 and 6 have one score; Detectron2's sort, which is not stable, says which is kept.
    corner = torch.arange(30.0)[:, None] * torch.tensor([9.0, 0])
    boxes = torch.cat([corner, corner + 5], dim=1)
    for seed in range(40):
        generator = torch.Generator().manual_seed(seed)
        ranked = torch.linspace(0.1, 0.9, 30 * 40)
        ranked[-6] = ranked[-5]
        scores = ranked[torch.randperm(30 * 40, generator=generator)].view(30, 40)
        scores = torch.cat([scores, torch.zeros(30, 1)], dim=1)
        expected, found = both([boxes], [scores], 0.0, 0.5, 5, shapes=[(300, 300)])
        assert_equal(expected, found)


def test_a_score_that_equals_the_threshold_is_no_candidate():
    boxes, scores = case(0, 40, 30, levels=20)
    # In float32, 0.05 is above the 0.05 of float64.
    assert (scores == 0.05).any()
    assert_equal(*both([boxes], [scores], 0.05, 0.5, 10))


@pytest.mark.parametrize("rows, classes", [(24, 40), (26, 40)])
def test_both_ways_of_keeping_classes_apart(rows, classes):
    # batched_nms moves the boxes of up to 1,000 candidates, and takes class by class beyond.
    for seed in range(10):
        boxes, scores = case(seed, rows, classes, grid=5, crowd=0.1)
        for nms_thresh in (1 / 3, 0.5, 0.6):
            assert_equal(*both([boxes * 1.1], [scores], -1.0, nms_thresh, 20))


def test_the_few_that_survive_a_crowd_are_all_found():
    boxes, scores = case(0, 60, 40, crowd=0.001)
    expected, found = both([boxes], [scores], 0.0, 0.01, 300)
    assert len(expected[0][0]) < 300
    assert_equal(expected, found)


def test_half_precision_boxes():
    boxes, scores = case(0, 40, 30)
    assert_equal(*both([boxes.half()], [scores], 0.01, 0.5, 10))


def test_half_precision_scores_are_ranked_like_their_float32_values():
    boxes, scores = case(0, 40, 30)
    scores = scores.half()
    (expected,), _ = fast_rcnn_inference([boxes.clone()], [scores.float()], [SHAPE], 0.01, 0.5, 10)
    (found,), _ = fast_rcnn_inference_exact([boxes], [scores], [SHAPE], 0.01, 0.5, 10)
    assert found.scores.dtype == torch.float16
    assert torch.equal(found.scores.float(), expected.scores)
    assert torch.equal(found.pred_boxes.tensor, expected.pred_boxes.tensor)


def test_views_with_strides_are_read_right():
    boxes, scores = case(0, 40, 30)
    strided = torch.stack([boxes, -boxes], dim=2)[:, :, 0]
    assert_equal(*both([strided], [scores.t().contiguous().t()], 0.01, 0.5, 10))


def test_input_is_unchanged_and_results_repeat():
    boxes, scores = case(0, 40, 30)
    copies = boxes.clone(), scores.clone()
    first = fast_rcnn_inference_exact([boxes], [scores], [SHAPE], 0.01, 0.5, 10)
    assert torch.equal(boxes, copies[0]) and torch.equal(scores, copies[1])
    assert_equal(first, fast_rcnn_inference_exact([boxes], [scores], [SHAPE], 0.01, 0.5, 10))


def test_only_the_best_are_looked_at(monkeypatch):
    processed = []
    clipped = topk_inference._clipped
    monkeypatch.setattr(
        topk_inference,
        "_clipped",
        lambda boxes, rows, *rest: processed.append(len(rows)) or clipped(boxes, rows, *rest),
    )
    boxes, scores = case(0, 200, 40)
    fast_rcnn_inference_exact([boxes], [scores], [SHAPE], 0.0, 0.5, 10)
    assert sum(processed) < 300 < 200 * 40


def test_default_sizes_equal_detectron2(monkeypatch):
    monkeypatch.undo()
    # 45,000 candidates are beyond the number at which Detectron2 0.5 leaves torchvision's
    # batched_nms for its own.
    for seed, (classes, crowd) in enumerate([(40, 0.02), (40, 1.0), (300, 0.3)]):
        boxes, scores = case(seed, 150, classes, crowd=crowd, levels=1000 if crowd == 1.0 else 0)
        assert_equal(*both([boxes], [scores], -1.0, 0.5, 50))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("rows", [20, 200, 1000])
def test_equals_detectron2_on_a_gpu(rows):
    boxes, scores = (tensor.cuda() for tensor in case(0, rows, 80, crowd=0.3))
    for score_thresh in (0.0, 1e-3, 0.05):
        assert_equal(*both([boxes], [scores], score_thresh, 0.5, 100))
