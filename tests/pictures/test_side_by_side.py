"""Pictures show class names unchanged."""

import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, Instances

from logn_d2.pictures.side_by_side import draw_side_by_side


@pytest.mark.parametrize("name", ["$100$ bill", "a$b$", "$\\frac{$", "$", "\\$x$y", "x^{_", "狗"])
def test_names_with_any_characters_are_drawn(name):
    instances = Instances((60, 80))
    instances.pred_boxes = Boxes(torch.tensor([[5.0, 5, 50, 50]]))
    instances.scores, instances.pred_classes = torch.tensor([0.9]), torch.tensor([0])
    pixels = np.zeros((60, 80, 3), np.uint8)
    picture = draw_side_by_side(pixels, [(name, instances)], [name])
    assert picture.dtype == np.uint8 and picture.shape[1] == 80


def test_a_label_at_the_right_border_is_not_cut():
    """Its dark ground ends before the border, as that of a label in the middle does."""
    instances = Instances((100, 400))
    instances.pred_boxes = Boxes(torch.tensor([[370.0, 40, 390, 60]]))
    instances.scores, instances.pred_classes = torch.tensor([0.9]), torch.tensor([0])
    pixels = np.full((100, 400, 3), 255, np.uint8)
    picture = draw_side_by_side(pixels, [("", instances)], ["a name of thirty letters"])[-100:]
    dark = (picture.max(axis=2) < 60).any(axis=0)
    assert dark[:370].sum() > 50 and not dark[-1]
