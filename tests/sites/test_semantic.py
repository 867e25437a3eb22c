"""Semantic segmentation: every cell of the head's output is a candidate with a class."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from logn_d2 import attach, collect, fold
from logn_d2.core import AffineCalibration
from logn_d2.errors import UserError
from logn_d2.sites import known_site, outputs_under, semantic_site
from logn_d2.sweeps import sweep

from ..modeling.small_models import images
from .small_pixels import CLASSES, labelled, segmentor

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return segmentor()


def cells(model: nn.Module, inputs: list[dict]) -> Tensor:
    """(N, K, H, W) logits before interpolation, by a hook of the test's own."""
    kept = []
    layer = model.sem_seg_head.predictor
    handle = layer.register_forward_hook(lambda module, args, output: kept.append(output))
    with torch.no_grad():
        model(inputs)
    handle.remove()
    return kept[0]


def pixels(model: nn.Module, inputs: list[dict]) -> list[Tensor]:
    with torch.no_grad():
        return [each["sem_seg"] for each in model(inputs)]


def calibration() -> AffineCalibration:
    shift = torch.linspace(-2, 2, CLASSES)
    return AffineCalibration(0.5 + shift.abs(), shift, background="none")


def test_statistics_are_of_the_cells_that_the_loss_counts(model):
    inputs = labelled()
    found = collect(model, [[image] for image in inputs])
    logits = cells(model, inputs)[:, :, :4].double()
    assert found.num_rois == 2 * 4 * 8
    torch.testing.assert_close(found.stages[0].mean, logits.mean(dim=(0, 2, 3)))
    expected = [0, 4 * 8, 4 * 8, *[0] * (CLASSES - 3)]
    assert found.stages[0].posteriors.label_count.tolist() == expected
    assert (found.background, found.activation, found.site) == (
        *("none", "softmax"),
        "SemanticSegmentor",
    )


def test_as_at_test_all_cells_count_and_need_no_labels(model):
    found = collect(model, [images(3)], population="proposals")
    assert found.num_rois == 3 * 8 * 8
    with pytest.raises(UserError, match="an input has no 'sem_seg'"):
        collect(model, [images(3)])


def test_pixels_are_calibrated_as_cells_are(model):
    inputs, wanted = images(2), calibration()
    before = pixels(model, inputs)
    raw = cells(model, inputs)
    shape = [1, CLASSES, 1, 1]
    expected = raw * wanted.column_scale.view(shape) + wanted.column_shift.view(shape)
    expected = F.interpolate(expected, scale_factor=8, mode="bilinear", align_corners=False)
    with attach(model, wanted):
        attached = pixels(model, inputs)
    for mine, theirs in zip(attached, expected, strict=True):
        torch.testing.assert_close(mine, theirs)
    assert all(map(torch.equal, pixels(model, inputs), before))
    folded = pixels(fold(copy.deepcopy(model), wanted), inputs)
    for mine, theirs in zip(folded, attached, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)


def test_outputs_under_are_those_of_the_attached_calibration_bit_for_bit(model):
    inputs = images(2)
    found = outputs_under(model, known_site(model), inputs, {"one": calibration()})
    with attach(model, calibration()):
        attached = pixels(model, inputs)
    assert all(map(torch.equal, (each["sem_seg"] for each in found["one"]), attached))


def test_a_sweep_is_refused_before_its_pass(model):
    with pytest.raises(UserError, match="gives 'sem_seg', but sweeps .*outputs_under"):
        sweep(model, [images(1)], {"one": [calibration()]})


def test_a_panoptic_model_has_its_objects_calibrated_unless_asked():
    model, inputs = segmentor("PanopticFPN"), labelled()
    assert known_site(model) is None
    site = semantic_site(model)
    found = collect(model, [inputs], site=site)
    assert (found.num_classes, found.num_rois) == (CLASSES, 2 * 4 * 8)
    before = pixels(model, inputs)
    with attach(model, found, site=site):
        assert not torch.equal(pixels(model, inputs)[0], before[0])
    assert all(map(torch.equal, pixels(model, inputs), before))


def test_another_head_is_refused_in_a_sentence():
    model = segmentor()
    model.sem_seg_head = nn.Identity()
    with pytest.raises(UserError, match="sem_seg_head is a Identity, expected .* predictor"):
        attach(model, calibration())
