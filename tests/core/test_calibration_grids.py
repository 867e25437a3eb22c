"""One text for many calibrations: lists, ranges, and products of them."""

import itertools

import pytest

from logn_d2.core import expand_grid, parse_calibration
from logn_d2.core.calibration_grids import MAX_GRID


@pytest.mark.parametrize(
    "text",
    [
        "logn",
        " logn ",
        "norcal(gamma=0.6)",
        "logn(beta=mean)",
        "norcal(gamma=",
        "[1, 2]",
        "",
        "lws(checkpoint='a/1:10:-2/m.pth')",
        'lws(checkpoint="b\'1:2:1")',
    ],
)
def test_a_text_without_list_or_range_is_as_it_was(text):
    assert expand_grid(text) == (text,)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ("0.2:1.0:0.2", [0.2, 0.4, 0.6, 0.8, 1.0]),
        ("0:1:0.3", [0, 0.3, 0.6, 0.9]),
        ("1 : 0.5 : -.25", [1, 0.75, 0.5]),
        ("-1:-1:5", [-1]),
        ("1e-1:3e-1:1e-1", [0.1, 0.2, 0.3]),
        ("[0.2, 0.4]", [0.2, 0.4]),
        ("[0.4, 0.2, 0.4]", [0.4, 0.2]),
        ("[7]", [7]),
    ],
)
def test_lists_and_ranges_give_their_values_exactly(values, expected):
    texts = expand_grid(f"norcal(gamma={values})")
    assert [parse_calibration(text) for text in texts] == [
        ("norcal", {"gamma": value}) for value in expected
    ]


def test_a_list_of_one_value_is_one_calibration():
    assert parse_calibration("norcal(gamma=[0.5])") == ("norcal", {"gamma": 0.5})


def test_a_range_beside_quoted_text_is_a_grid():
    found = expand_grid("lws(checkpoint='1:2:1', tau=1:2:1)")
    assert found == ("lws(checkpoint='1:2:1', tau=1)", "lws(checkpoint='1:2:1', tau=2)")


def test_several_lists_are_multiplied_and_the_first_varies_slowest():
    found = expand_grid("logn(beta=[min, mean], use_std=False, std_power=1:3:1)")
    assert [parse_calibration(text)[1] for text in found] == [
        {"beta": beta, "use_std": False, "std_power": power}
        for beta, power in itertools.product(["min", "mean"], [1, 2, 3])
    ]


def test_grids_reach_into_groups():
    found = expand_grid("groups(rare=[logn, norcal(gamma=0.5:1:0.5)], common=none)")
    assert found == (
        "groups(rare=logn, common=none)",
        "groups(rare=norcal(gamma=0.5), common=none)",
        "groups(rare=norcal(gamma=1.0), common=none)",
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("norcal(gamma=[])", "empty list of values for gamma"),
        ("norcal(gamma=1:0:0.1)", "1:0:0.1 is empty or endless"),
        ("norcal(gamma=0:1:0)", "0:1:0 is empty or endless"),
        ("norcal(gamma=0:1:1e-9)", "1000000001 values"),
        (f"logn(beta=1:100:1, std_power=1:{MAX_GRID // 50}:1)", f"more than {MAX_GRID}"),
    ],
)
def test_grids_that_make_no_sense_are_errors(text, message):
    with pytest.raises(ValueError, match=message):
        expand_grid(text)
