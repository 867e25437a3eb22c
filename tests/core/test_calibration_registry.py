"""Calibrations from their text, and one for each cascade stage."""

import dataclasses

import numpy as np
import pytest
import torch

from logn_d2.core import (
    CALIBRATION_REGISTRY,
    CalibrationInputs,
    ClassCounts,
    LogitStatistics,
    PosteriorMoments,
    StageStatistics,
    StatisticsError,
    build_calibration,
    logn,
    norcal,
    parse_calibration,
    stage_calibrations,
)

NAMES = ("axolotl", "bee", "cat")
COUNTS = ClassCounts(
    NAMES,
    np.array([1000, 100, 5]),
    np.array([5000, 200, 8]),
    20000,
    fractal_dimensions=np.array([1.9, 1.7, 1.0]),
)


def make_stage(seed=0):
    generator = torch.Generator().manual_seed(seed)
    mean = torch.randn(4, generator=generator, dtype=torch.float64) - 5
    return StageStatistics(mean, torch.rand(4, generator=generator) + 0.5, torch.full((4,), 9))


@pytest.mark.parametrize(
    ("text", "name", "options"),
    [
        ("logn", "logn", {}),
        ("  logn  ", "logn", {}),
        ("logn()", "logn", {}),
        ("norcal(gamma=0.6)", "norcal", {"gamma": 0.6}),
        ("norcal( gamma = 0.6 )", "norcal", {"gamma": 0.6}),
        ("logn(beta=mean)", "logn", {"beta": "mean"}),
        ("logn(beta='mean')", "logn", {"beta": "mean"}),
        ("logn(beta=-4, std_power=2)", "logn", {"beta": -4, "std_power": 2}),
        ("logn(use_std=False)", "logn", {"use_std": False}),
        ("class_balanced(gamma=1e-1)", "class_balanced", {"gamma": 0.1}),
        ("groups(rare=logn(beta = mean))", "groups", {"rare": "logn(beta=mean)"}),
    ],
)
def test_names_and_calls_are_read(text, name, options):
    assert parse_calibration(text) == (name, options)


@pytest.mark.parametrize(
    "text",
    [
        "", " ", "norcal(0.6)", "norcal(gamma=)", "norcal(gamma=1/2)", "norcal gamma=0.6", "logn;",
        "core.logn", "logn()()", "logn(**options)", "logn(beta=open('x'))", "[logn]", "0",
        "groups(rare=logn(1))", "groups(rare=open('x').read())",
        "logn\n2", "logn(beta=x.y)", "norcal(gamma=0.6", "logn(beta=1, beta=2)",
        "norcal(gamma={[1]: 2})",
    ],
)  # fmt: skip
def test_other_texts_are_errors_that_show_the_form(text):
    with pytest.raises(ValueError, match=r"Can't read the calibration .* norcal\(gamma=0.6\)"):
        parse_calibration(text)


def test_nothing_is_executed(tmp_path):
    with pytest.raises(ValueError):
        parse_calibration(f"logn(beta=open('{tmp_path}/x', 'w'))")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("text", ["login", "login(beta=1)"])
def test_unknown_name_lists_the_known_ones(text):
    with pytest.raises(KeyError) as error:
        parse_calibration(text)
    message = str(error.value)
    assert "Unknown calibration 'login'" in message
    assert all(name in message for name in CALIBRATION_REGISTRY)


def test_every_known_name_can_be_built(tmp_path):
    weight = torch.ones(4, 2)
    posteriors = PosteriorMoments(4)
    posteriors.update(torch.zeros(1, 4), torch.full((1, 4), 0.25), torch.tensor([3]))
    stage = dataclasses.replace(make_stage(), posteriors=posteriors)
    inputs = CalibrationInputs(3, stage, COUNTS, classifier=lambda: (weight, None))
    path = tmp_path / "lws.pth"
    torch.save({"model": {"cls_score.class_scale": torch.ones(4)}}, path)
    needed = {"norcal": "gamma=0.6", "class_balanced": "gamma=0.9", "temperature": "temperature=2"}
    needed["groups"], needed["lws"] = "rare=logn", f"checkpoint={str(path)!r}"
    for name in CALIBRATION_REGISTRY:
        calibration = build_calibration(f"{name}({needed.get(name, '')})", inputs)
        assert calibration.num_classes == 3 and calibration.name.startswith(name)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("norcal", "gamma"),
        ("norcal(tau=1)", "tau"),
        ("logn_mean(beta=min)", "beta"),
        ("uncalibrated(x=1)", "x"),
        ("logn(background=first)", "background"),
    ],
)
def test_wrong_options_are_named(text, message):
    with pytest.raises(ValueError, match=f"wrong options: .*{message}"):
        build_calibration(text, CalibrationInputs(3, make_stage(), COUNTS))


def test_a_mistake_inside_a_calibration_of_ones_own_is_not_taken_for_wrong_options():
    @CALIBRATION_REGISTRY.register("broken_for_this_test")
    def _broken(inputs, *, gamma=1.0):
        return len(gamma)

    try:
        with pytest.raises(TypeError, match="has no len"):
            build_calibration("broken_for_this_test", CalibrationInputs(3))
        with pytest.raises(ValueError, match="wrong options: .*tau"):
            build_calibration("broken_for_this_test(tau=1)", CalibrationInputs(3))
    finally:
        del CALIBRATION_REGISTRY._entries["broken_for_this_test"]


@pytest.mark.parametrize("option", ["use_mean=no", "use_std=false", "use_mean=0", "use_std=None"])
def test_words_are_no_switches(option):
    with pytest.raises(ValueError, match="expected True or False"):
        build_calibration(f"logn({option})", CalibrationInputs(3, make_stage()))


def test_what_is_missing_is_named():
    for name in ("logn", "logn_mean", "logn_std", "logn_beta", "logn_no_beta"):
        with pytest.raises(ValueError, match="needs logit statistics: give .*--stats PATH"):
            build_calibration(name, CalibrationInputs(3, counts=COUNTS))
    for text in ("norcal(gamma=1)", "class_balanced(gamma=0.9)", "logit_adjustment"):
        with pytest.raises(ValueError, match="needs the class counts of the training set"):
            build_calibration(text, CalibrationInputs(3, stage=make_stage()))
    with pytest.raises(ValueError, match="has 3 classes, this head 4"):
        build_calibration("norcal(gamma=1)", CalibrationInputs(4, counts=COUNTS))


def test_counts_are_only_counted_when_needed():
    def count():
        raise AssertionError("counting LVIS takes a while")

    inputs = CalibrationInputs(3, make_stage(), count)
    assert torch.equal(build_calibration("logn", inputs).shift, logn(make_stage()).shift)


def test_counts_are_counted_once_for_all_stages():
    calls = []

    def count():
        calls.append(1)
        return COUNTS

    calibrations = stage_calibrations("norcal(gamma=1)", num_classes=3, num_stages=3, counts=count)
    expected = norcal(COUNTS.image_count, gamma=1.0).shift
    assert all(torch.equal(calibration.shift, expected) for calibration in calibrations)
    assert (len(calibrations), len(calls)) == (3, 1)


def test_each_stage_has_its_own_statistics():
    stages = tuple(map(make_stage, range(3)))
    statistics = LogitStatistics(stages=stages, class_names=NAMES)
    found = stage_calibrations("logn", num_classes=3, num_stages=3, statistics=statistics)
    for calibration, stage in zip(found, stages, strict=True):
        assert torch.equal(calibration.scale, logn(stage).scale)
        assert torch.equal(calibration.shift, logn(stage).shift)


def test_statistics_of_another_head_are_an_error():
    statistics = LogitStatistics(stages=(make_stage(),), class_names=NAMES)
    with pytest.raises(StatisticsError, match="has 4 classes"):
        stage_calibrations("logn", num_classes=4, statistics=statistics)
    with pytest.raises(StatisticsError, match="3 box predictors"):
        stage_calibrations("logn", num_classes=3, num_stages=3, statistics=statistics)
    # The same number of columns, so that nothing else would notice.
    with pytest.raises(ValueError, match="background column 'last', this head 'first'"):
        stage_calibrations("logn", num_classes=3, statistics=statistics, background="first")


def test_background_reaches_the_calibration():
    for background in ("last", "first", "none"):
        inputs = CalibrationInputs(3, counts=COUNTS, background=background)
        for text in ("uncalibrated", "norcal(gamma=1)", "temperature(temperature=2)"):
            assert build_calibration(text, inputs).background == background


@pytest.mark.parametrize(
    ("text", "choices"),
    [
        ("groups(rare=logn)", ["logn", None, None]),
        ("groups(frequent=none, rare=logn)", ["logn", None, None]),
        ("groups(common=norcal(gamma=0.4), frequent=logn(beta=mean))",
         [None, "norcal(gamma=0.4)", "logn(beta=mean)"]),
        ("groups(rare='temperature(temperature=2)', frequent=uncalibrated)",
         ["temperature(temperature=2)", None, None]),
        ("groups(rare=logn, common=norcal(gamma=1), rare_max=100, common_max=500)",
         ["logn", "logn", None]),
    ],
)  # fmt: skip
@pytest.mark.parametrize("background", ["last", "first", "none"])
def test_each_group_has_its_own_calibration(text, choices, background):
    """Of the classes in 1000, 100 and 5 images: frequent, common, rare."""
    columns = 3 if background == "none" else 4
    stage = make_stage()
    stage = StageStatistics(stage.mean[:columns], stage.var[:columns], stage.count[:columns])
    inputs = CalibrationInputs(3, stage, COUNTS, background)
    found = build_calibration(text, inputs)
    assert (found.name, found.background) == (text, background)
    for index, choice in enumerate(reversed(choices)):
        expected = build_calibration(choice or "uncalibrated", inputs)
        assert found.scale[index] == expected.scale[index]
        assert found.shift[index] == expected.shift[index]


@pytest.mark.parametrize("text", ["groups()", "groups(seldom=logn)", "groups(rare_max=5)"])
def test_groups_without_a_known_group_are_an_error(text):
    with pytest.raises(ValueError, match="should name calibrations for some of rare, common"):
        build_calibration(text, CalibrationInputs(3, make_stage(), COUNTS))


def test_mistakes_in_a_group_without_classes_are_found():
    with pytest.raises(KeyError, match="Unknown calibration 'login'"):
        build_calibration(
            "groups(rare=login, rare_max=1)", CalibrationInputs(3, make_stage(), COUNTS)
        )


@pytest.mark.parametrize("text", ["norcal(gamma=0.2:1:0.2)", "norcal(gamma=[0.2, 0.4])"])
def test_a_grid_is_not_one_calibration(text):
    with pytest.raises(ValueError, match=r"is a grid of \d calibrations.*norcal\(gamma=0.2\)"):
        parse_calibration(text)


STATISTICS = LogitStatistics((make_stage(0), make_stage(1)), NAMES)


def test_inputs_note_what_a_calibration_is_made_from(monkeypatch):
    entries = {"mine": lambda inputs: logn(inputs.statistics(), beta="none")}
    monkeypatch.setattr(
        CALIBRATION_REGISTRY, "_entries", {**CALIBRATION_REGISTRY._entries, **entries}
    )
    weight = torch.ones(4, 2)
    for text, used in (
        ("uncalibrated", set()),
        ("mine", {"statistics"}),
        ("norcal(gamma=1)", {"counts"}),
        ("tau_norm", {"weights"}),
        ("groups(rare=logn)", {"statistics", "counts"}),
    ):
        inputs = CalibrationInputs(3, make_stage(), COUNTS, classifier=lambda: (weight, None))
        build_calibration(text, inputs)
        assert inputs.used == used


def test_each_stage_knows_its_classes_without_a_training_roi():
    stages = []
    for index in range(2):
        posteriors = PosteriorMoments(4)
        labels = torch.tensor([0, 1, 2, 3])[[0, 1, 2 + index, 3]]
        posteriors.update(torch.zeros(4, 4), torch.full((4, 4), 0.25), labels)
        stages.append(dataclasses.replace(make_stage(), posteriors=posteriors))
    stages[1].mean[2] = -99.0
    statistics = LogitStatistics(tuple(stages), NAMES, complete=True)
    first, second = stage_calibrations(
        "logn",
        num_classes=3,
        num_stages=2,
        statistics=statistics,
    )
    assert torch.equal(first.shift, logn(stages[0]).shift)
    expected = logn(stages[1], unlabelled=torch.tensor([False, False, True]))
    assert torch.equal(second.shift, expected.shift)
    assert not torch.equal(second.shift, logn(stages[1]).shift)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("norcal(gamma=abc)", "gamma is 'abc', expected a number"),
        ("norcal(gamma=True)", "gamma is True, expected a number"),
        ("logit_adjustment(tau=abc)", "tau is 'abc', expected a number"),
        ("temperature(temperature=hot)", "temperature is 'hot', expected a number"),
        ("groups(rare_max=abc, rare=uncalibrated)", "rare_max is 'abc', expected a number"),
    ],
)
def test_an_option_that_is_no_number_is_named(text, message):
    counts = ClassCounts(("a", "b"), np.array([1, 2]), np.array([1, 2]), 3)
    with pytest.raises(ValueError, match=message):
        build_calibration(text, CalibrationInputs(num_classes=2, counts=counts))
