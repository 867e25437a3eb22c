"""Both sides equal the model's detections without and with calibration, in one network pass."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, Instances
from torch import nn
from torchvision.ops import box_iou

from logn_d2.core import stage_calibrations
from logn_d2.modeling import attach, find_box_predictors
from logn_d2.pictures.before_after import BeforeAfter, Shown
from logn_d2.pictures.side_by_side import class_color, draw_side_by_side, enlarged

from ..modeling.small_models import NUM_CLASSES, images, small_model, statistics_of

ALL = Shown(threshold=0.0, calibrated_threshold=0.0)


def logn_of(model: nn.Module) -> list:
    return stage_calibrations(
        "logn",
        num_classes=NUM_CLASSES,
        num_stages=len(find_box_predictors(model)),
        statistics=statistics_of(model),
    )


def fields(instances: Instances) -> dict[str, torch.Tensor]:
    return {k: getattr(v, "tensor", v) for k, v in instances.get_fields().items()}


def assert_equal(mine: Instances, theirs: Instances) -> None:
    mine, theirs = fields(mine), fields(theirs)
    assert mine.keys() == theirs.keys()
    for name in set(mine) - {"pred_masks"}:
        assert torch.equal(mine[name], theirs[name]), name
    if "pred_masks" in mine:  # a larger batch in the mask head may round a pixel otherwise
        different = mine["pred_masks"] != theirs["pred_masks"]
        assert different.float().mean() < 1e-3


@pytest.mark.parametrize(
    "head", ["StandardROIHeads", "Res5ROIHeads", "CascadeROIHeads", "LogNROIHeads"]
)
def test_sides_are_the_model_without_and_with_the_calibration(head: str) -> None:
    model, inputs = small_model(head), images(2)
    inputs[1].update(height=100, width=90)  # another size than the model sees
    calibrations = logn_of(model)
    pairs = BeforeAfter(model, calibrations, shown=ALL)(inputs)
    with torch.no_grad():
        before = [each["instances"] for each in model(inputs)]
        with attach(model, calibrations):
            after = [each["instances"] for each in model(inputs)]
    for pair, *separate in zip(pairs, before, after, strict=True):
        assert len(pair[0]) and len(pair[1])
        for mine, theirs in zip(pair, separate, strict=True):
            assert_equal(mine, theirs)
    assert not torch.equal(pairs[0][0].scores, pairs[0][1].scores)


def test_the_network_runs_once_and_the_model_is_left_as_it_was() -> None:
    model, calls = small_model().train(), []
    model.backbone.register_forward_hook(lambda *_: calls.append(1))
    model.proposal_generator.eval()
    attachment = attach(model, logn_of(model))
    pairs = BeforeAfter(model, logn_of(model))(images(2))
    assert len(calls) == 1 and len(pairs) == 2
    assert model.training and not model.proposal_generator.training
    (predictor,) = find_box_predictors(model)
    assert predictor.calibration is attachment.calibrations[0]


def shown(model: nn.Module, **options: object) -> tuple[Instances, Instances]:
    (pair,) = BeforeAfter(model, logn_of(model), shown=Shown(**options))(images(1))
    return pair


def test_as_many_after_as_before_whatever_their_scores() -> None:
    model = small_model()
    every = shown(model, threshold=0.0, calibrated_threshold=0.0)
    threshold = float(every[0].scores[4])
    before, after = shown(model, threshold=threshold)
    assert len(before) == len(after) == 4
    assert torch.equal(after.scores, every[1].scores[:4])
    assert [len(each) for each in shown(model, threshold=1.0)] == [0, 0]


def test_each_side_can_have_a_threshold_of_its_own() -> None:
    model = small_model()
    every = shown(model, threshold=0.0, calibrated_threshold=0.0)
    limit = float(every[1].scores[7])
    before, after = shown(model, threshold=1.0, calibrated_threshold=limit)
    assert len(before) == 0 and torch.equal(after.scores, every[1].scores[:7])
    limited = shown(model, threshold=0.0, calibrated_threshold=0.0, at_most=3)
    assert [len(each) for each in limited] == [3, 3]


def test_one_detection_for_each_place() -> None:
    def overlapping(instances: Instances) -> int:
        boxes = instances.pred_boxes.tensor
        return int((box_iou(boxes, boxes) > 0.5).sum()) - len(boxes)

    model, options = small_model(), {"threshold": 0.0, "calibrated_threshold": 0.0}
    assert overlapping(shown(model, **options)[0]) > 0
    for side in shown(model, one_per_place=True, **options):
        assert len(side) and overlapping(side) == 0
        assert torch.equal(side.scores, side.scores.sort(descending=True).values)


def test_calibrations_of_another_model_are_refused() -> None:
    with pytest.raises(ValueError, match="1 calibrations, but this model has 3"):
        BeforeAfter(small_model("CascadeROIHeads"), logn_of(small_model()))


def found(boxes: list[list[float]], classes: list[int], **others: object) -> Instances:
    return Instances(
        (60, 80),
        pred_boxes=Boxes(torch.tensor(boxes).reshape(-1, 4)),
        pred_classes=torch.tensor(classes, dtype=torch.int64),
        scores=torch.full((len(classes),), 0.75),
        **others,
    )


def draw_one(boxes: list[list[float]], classes: list[int], **others: object) -> np.ndarray:
    pixels = np.full((60, 80, 3), 128, dtype=np.uint8)
    nothing = found([], [])
    return draw_side_by_side(
        pixels, [("before", nothing), ("after", found(boxes, classes, **others))], ["first"]
    )


def test_picture_has_both_sides_and_detections_on_their_own() -> None:
    empty, drawn = draw_one([], []), draw_one([[20.0, 20, 60, 50]], [0])
    assert empty.shape == drawn.shape and empty.shape[1] > 2 * 80
    changed = (empty != drawn).any(axis=2)
    columns = np.flatnonzero(changed.any(axis=0))
    assert columns.min() >= empty.shape[1] - 80  # only in the right picture
    red, green, blue = (255 * np.array(class_color(0))).astype(int)
    left = drawn[-60 + 35, -80 + 20].astype(int)
    assert abs(left - (red, green, blue)).max() < 90  # the box's left line


def colored(instances_options: dict) -> int:
    """How many pixels a mask or key points change."""
    plain = draw_one([[20.0, 20, 60, 50]], [0])
    return int((plain != draw_one([[20.0, 20, 60, 50]], [0], **instances_options)).any(2).sum())


def masks() -> torch.Tensor:
    mask = torch.zeros(1, 60, 80, dtype=torch.bool)
    mask[0, 25:45, 25:55] = True
    return mask


@pytest.mark.parametrize(
    "make",
    [
        lambda: {"pred_masks": masks()},
        lambda: {"pred_keypoints": torch.tensor([[[30.0, 40.0, 1.0], [50.0, 30.0, 1.0]]])},
    ],
    ids=["masks", "keypoints"],
)
def test_masks_and_key_points_are_drawn(make: Callable[[], dict]) -> None:
    assert colored(make()) > 10


def test_a_class_without_a_name_is_shown_by_its_number() -> None:
    assert not np.array_equal(
        draw_one([[20.0, 20, 60, 50]], [0]), draw_one([[20.0, 20, 60, 50]], [7])
    )


def test_only_small_images_are_enlarged() -> None:
    pixels = np.zeros((600, 800, 3), dtype=np.uint8)
    assert enlarged(pixels) is pixels
    assert enlarged(pixels[:60, :80]).shape == (360, 480, 3)
    assert enlarged(pixels[:1, :80]).shape == (6, 480, 3)
    assert enlarged(pixels[:1]).shape == (1, 800, 3)
