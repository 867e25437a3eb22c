"""A detector without box predictors inside the wrappers of training and deployment."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator

import pytest
import torch
from detectron2.modeling import GeneralizedRCNNWithTTA
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from logn_d2 import attach, collect, detach, fold
from logn_d2.core import AffineCalibration
from logn_d2.sites import LogitSite

from ..modeling.small_models import assert_same, detections, small_config, small_model
from .small_dense import NUM_CLASSES, images, retinanet
from .small_queries import CLASSES, small_detr

pytestmark = pytest.mark.usefixtures("one_thread")


def calibration() -> AffineCalibration:
    shift = torch.linspace(-1, 1, NUM_CLASSES)
    return AffineCalibration(0.5 + shift.abs(), shift, background="none")


def calibrated() -> list[dict]:
    model = retinanet()
    attach(model, calibration())
    return detections(model, images())


class Framework(nn.Module):
    """Holds the detector as training frameworks do."""

    def __init__(self, detector: nn.Module) -> None:
        super().__init__()
        self.detector = detector

    def forward(self, inputs: list[dict]) -> list[dict]:
        return self.detector(inputs)


WRAPPERS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "distributed": DistributedDataParallel,
    "average": torch.optim.swa_utils.AveragedModel,
    "framework": Framework,
}


@pytest.fixture
def process_group(tmp_path) -> Iterator[None]:
    store = f"file://{tmp_path}/store"
    torch.distributed.init_process_group("gloo", init_method=store, rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("name", WRAPPERS)
def test_a_wrapped_detector_goes_through_every_verb(name, process_group):
    wrapped, inputs = WRAPPERS[name](retinanet()).eval(), images()
    before = detections(retinanet(), inputs)
    expected = collect(retinanet(), [inputs]).stages[0]
    found = collect(wrapped, [inputs]).stages[0]
    assert torch.equal(found.mean, expected.mean) and torch.equal(found.var, expected.var)
    attach(wrapped, calibration())
    assert_same(detections(wrapped, inputs), calibrated())
    detach(wrapped)
    assert_same(detections(wrapped, inputs), before)
    folded = detections(fold(wrapped, calibration()), inputs)
    torch.testing.assert_close(folded[0]["scores"], calibrated()[0]["scores"])


def test_an_augmented_test_is_calibrated_inside():
    cfg = small_config("StandardROIHeads", MODEL__MASK_ON=False)
    cfg.TEST.AUG.MIN_SIZES, cfg.TEST.AUG.MAX_SIZE, cfg.TEST.AUG.FLIP = (64, 80), 100, True
    model, inputs = small_model("StandardROIHeads", MODEL__MASK_ON=False), images(1)
    augmented = GeneralizedRCNNWithTTA(cfg, model)
    before = detections(augmented, inputs)
    assert torch.equal(
        *(collect(each, [inputs]).stages[0].mean for each in (augmented, copy.deepcopy(model)))
    )
    shift = AffineCalibration(torch.ones(NUM_CLASSES), torch.arange(NUM_CLASSES) - 2.0)
    with attach(augmented, shift):
        attached = detections(augmented, inputs)
    assert not torch.equal(attached[0]["scores"], before[0]["scores"])
    assert_same(detections(augmented, inputs), before)
    fold(augmented, shift)
    folded = detections(augmented, inputs)
    torch.testing.assert_close(folded[0]["scores"], attached[0]["scores"])


def test_a_copied_average_has_a_calibration_of_its_own():
    model, inputs = retinanet(), images()
    attach(model, calibration())
    average = copy.deepcopy(model)
    detach(model)
    assert_same(detections(average, inputs), calibrated())
    detach(average)
    assert_same(detections(average, inputs), detections(model, inputs))


@pytest.mark.parametrize("in_place", [False, True])
def test_a_detector_that_ran_compiled_is_calibrated_from_then_on(in_place):
    """PyTorch looks for hooks when it compiles, and not again."""
    inputs, model = images(2, size=32), small_detr(no_object=False)
    site = LogitSite([model.class_embed], num_classes=CLASSES, axis=-1, calls="last")
    verb = {"site": site, "population": "proposals"}
    expected = collect(model, [inputs], **verb).stages[0].mean
    before = detections(model, inputs)
    shift = AffineCalibration(torch.ones(CLASSES), torch.arange(CLASSES) - 1.0, background="none")
    with attach(model, shift, site=site):
        wanted = detections(model, inputs)
    if in_place:
        model.compile(backend="eager")
    else:
        model = torch.compile(model, backend="eager")
    assert_same(detections(model, inputs), before)
    assert torch.equal(collect(model, [inputs], **verb).stages[0].mean, expected)
    with attach(model, shift, site=site):
        assert_same(detections(model, inputs), wanted)
    assert_same(detections(model, inputs), before)
