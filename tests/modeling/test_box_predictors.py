"""Box predictors are recognised by their methods."""

import pytest
import torch
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.roi_heads import FastRCNNOutputLayers
from torch import nn

from logn_d2.core import classifier_fingerprint
from logn_d2.modeling import (
    CosineLinear,
    find_box_predictors,
    num_classes_of,
    predictor_fingerprint,
)
from logn_d2.modeling.box_predictors import classifier_layer

from .small_models import NUM_CLASSES, small_model


@pytest.mark.parametrize(
    "head, count",
    [
        ("StandardROIHeads", 1),
        ("Res5ROIHeads", 1),
        ("CascadeROIHeads", 3),
        ("LogNROIHeads", 1),
        ("LogNCascadeROIHeads", 3),
    ],
)
def test_predictors_are_found_in_stage_order(head, count):
    model = small_model(head)
    found = find_box_predictors(model)
    expected = model.roi_heads.box_predictor
    assert found == (list(expected) if count > 1 else [expected])
    assert len(found) == count
    assert all(num_classes_of(predictor) == NUM_CLASSES for predictor in found)


def test_a_predictor_of_another_class_is_found():
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.cls_score = nn.Sequential(nn.Dropout(), nn.Linear(8, 4, bias=False))
            self.num_classes = 3

        def predict_probs(self, predictions, proposals): ...

        def losses(self, predictions, proposals): ...

    model = nn.Sequential(nn.Linear(8, 8), Own())
    (found,) = find_box_predictors(model)
    assert found is model[1]
    assert classifier_layer(found) is found.cls_score[1]


def test_distributed_models_are_unwrapped():
    model = small_model("StandardROIHeads")
    assert find_box_predictors(nn.DataParallel(model)) == find_box_predictors(model)


def test_the_error_without_box_predictors_names_the_expected_methods():
    with pytest.raises(ValueError, match="no box predictor in this Linear.*predict_probs"):
        find_box_predictors(nn.Linear(2, 2))


def test_fingerprint_is_of_the_classifier_and_not_of_the_box_layer():
    # As many box outputs as logits: 4 for class-agnostic boxes, 4 for three classes.
    transform = Box2BoxTransform(weights=(1.0, 1.0, 1.0, 1.0))
    predictor = FastRCNNOutputLayers(
        8, box2box_transform=transform, num_classes=3, cls_agnostic_bbox_reg=True
    )
    expected = classifier_fingerprint(predictor.cls_score.weight, predictor.cls_score.bias)
    assert torch.equal(predictor_fingerprint(predictor), expected)


def test_a_classifier_without_weights_has_no_fingerprint():
    class TextClassifier(nn.Module):
        num_classes = 3
        cls_score = None

    assert predictor_fingerprint(TextClassifier()) is None


def test_the_gain_of_a_folded_cosine_classifier_counts_in_the_fingerprint() -> None:
    predictor = nn.Module()
    predictor.cls_score = CosineLinear(8, 3)
    before = predictor_fingerprint(predictor)
    predictor.cls_score.gain = torch.tensor([2.0, 1.0, 1.0])
    after = predictor_fingerprint(predictor)
    assert after[0] != before[0]
    assert torch.equal(after[1:], before[1:])
