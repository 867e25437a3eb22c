"""logn: the paper's equations, their parts, and classes without usable statistics."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from logn_d2.core import (
    CalibrationInputs,
    LogitMoments,
    StageStatistics,
    build_calibration,
    logn,
)

LOGITS = torch.tensor([[2.0, 0.5, -1.0, 1.0], [-0.5, 0.0, -2.0, 3.0]])
MEAN, VAR = [-2.0, -3.0, -5.0, 4.0], [4.0, 2.25, 1.0, 9.0]


def make_stage(mean=MEAN, var=VAR, count=None):
    mean, var = (torch.as_tensor(each, dtype=torch.float64) for each in (mean, var))
    return StageStatistics(mean, var, torch.full_like(mean, 9).long() if count is None else count)


def close(found, expected, tolerance=1e-5):
    expected = torch.as_tensor(expected, dtype=torch.float64)
    torch.testing.assert_close(found.double(), expected, rtol=tolerance, atol=tolerance)


def slow_logn(row, mean, var):
    """Eq. 2 for one RoI, background last."""
    foreground = range(len(row) - 1)
    beta = min(mean[c] for c in foreground)
    return [(row[c] - mean[c] + beta) / math.sqrt(var[c]) for c in foreground] + [row[-1]]


def test_worked_example():
    calibrated = logn(make_stage())(LOGITS)
    close(calibrated, [[-0.5, -1.0, -1.0, 1.0], [-1.75, -1.333333, -2.0, 3.0]])
    probabilities = [
        [0.149371, 0.090598, 0.090598, 0.669433],
        [0.008412, 0.012760, 0.006551, 0.972277],
    ]
    close(calibrated.softmax(1), probabilities)


@pytest.mark.parametrize(
    ("name", "first", "second"),
    [
        ("uncalibrated", [2.0, 0.5, -1.0, 1.0], [-0.5, 0.0, -2.0, 3.0]),
        ("logn_mean", [4, 3.5, 4, 1], [1.5, 3, 3, 3]),
        ("logn_std", [1, 0.333333, -1, 1], [-0.25, 0, -2, 3]),
        ("logn_beta", [-3, -4.5, -6, 1], [-5.5, -5, -7, 3]),
        ("logn", [-0.5, -1, -1, 1], [-1.75, -1.333333, -2, 3]),
        ("logn(std_power=2)", [-0.25, -0.666667, -1, 1], [-0.875, -0.888889, -2, 3]),
        ("logn_no_beta", [2, 2.333333, 4, 1], [0.75, 2, 3, 3]),
        ("logn(beta=none)", [2, 2.333333, 4, 1], [0.75, 2, 3, 3]),
        ("logn(beta=0)", [2, 2.333333, 4, 1], [0.75, 2, 3, 3]),
        (
            "logn(beta=mean)",
            [0.333333, 0.111111, 0.666667, 1],
            [-0.916667, -0.222222, -0.333333, 3],
        ),
        ("logn(beta=max)", [1, 1, 2, 1], [-0.25, 0.666667, 1, 3]),
        ("logn(beta=background)", [4, 5, 8, 1], [2.75, 4.666667, 7, 3]),
        ("logn(beta=-4)", [0, -0.333333, 0, 1], [-1.25, -0.666667, -1, 3]),
        ("logn(beta='min')", [-0.5, -1, -1, 1], [-1.75, -1.333333, -2, 3]),
    ],
)
def test_parts_and_choices_of_beta(name, first, second):
    """Table 2 (parts), Table 3 (beta) and App. B.4 (squared std) of the paper."""
    calibration = build_calibration(name, CalibrationInputs(3, make_stage()))
    close(calibration(LOGITS), [first, second])
    assert calibration.name == name


def test_classes_without_a_training_roi_do_not_affect_beta():
    """The smallest mean of the others is -3."""
    unlabelled = torch.tensor([False, False, True])
    for beta, constant in (("min", -3), ("max", -2), ("mean", -2.5), (-4, -4), ("none", "none")):
        found = logn(make_stage(), beta=beta, unlabelled=unlabelled)
        assert torch.equal(found(LOGITS), logn(make_stage(), beta=constant)(LOGITS))
    every = logn(make_stage(), unlabelled=torch.ones(3, dtype=torch.bool))
    assert torch.equal(every(LOGITS), logn(make_stage(), beta="none")(LOGITS))


@pytest.mark.parametrize("power", [1.0, 2.0])
def test_geometric_reference_keeps_the_temperature_against_background(power):
    """The scales' geometric mean is 1; relative to each other they are as in Eq. 2."""
    stage, reference = make_stage(), math.prod(math.sqrt(v) ** power for v in VAR[:3]) ** (1 / 3)
    found = logn(stage, std_power=power, std_reference="geometric")
    close(found.scale.log().sum(), 0.0)
    close(found.scale, logn(stage, std_power=power).scale.double() * reference)
    close(found.shift, logn(stage, std_power=power).shift.double() * reference)


def test_geometric_reference_of_unusable_classes_is_of_the_others():
    stage = make_stage(count=torch.tensor([9, 9, 1, 9]))
    scale = logn(stage, std_reference="geometric").scale
    close(scale, [math.sqrt(0.75), math.sqrt(4 / 3), 1.0])  # sigma 2 and 1.5
    nothing = logn(make_stage(count=torch.zeros(4).long()), std_reference="geometric")
    assert torch.equal(nothing(LOGITS), LOGITS)


@pytest.mark.parametrize("factor", [0.1, 7.0])
def test_geometric_reference_does_not_depend_on_a_common_factor_of_sigma(factor):
    found = logn(make_stage(var=[v * factor**2 for v in VAR]), std_reference="geometric")
    close(found(LOGITS), logn(make_stage(), std_reference="geometric")(LOGITS))


def test_geometric_reference_has_no_part_where_sigma_has_none():
    one, other = (logn(make_stage(), use_std=False, std_reference=r) for r in ("none", "geometric"))
    assert torch.equal(one(LOGITS), other(LOGITS))
    with pytest.raises(ValueError, match="std_reference is 'mean', expected 'none' or 'geometric'"):
        logn(make_stage(), std_reference="mean")


def test_beta_alone_is_the_same_as_raising_the_background():
    calibrated = logn(make_stage(), use_mean=False, use_std=False)(LOGITS).softmax(1)
    close(calibrated[0], [0.017898, 0.003994, 0.000891, 0.977217])
    close(calibrated, (LOGITS + torch.tensor([0, 0, 0, 5.0])).double().softmax(1))


finite = st.floats(-50, 50)
statistics = st.integers(1, 8).flatmap(
    lambda k: st.tuples(
        st.lists(finite, min_size=k + 1, max_size=k + 1),
        st.lists(st.floats(0.01, 100), min_size=k + 1, max_size=k + 1),
        st.lists(finite, min_size=k + 1, max_size=k + 1),
    )
)


@given(statistics)
def test_equals_the_slow_version_and_leaves_background_alone(drawn):
    mean, var, row = drawn
    logits = torch.tensor([row])
    found = logn(make_stage(mean, var))(logits)
    expected = torch.tensor([slow_logn(row, mean, var)], dtype=torch.float64)
    # Single precision: relative to the terms that are added, not to their sum.
    scale = (2 * max(map(abs, mean)) + max(map(abs, row))) / math.sqrt(min(var))
    assert (found - expected).abs().max() <= 1e-6 * scale + 1e-12
    assert found[0, -1] == logits[0, -1]


def test_mean_zero_and_variance_one_change_nothing():
    assert torch.equal(logn(make_stage([0.0] * 4, [1.0] * 4))(LOGITS), LOGITS)


def test_class_with_the_smallest_mean_is_only_divided():
    close(logn(make_stage())(LOGITS)[:, 2], LOGITS[:, 2] / 1.0)
    close(logn(make_stage(var=[4, 2.25, 16, 9]))(LOGITS)[:, 2], LOGITS[:, 2] / 4)


def test_no_foreground_logit_is_raised_before_the_division():
    assert (logn(make_stage(), use_std=False)(LOGITS)[:, :3] <= LOGITS[:, :3]).all()


def test_equal_means_make_a_temperature_for_each_class():
    stage = make_stage([-3.0, -3.0, -3.0, 4.0])
    close(logn(stage)(LOGITS)[:, :3], LOGITS[:, :3] / stage.std[:3])


def test_a_common_foreground_offset_is_kept():
    offset = torch.tensor([1.5, 1.5, 1.5, 0])
    moved = logn(make_stage(stage_mean := (torch.tensor(MEAN) + offset)))(LOGITS + offset)
    assert stage_mean[3] == 4
    close(moved - logn(make_stage())(LOGITS), (offset / make_stage().std).expand(2, 4))


def test_background_first_is_the_same_with_columns_moved():
    order = [3, 0, 1, 2]
    stage = make_stage([MEAN[i] for i in order], [VAR[i] for i in order])
    for beta in ("min", "max", "mean", "background", "none", -4):
        found = logn(stage, background="first", beta=beta)(LOGITS[:, order])
        assert torch.equal(found, logn(make_stage(), beta=beta)(LOGITS)[:, order])


def test_without_background_it_is_equation_1():
    expected = (LOGITS - torch.tensor(MEAN)) / torch.tensor(VAR).sqrt()
    for beta in ("min", "max", "mean", "background", "none"):
        close(logn(make_stage(), background="none", beta=beta)(LOGITS), expected)
    constant = logn(make_stage(), background="none", beta=-4)(LOGITS)
    close(constant, (LOGITS - torch.tensor(MEAN) - 4) / torch.tensor(VAR).sqrt())


@pytest.mark.parametrize(
    ("var", "count"),
    [
        ([4.0, 2.25, 0.0, 9.0], [9, 9, 9, 9]),  # always the same logit
        ([4.0, 2.25, 1e-30, 9.0], [9, 9, 9, 9]),  # the same, with rounding noise
        ([4.0, 2.25, 1.0, 9.0], [9, 9, 0, 9]),  # never seen
        ([4.0, 2.25, 1.0, 9.0], [9, 9, 1, 9]),  # seen once
    ],
)
@pytest.mark.parametrize("name", ["logn", "logn_mean", "logn_std", "logn_beta", "logn(beta=mean)"])
def test_a_class_that_statistics_can_not_speak_for_keeps_its_logit(var, count, name):
    stage = make_stage(var=var, count=torch.tensor(count))
    found = build_calibration(name, CalibrationInputs(3, stage))(LOGITS)
    assert torch.equal(found[:, 2], LOGITS[:, 2])
    # The others are calibrated as if it did not exist.
    without = StageStatistics(*(each[[0, 1, 3]] for each in (stage.mean, stage.var, stage.count)))
    expected = build_calibration(name, CalibrationInputs(2, without))(LOGITS[:, [0, 1, 3]])
    assert torch.equal(found[:, [0, 1, 3]], expected)


def test_without_any_usable_class_nothing_changes():
    stage = make_stage(count=torch.zeros(4, dtype=torch.int64))
    for beta in ("min", "max", "mean", -4):
        assert torch.equal(logn(stage, beta=beta)(LOGITS), LOGITS)


def test_background_of_no_variance_does_not_matter():
    stage = make_stage(var=[4.0, 2.25, 1.0, 0.0])
    assert torch.equal(logn(stage)(LOGITS), logn(make_stage())(LOGITS))


def test_unknown_beta_is_an_error():
    for beta in ("median", True, None):
        for background in ("last", "none"):
            with pytest.raises(
                ValueError, match="expected one of min, max, mean, background, none"
            ):
                logn(make_stage(), beta=beta, background=background)


def test_beta_of_a_background_that_was_never_seen_is_an_error():
    stage = make_stage(count=torch.tensor([9, 9, 9, 0]))
    with pytest.raises(ValueError, match="have no background logits"):
        logn(stage, beta="background")
    logn(stage)


def test_1203_classes_with_statistics_of_the_logits_are_standardised():
    logits = torch.randn(400, 1204, generator=torch.manual_seed(0)) * torch.linspace(0.5, 3, 1204)
    logits -= torch.linspace(3, 12, 1204)
    moments = LogitMoments(1204)
    moments.update(logits)
    calibrated = logn(StageStatistics.from_moments(moments), beta="none")(logits)[:, :-1]
    close(calibrated.mean(0), torch.zeros(1203), 1e-4)
    close(calibrated.std(0), torch.ones(1203), 1e-4)


def test_statistics_are_not_changed_by_their_use():
    # The released code writes 0 over the stored background mean when it reads it.
    stage = make_stage()
    for beta in ("min", "background"):
        logn(stage, beta=beta)(LOGITS)
    assert stage.mean.tolist() == MEAN and stage.var.tolist() == VAR


def test_half_precision_logits():
    close(logn(make_stage())(LOGITS.half()), logn(make_stage())(LOGITS), 1e-3)
