"""Expected calibration error and the temperature, against slow versions and known answers."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import minimize_scalar

from logn_d2.errors import UserError
from logn_d2.ood import expected_calibration_error, fit_temperature, log_softmax


def slow_ece(confidence, correct, num_bins):
    total, edges = 0.0, np.linspace(0, 1, num_bins + 1)
    for low, high in zip(edges[:-1], edges[1:]):
        inside = (confidence > low) & (confidence <= high) | ((confidence == 0) & (low == 0))
        if inside.any():
            gap = abs(correct[inside].mean() - confidence[inside].mean())
            total += inside.mean() * gap
    return total


@pytest.mark.parametrize("size", [1, 2, 1000])
def test_equal_to_the_slow_version(size):
    rng = np.random.default_rng(size)
    confidence = np.r_[rng.random(size), 0.0, 1.0, 0.2]
    correct = rng.random(len(confidence)) < 0.5
    found = expected_calibration_error(confidence, correct, 10)
    assert found.ece == pytest.approx(slow_ece(confidence, correct, 10), abs=1e-12)
    assert found.count.sum() == len(confidence)


def test_a_calibrated_classifier_has_none():
    rng = np.random.default_rng(0)
    confidence = rng.random(200_000)
    assert expected_calibration_error(confidence, rng.random(200_000) < confidence).ece < 0.01
    assert expected_calibration_error(np.ones(4), np.zeros(4)).ece == 1


def test_temperature_is_the_minimum_that_scipy_finds():
    rng = np.random.default_rng(0)
    logits, labels = 3 * rng.normal(size=(400, 5)), rng.integers(0, 5, 400)
    labels[:250] = logits[:250].argmax(1)

    def cost(log_t):
        return -log_softmax(logits / np.exp(log_t))[np.arange(400), labels].mean()

    expected = np.exp(minimize_scalar(cost, bounds=(-5, 5), method="bounded").x)
    assert fit_temperature(logits, labels) == pytest.approx(expected, rel=1e-4)


def test_temperature_undoes_a_factor():
    rng = np.random.default_rng(1)
    logits = rng.normal(size=(300, 4))
    labels = np.array([rng.choice(4, p=np.exp(row)) for row in log_softmax(logits)])
    one = fit_temperature(logits, labels)
    assert fit_temperature(7 * logits, labels) == pytest.approx(7 * one, rel=1e-5)
    assert one == pytest.approx(1, abs=0.25)


def test_one_that_is_always_right_gets_the_smallest_temperature():
    assert fit_temperature([[2.0, 0.0]] * 3, [0, 0, 0]) == pytest.approx(1e-3, rel=0.5)
    assert fit_temperature([[2.0, 0.0]] * 3, [1, 1, 1]) == pytest.approx(1e3, rel=0.01)


def test_what_is_refused():
    with pytest.raises(UserError, match="outside \\[0, 1\\], the first is 3.0"):
        expected_calibration_error([0.5, 3.0], [1, 0])
    with pytest.raises(UserError, match="at least one"):
        expected_calibration_error([], [])
    with pytest.raises(UserError, match="1 of 2 labels are outside \\[0, 1\\].*2 of input 1"):
        fit_temperature([[0.0, 1.0]] * 2, [0, 2])
    with pytest.raises(UserError, match="expected"):
        fit_temperature([[0.0, 1.0]], [0, 1])
