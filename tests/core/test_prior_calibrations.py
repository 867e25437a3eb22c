"""The family of shifts by a prior: its members, its centres, and its common offset."""

import math

import pytest
import torch

from logn_d2.core import (
    CalibrationInputs,
    ClassCounts,
    build_calibration,
    expand_grid,
    fold_linear,
    logit_adjustment,
    norcal,
    prior_shift,
)

LOGITS = torch.tensor([[2.0, 0.5, -1.0, 1.0], [-0.5, 0.0, -2.0, 3.0]])
COUNT = [1000, 100, 5]
IMAGES = 20_000


def close(found, expected, tolerance=1e-5):
    expected = torch.as_tensor(expected, dtype=torch.float64)
    torch.testing.assert_close(found.double(), expected, rtol=tolerance, atol=tolerance)


def shift_of(text):
    counts = ClassCounts(("a", "b", "c"), torch.tensor(COUNT), torch.tensor(COUNT), IMAGES)
    return build_calibration(text, CalibrationInputs(3, counts=counts)).shift


def test_frequency_part_of_fracal_is_norcal_with_an_offset():
    """softmax of z_c + log10(T / (K n_c)), on the fixture of its authors' code."""
    gamma = 1 / math.log(10)
    calibration = norcal(COUNT, gamma=gamma, offset=gamma * math.log(IMAGES / 3))
    close(calibration.shift, [0.823909, 1.823909, 3.124939])
    expected = [
        [0.441497, 0.267781, 0.219467, 0.071255],
        [0.044969, 0.201535, 0.100183, 0.653313],
    ]
    close(calibration(LOGITS).softmax(1), expected)


@pytest.mark.parametrize("tau", [0.0, 0.4, 1.0])
def test_logit_adjustment_is_norcal_with_an_offset(tau):
    family = norcal(COUNT, gamma=tau, offset=tau * math.log(sum(COUNT)))
    close(family.shift, logit_adjustment(COUNT, tau=tau).shift)


def test_centres_of_worked_numbers():
    """By hand: the mean of log N, and log of the mean count."""
    logs = [math.log(n) for n in COUNT]
    for centre, middle in (
        ("none", 0),
        ("mean", sum(logs) / 3),
        ("mass", math.log(sum(COUNT) / 3)),
    ):
        expected = [-0.6 * (log - middle) - 1 for log in logs]
        close(norcal(COUNT, gamma=0.6, centre=centre, offset=-1).shift, expected, 1e-6)


@pytest.mark.parametrize("scale", [1e-9, 3.0, 1e6])
@pytest.mark.parametrize("centre", ["mean", "mass"])
def test_a_centred_shift_does_not_depend_on_the_scale_of_the_prior(centre, scale):
    log_prior = torch.tensor(COUNT).double().log()
    moved = prior_shift(log_prior + math.log(scale), 0.7, centre=centre)
    close(moved, prior_shift(log_prior, 0.7, centre=centre), 1e-9)
    if centre == "mean":
        close(moved.sum(), 0.0, 1e-9)


def test_average_class_is_not_shifted_where_mass_is_the_centre():
    found = prior_shift(torch.tensor([1.0, 3.0, 2.0]).double().log(), 1.3, centre="mass")
    close(found[2], 0.0, 1e-12)


@pytest.mark.parametrize("centre", ["none", "mean", "mass"])
def test_equal_priors_leave_the_offset_alone_once_centred(centre):
    found = norcal([7, 7, 7], gamma=1.0, centre=centre, offset=-2.0)(LOGITS)
    middle = math.log(7) if centre == "none" else 0.0
    close(found, LOGITS - torch.tensor([2.0, 2.0, 2.0, 0.0]) - torch.tensor([middle] * 3 + [0.0]))


def test_one_class_is_its_own_centre():
    for centre in ("mean", "mass"):
        assert norcal([9], gamma=0.6, centre=centre).shift.tolist() == [0.0]


def test_a_folded_shift_is_a_bias():
    calibration = norcal(COUNT, gamma=0.6, centre="mean", offset=-1)
    weight, bias = fold_linear(torch.eye(4), torch.zeros(4), calibration)
    assert torch.equal(weight, torch.eye(4)) and bias[-1] == 0
    close(LOGITS @ weight.T + bias, calibration(LOGITS))


def test_sweep_grids_take_words_and_numbers():
    grid = expand_grid("norcal(gamma=[0.6, 1], centre=[none, mean, mass], offset=-2:0:1)")
    assert len(grid) == 18 and len({tuple(shift_of(text).tolist()) for text in grid}) == 18
    close(shift_of("norcal(gamma=0.6, centre=mean, offset=-1)").sum(), -3.0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("gamma=0.6, centre=median", "centre is 'median', expected one of none, mean, mass"),
        ("gamma=0.6, offset=low", "offset is 'low', expected a number"),
        ("gamma=0.6, offset=1e999", "offset is inf, expected a number"),
    ],
)
def test_wrong_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        shift_of(f"norcal({options})")
