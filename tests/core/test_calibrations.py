"""NorCal, class-balanced, logit adjustment, temperature and tau-normalisation on worked numbers."""

import math

import numpy as np
import pytest
import torch

from logn_d2.core import class_balanced, logit_adjustment, norcal, tau_norm, temperature

LOGITS = torch.tensor([[2.0, 0.5, -1.0, 1.0], [-0.5, 0.0, -2.0, 3.0]])
COUNT = [1000, 100, 5]

WEIGHT = torch.tensor([[2, -0.5], [0.5, 0], [-1, -2], [1, 3]])
BIAS = torch.tensor([0.1, 0.2, 0.3, 0.4])


def close(found, expected, tolerance=1e-5):
    expected = torch.as_tensor(expected, dtype=torch.float64)
    torch.testing.assert_close(found.double(), expected, rtol=tolerance, atol=tolerance)


def slow_factors(logits, factors):
    """Foreground exponentials times a factor each, background times 1, then normalised."""
    rows = []
    for row in logits.tolist():
        scores = [math.exp(z) * f for z, f in zip(row, [*factors, 1.0])]
        rows.append([score / sum(scores) for score in scores])
    return rows


def test_norcal_worked_example():
    calibrated = norcal(COUNT, gamma=0.5)(LOGITS)
    close(calibrated, [[-1.453878, -1.802585, -1.804719, 1], [-3.953878, -2.302585, -2.804719, 3]])
    expected = [
        [0.071210, 0.050245, 0.050138, 0.828407],
        [0.000946, 0.004935, 0.002987, 0.991132],
    ]
    close(calibrated.softmax(1), expected)
    probabilities = norcal(COUNT, gamma=1.0)(LOGITS).softmax(1)
    close(probabilities[0], [0.002624, 0.005855, 0.026130, 0.965390])


@pytest.mark.parametrize("gamma", [0.0, 0.3, 0.6, 1.0])
def test_norcal_divides_scores_by_a_power_of_the_count(gamma):
    found = norcal(COUNT, gamma=gamma)(LOGITS).softmax(1)
    close(found, slow_factors(LOGITS, [n**-gamma for n in COUNT]))


def test_class_balanced_worked_example():
    calibration = class_balanced(COUNT, gamma=0.999)
    close(calibration.shift.exp(), [0.001582, 0.010503, 0.200400])
    close(calibration(LOGITS).softmax(1), slow_factors(LOGITS, calibration.shift.exp().tolist()))


@pytest.mark.parametrize("gamma", [0.0, 1.0, -0.5, 1.5, math.nan])
def test_class_balanced_needs_a_gamma_between_0_and_1(gamma):
    with pytest.raises(ValueError, match=r"expected a number in \(0, 1\)"):
        class_balanced(COUNT, gamma=gamma)


def test_logit_adjustment_worked_examples():
    # As image classification, the first three columns.
    found = logit_adjustment(COUNT, background="none")(LOGITS[:, :3]).softmax(1)
    close(found, [[0.075822, 0.169183, 0.754995], [0.016100, 0.265438, 0.718462]])
    # As detection: raw counts and priors are not the same, the background falls.
    found = logit_adjustment(COUNT)(LOGITS).softmax(1)[0]
    close(found, [0.073956, 0.165017, 0.736406, 0.024621])


@pytest.mark.parametrize("tau", [0.0, 0.5, 1.0, 2.0])
def test_logit_adjustment_is_norcal_with_a_lifted_foreground(tau):
    difference = logit_adjustment(COUNT, tau=tau)(LOGITS) - norcal(COUNT, gamma=tau)(LOGITS)
    lift = tau * math.log(sum(COUNT))
    close(difference, [[lift, lift, lift, 0.0]] * 2)


@pytest.mark.parametrize(
    "make",
    [
        lambda count: norcal(count, gamma=0.0),
        lambda count: logit_adjustment(count, tau=0.0),
        lambda count: temperature(len(count), temperature=1.0),
        lambda count: tau_norm(WEIGHT, BIAS, tau=0.0),
    ],
)
def test_strength_zero_changes_nothing(make):
    assert torch.equal(make(COUNT)(LOGITS), LOGITS)


@pytest.mark.parametrize("background", ["last", "first", "none"])
def test_background_has_no_class_count(background):
    for make in (
        lambda: norcal(COUNT, gamma=1.0, background=background),
        lambda: class_balanced(COUNT, gamma=0.9, background=background),
        lambda: logit_adjustment(COUNT, background=background),
        lambda: temperature(3, temperature=2.0, background=background),
    ):
        calibration = make()
        assert calibration.background == background and calibration.num_classes == 3


@pytest.mark.parametrize(
    "make",
    [lambda c: norcal(c, gamma=1.0), lambda c: class_balanced(c, gamma=0.9), logit_adjustment],
)
def test_a_class_without_images_counts_as_one(make):
    assert torch.equal(make([0, 5])(LOGITS[:, :3]), make([1, 5])(LOGITS[:, :3]))
    with pytest.raises(ValueError, match="class count is negative"):
        make([-1, 5])


def test_counts_may_be_lists_arrays_or_tensors():
    expected = norcal(COUNT, gamma=0.7).shift
    for counts in (np.array(COUNT), torch.tensor(COUNT), tuple(COUNT), np.array(COUNT, np.int32)):
        assert torch.equal(norcal(counts, gamma=0.7).shift, expected)


def test_counts_as_large_as_lvis_stay_finite():
    for calibration in (norcal([1, 50_552], gamma=2.0), class_balanced([1, 50_552], gamma=0.5)):
        assert calibration(LOGITS[:, :3]).isfinite().all()


def test_temperature_divides_the_foreground():
    found = temperature(3, temperature=2.0)(LOGITS)
    close(found, (LOGITS / torch.tensor([2, 2, 2, 1])).double())
    for wrong in (0.0, -1.0, math.nan):
        with pytest.raises(ValueError, match=r"expected a number in \(0, inf\]"):
            temperature(3, temperature=wrong)


def test_tau_norm_worked_examples():
    x = torch.ones(1, 2)
    logits = x @ WEIGHT.T
    close(tau_norm(WEIGHT)(logits), [[0.727607, 1, -1.341641, 4]])
    close(tau_norm(WEIGHT, background="none")(logits), [[0.727607, 1, -1.341641, 1.264911]])


@pytest.mark.parametrize("background", ["last", "first", "none"])
@pytest.mark.parametrize("tau", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("keep_bias", [True, False])
def test_tau_norm_equals_a_classifier_with_normalised_rows(background, tau, keep_bias):
    x = torch.randn(5, 2, generator=torch.manual_seed(0))
    rows = {"last": [0, 1, 2], "first": [1, 2, 3], "none": [0, 1, 2, 3]}[background]
    weight, bias = WEIGHT.clone(), BIAS.clone()
    weight[rows] /= weight[rows].norm(dim=1, keepdim=True) ** tau
    bias[rows] *= keep_bias
    calibration = tau_norm(WEIGHT, BIAS, tau=tau, keep_bias=keep_bias, background=background)
    close(calibration(x @ WEIGHT.T + BIAS), (x @ weight.T + bias).double())


def test_tau_norm_of_a_row_of_zeros_is_an_error():
    with pytest.raises(ValueError, match="class 1"):
        tau_norm(torch.tensor([[1.0, 0.0], [0.0, 0.0], [1.0, 1.0]]))
