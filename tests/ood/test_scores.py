"""Scores against torch, in the ranges where float32 fails."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from logn_d2.core import build_loss
from logn_d2.errors import UnknownNameError, UserError
from logn_d2.ood import (
    OOD_SCORES,
    energy,
    log_softmax,
    max_logit,
    msp,
    normalized_logits,
    score_logits,
)


@pytest.fixture
def logits():
    return 5 * np.random.default_rng(0).normal(size=(200, 7))


def test_equal_to_torch(logits):
    z = torch.from_numpy(logits)
    np.testing.assert_allclose(log_softmax(logits), z.log_softmax(1), atol=1e-12)
    np.testing.assert_allclose(max_logit(logits), z.amax(1), atol=0)
    for t in (0.1, 1.0, 10.0):
        expected = t * (z / t).logsumexp(1)
        np.testing.assert_allclose(energy(logits, t), expected, rtol=1e-12)
    top = z.softmax(1).amax(1)
    np.testing.assert_allclose(msp(logits), (top / (1 - top)).log(), rtol=1e-6)


def test_msp_ranks_as_the_probability_does(logits):
    top = torch.from_numpy(logits).softmax(1).amax(1).numpy()
    assert (np.argsort(msp(logits)) == np.argsort(top)).all()


def test_msp_separates_inputs_where_float32_saturates():
    logits = np.array([[60.0, 0, 0], [80.0, 0, 0], [700.0, 0, 0], [1e6, 0, 0]])
    assert (torch.tensor(logits, dtype=torch.float32).softmax(1).amax(1) == 1).all()
    assert (np.diff(msp(logits)) > 0).all()


def test_normalized_logits_are_those_of_the_loss(logits):
    loss = build_loss("logit_norm(tau=0.1)", num_classes=6)
    expected = loss.training_logits(torch.from_numpy(logits))
    np.testing.assert_allclose(normalized_logits(logits, 0.1), expected, rtol=1e-12)
    assert np.isfinite(normalized_logits(np.zeros((1, 3)))).all()


def test_one_class_and_no_inputs():
    assert np.isinf(msp([[1.0]])).all()
    for score in OOD_SCORES.values():
        assert score(np.zeros((0, 3))).shape == (0,)


@pytest.mark.parametrize("name", OOD_SCORES)
def test_logits_that_are_no_logits(name):
    with pytest.raises(UserError, match=r"shape \(3,\)"):
        score_logits(name, np.zeros(3))
    with pytest.raises(UserError, match="1 of 2 inputs have NaN or infinite logits.*number 1"):
        score_logits(name, [[0.0, 1.0], [np.inf, 0.0]])


def test_unknown_score_and_temperatures():
    with pytest.raises(UnknownNameError, match="'odin'. Known: msp, max_logit, energy"):
        score_logits("odin", [[0.0]])
    with pytest.raises(UserError, match="temperature"):
        energy([[0.0]], 0.0)
    with pytest.raises(UserError, match="tau"):
        normalized_logits([[0.0]], -1.0)
