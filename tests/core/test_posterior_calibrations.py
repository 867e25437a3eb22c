"""P2P, the gamma that matches a detector's posteriors, LogN over negatives, and auto."""

import functools
import math

import numpy as np
import pytest
import torch

from logn_d2.core import (
    CalibrationInputs,
    ClassCounts,
    LogitMoments,
    PosteriorMoments,
    StageStatistics,
    StatisticsError,
    auto,
    build_calibration,
    expand_grid,
    logn,
    matching_gamma,
    norcal,
    p2p,
    sampling_error,
)

LOGITS = torch.tensor([[2.0, 0.5, -1.0, 1.0], [-0.5, 0.0, -2.0, 3.0]])
LABELS = torch.tensor([1, 3])
COUNT = [1000, 100, 5]


def close(found, expected, tolerance=1e-5):
    expected = torch.as_tensor(expected, dtype=torch.float64)
    torch.testing.assert_close(found.double(), expected, rtol=tolerance, atol=tolerance)


def make_stage(logits=LOGITS, posteriors=None, labels=LABELS):
    moments, sums = LogitMoments(logits.shape[1]), PosteriorMoments(logits.shape[1])
    moments.update(logits)
    sums.update(logits, logits.double().softmax(1) if posteriors is None else posteriors, labels)
    return StageStatistics.from_moments(moments, posteriors=sums)


def build(text, stage=None, background="last"):
    counts = ClassCounts(("a", "b", "c"), np.array(COUNT), np.array(COUNT), 20_000)
    inputs = CalibrationInputs(3, stage or make_stage(), counts, background)
    return build_calibration(text, inputs)


@pytest.mark.parametrize(
    ("text", "shift", "probabilities"),
    [
        ("p2p(centre=mass)", [-0.803975, 0.450261, 2.054681],
         [[0.287995, 0.225242, 0.250034, 0.236729], [0.011811, 0.068259, 0.045958, 0.873972]]),
        ("p2p(alpha=0.65, centre=mass)", [-0.522584, 0.292669, 1.335543],
         [[0.409195, 0.206323, 0.130623, 0.253858], [0.016129, 0.060090, 0.023074, 0.900707]]),
        ("p2p(source=negatives)", [-1.599359, 0.340063, 1.259296],
         [[0.190805, 0.296093, 0.165655, 0.347447], [0.005547, 0.063605, 0.021584, 0.909264]]),
    ],
)  # fmt: skip
def test_worked_examples(text, shift, probabilities):
    calibration = build(text)
    close(calibration.shift, shift)
    assert torch.equal(calibration.scale, torch.ones(3))
    close(calibration(LOGITS).softmax(1), probabilities)


def test_auto_is_minus_the_log_mean_posterior_centred():
    log_prior = torch.tensor([0.318624, 0.090901, 0.018272]).log()
    expected = log_prior.mean() - log_prior
    close(auto(make_stage()).shift, expected)
    assert torch.equal(build("auto").shift, auto(make_stage()).shift)
    assert torch.equal(build("p2p").shift, auto(make_stage()).shift)
    assert auto(make_stage()).name == build("auto").name == "auto"


def test_raw_shift_divides_scores_by_the_prior():
    """exp(z) / pi, with the background's factor 1."""
    stage = make_stage()
    found = p2p(stage, centre="none", alpha=0.5)(LOGITS).exp()
    factors = [*(stage.mean_posterior()[:3] ** -0.5).tolist(), 1.0]
    close(found, LOGITS.double().exp() * torch.tensor(factors).double())


def test_label_shares_are_the_prior_where_labels_are_the_source():
    labels = torch.tensor([0] * 6 + [1] * 2 + [3] * 8)
    logits = torch.randn(16, 4, generator=torch.Generator().manual_seed(0))
    found = p2p(make_stage(logits, labels=labels), source="labels").shift
    # The third class has no RoI, and counts as one.
    close(found, norcal([6, 2, 1], gamma=1.0, centre="mean").shift)


def test_at_the_optimum_of_cross_entropy_posteriors_and_labels_are_the_same_prior():
    """Logits that are log shares, as a classifier of a bias alone learns."""
    labels = torch.tensor([0] * 6 + [1] * 2 + [2] + [3] * 7)
    shares = torch.bincount(labels) / 16
    stage = make_stage(shares.log().repeat(16, 1), labels=labels)
    close(p2p(stage, source="labels").shift, p2p(stage, source="all").shift)


@pytest.mark.parametrize("source", ["all", "negatives", "labels"])
@pytest.mark.parametrize("alpha", [0.0, 0.65, 1.0])
def test_centred_shifts_sum_to_the_offset(source, alpha):
    shift = p2p(make_stage(), source=source, alpha=alpha, offset=-2.0).shift
    close(shift.sum(), -6.0)
    if alpha == 0:
        close(shift, [-2.0, -2.0, -2.0])


def test_background_first_is_the_same_with_columns_moved():
    order, columns = [3, 0, 1, 2], torch.tensor([1, 2, 3, 0])
    stage = make_stage(LOGITS[:, order], labels=columns[LABELS])
    for text in ("auto", "p2p(source=negatives)", "norcal(gamma=auto)", "logn(source=negatives)"):
        close(build(text, stage, "first")(LOGITS[:, order]), build(text)(LOGITS)[:, order])


def test_a_class_without_posterior_is_shifted_as_the_average_class():
    posteriors = torch.tensor([[0.4, 0.1, 0.0, 0.5]] * 2)
    found = p2p(make_stage(posteriors=posteriors)).shift
    close(found, [-math.log(2), math.log(2), 0.0])
    with pytest.raises(StatisticsError, match="have no RoIs"):
        p2p(make_stage(LOGITS[:0], labels=LABELS[:0]))


def test_gamma_is_the_slope_of_log_posteriors_on_log_counts():
    """Worked example: posteriors of negatives exp(-2), exp(-3) and exp(-5)."""
    posteriors = torch.tensor([[-2.0, -3.0, -5.0, 0.0]] * 2).double().exp()
    stage = make_stage(posteriors=posteriors, labels=torch.tensor([3, 3]))
    assert matching_gamma(stage, COUNT) == pytest.approx(0.571189, abs=1e-6)
    found = build("norcal(gamma=auto, centre=mean, offset=-1)", stage)
    expected = norcal(COUNT, gamma=matching_gamma(stage, COUNT), centre="mean", offset=-1)
    assert torch.equal(found.shift, expected.shift)


@pytest.mark.parametrize(("slope", "gamma"), [(-0.4, 0.0), (0.3, 0.3), (1.7, 1.0)])
def test_gamma_is_between_0_and_1(slope, gamma):
    log_count = torch.tensor(COUNT).double().log()
    posteriors = torch.cat([(slope * log_count - 30).exp(), torch.ones(1).double()]).repeat(2, 1)
    stage = make_stage(posteriors=posteriors, labels=torch.tensor([3, 3]))
    assert matching_gamma(stage, COUNT) == pytest.approx(gamma)


def test_gamma_of_equal_counts_is_0():
    assert matching_gamma(make_stage(), [7, 7, 7]) == 0


def test_gamma_is_reported(caplog):
    with caplog.at_level("INFO", "logn_d2"):
        build("norcal(gamma=auto)")
    assert "norcal(gamma=auto), stage 0: gamma is 0." in caplog.text


@pytest.mark.parametrize("beta", ["min", "mean", "background", "none", -4])
def test_logn_over_negatives_is_logn_of_the_negatives_alone(beta):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(60, 4, generator=generator).double() - 2
    labels = torch.randint(4, (60,), generator=generator)
    own = labels[:, None] == torch.arange(4)
    negatives = LogitMoments(4)
    negatives.update(logits, ~own)
    stage = make_stage(logits, labels=labels)
    constant = float(logits[:, 3].mean()) if beta == "background" else beta
    found = logn(stage, source="negatives", beta=beta, std_reference="geometric")
    slow = logn(StageStatistics.from_moments(negatives), beta=constant, std_reference="geometric")
    close(found.scale, slow.scale)
    close(found.shift, slow.shift)


def test_errors_of_all_of_them_are_known():
    """From the groups of images, as LogN's: twenty groups, one image each."""
    moments, posteriors = LogitMoments(4), PosteriorMoments(4)
    for image in range(200):
        logits = torch.randn(9, 4, generator=torch.Generator().manual_seed(image)) - 2
        labels = torch.arange(9) % 4
        moments.update(logits, image=image)
        posteriors.update(logits, logits.softmax(1), labels, image=image)
    stage = StageStatistics.from_moments(moments, posteriors=posteriors)
    for make in (auto, p2p, *(functools.partial(f, source="negatives") for f in (p2p, logn))):
        error = sampling_error(stage, make)
        assert ((error > 0) & (error < 0.5)).all()


def test_sweep_grids():
    grid = expand_grid("p2p(alpha=[0.65, 1], source=[all, negatives, labels], offset=-4:0:2)")
    assert len(grid) == 18
    stage = make_stage(LOGITS.repeat(5, 1), labels=torch.tensor([0, 0, 0, 0, 1, 1, 2, 3, 3, 3]))
    assert len({tuple(build(text, stage).shift.tolist()) for text in grid}) == 18


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("p2p(source=train)", "source is 'train', expected one of all, negatives, labels"),
        ("logn(source=labels)", "source is 'labels', expected 'all' or 'negatives'"),
        ("p2p(centre=log)", "centre is 'log', expected one of none, mean, mass"),
        ("p2p(alpha=much)", "alpha is 'much', expected a number"),
        ("norcal(gamma=most)", "gamma is 'most', expected a number"),
        ("auto(alpha=1)", "wrong options: .*alpha"),
    ],
)
def test_wrong_options_are_named(text, message):
    with pytest.raises(ValueError, match=message):
        build(text)


@pytest.mark.parametrize(
    "text", ["auto", "p2p", "p2p(source=labels)", "norcal(gamma=auto)", "logn(source=negatives)"]
)
def test_the_error_for_older_statistics_has_the_remedy(text):
    moments = LogitMoments(4)
    moments.update(LOGITS)
    with pytest.raises(StatisticsError, match="lack: .* Collect them again: logn collect"):
        build(text, StageStatistics.from_moments(moments))
