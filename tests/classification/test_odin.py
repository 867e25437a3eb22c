"""ODIN against pytorch-ood and finite differences."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pytorch_ood.detector import ODIN

from logn_d2.classification.odin import ODINInputs
from logn_d2.errors import UserError
from logn_d2.ood import msp

from .small import images, raw_logits, small_model


@pytest.fixture(scope="module")
def model():
    return small_model().double().eval()


def pixels_to_logits(model):
    return lambda x: torch.stack([each["logits"] for each in model([{"image": i} for i in x])])


@pytest.mark.parametrize(("temperature", "noise"), [(1000.0, 0.0014), (1.0, 0.02), (10.0, 0.0)])
def test_scores_are_those_of_pytorch_ood(model, temperature, noise):
    mine = ODINInputs(model, temperature, noise)
    inputs = images(7)
    with torch.no_grad():
        logits = raw_logits(mine, inputs)
    theirs = ODIN(pixels_to_logits(model), eps=255 * noise, temperature=temperature)
    theirs.model.parameters = model.parameters
    expected = -theirs.predict(torch.stack([each["image"] for each in inputs]))
    found = (logits / temperature).softmax(1).amax(1)
    torch.testing.assert_close(found, expected.to(found.dtype), rtol=1e-12, atol=1e-12)
    score = msp((logits / temperature).numpy())
    np.testing.assert_allclose(1 / (1 + np.exp(-score)), found.numpy(), rtol=1e-12)


def test_the_step_is_along_the_gradient_of_the_certainty(model):
    mine, step = ODINInputs(model, temperature=2.0, noise=0.01), 1e-3
    (one,) = images(1)
    with torch.no_grad():
        (changed,) = mine.perturbed([one])
        logits = pixels_to_logits(model)

        def certainty(image):
            return (logits(image[None]) / 2).log_softmax(1).amax().item()

        for place in ((0, 0, 0), (0, 2, 5), (0, 4, 1)):
            nudge = torch.zeros_like(one["image"])
            nudge[place] = step
            slope = certainty(one["image"] + nudge) - certainty(one["image"] - nudge)
            moved = (changed["image"] - one["image"])[place].item()
            assert moved == pytest.approx(2.55 * np.sign(slope), rel=1e-4)


def test_nothing_is_left_behind(model):
    inputs = images(3)
    before = [each["image"].clone() for each in inputs]
    ODINInputs(model)(inputs)
    assert all(torch.equal(each["image"], image) for each, image in zip(inputs, before))
    assert all(weight.grad is None for weight in model.parameters())


@pytest.mark.parametrize("options", [{"temperature": 0}, {"noise": -0.1}, {"noise": 1.5}])
def test_numbers_outside_their_range(model, options):
    with pytest.raises(UserError, match="expected a number above 0"):
        ODINInputs(model, **options)
