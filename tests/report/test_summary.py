"""The sentences say what the numbers say, in both directions."""

from __future__ import annotations

import math

import pytest

from logn_d2.report import ResultRow, Results, summarise
from logn_d2.report.summary import display_name, format_change


def _results(**rows: tuple[float, float]) -> Results:
    """Rows of (AP, APr)."""
    return Results(
        tuple(
            ResultRow(name, {"bbox": {"AP": ap, "APr": rare, "APc": 1.0, "APf": 2.0}})
            for name, (ap, rare) in rows.items()
        )
    )


@pytest.mark.parametrize(
    ("logn", "verdict"),
    [
        ((21.0, 11.0), "LogN helps: for boxes it raises"),
        ((20.0, 11.0), "LogN helps: "),
        ((19.0, 9.0), "LogN does harm: for boxes it lowers"),
        ((19.0, 10.0), "LogN does harm: "),
        ((19.0, 11.0), "LogN helps the rare classes at the others' cost"),
        ((21.0, 9.0), "LogN helps all but rare classes"),
        ((20.0, 10.0), "LogN changes nothing"),
        ((20.04, 9.96), "LogN changes nothing"),
        ((19.0, math.nan), "LogN does harm: for boxes it leaves open the AP of the rare"),
    ],
)
def test_verdict_follows_the_signs(logn: tuple[float, float], verdict: str) -> None:
    results = _results(uncalibrated=(20.0, 10.0), logn=logn)
    assert verdict in summarise(results)[0]


def test_lead_tells_both_numbers_of_both_metrics() -> None:
    lead = summarise(_results(uncalibrated=(19.1, 14.4), logn=(18.2, 13.7)))[0]
    assert "from 14.4 to 13.7" in lead and "from 19.1 to 18.2" in lead
    assert lead.count(". ") == 0


def test_parts_are_ranked_by_what_they_give() -> None:
    results = _results(
        uncalibrated=(20.0, 10.0),
        logn=(19.0, 10.0),
        logn_mean=(20.5, 10.0),
        logn_std=(21.0, 10.0),
        logn_beta=(18.0, 10.0),
    )
    text = " ".join(summarise(results))
    assert "largest contribution is dividing by the standard deviation (+1.0 AP)" in text
    assert text.index("subtracting the mean (+0.5 AP)") < text.index("beta (−2.0 AP)")


def test_parts_that_all_lose_are_not_called_a_contribution() -> None:
    results = _results(
        uncalibrated=(20.0, 10.0), logn=(19.0, 10.0), logn_mean=(20.0, 9.0), logn_beta=(18.0, 9.0)
    )
    text = " ".join(summarise(results))
    assert "None of its parts raises AP alone" in text and "largest contribution" not in text


def test_whatever_does_better_is_named_the_uncalibrated_detector_too() -> None:
    results = _results(
        **{"uncalibrated": (20.0, 10.0), "logn": (19.0, 11.0), "norcal(gamma=0.6)": (21.0, 12.0)}
    )
    text = " ".join(summarise(results))
    assert "More AP: NorCal, gamma 0.6 (21.0) and Uncalibrated (20.0)." in text
    assert "More APr: NorCal, gamma 0.6 (12.0)." in text


def test_intervals_are_told_with_what_they_leave_out(results: Results) -> None:
    assert "another seed can differ" in summarise(results)[-1]


def test_without_the_row_the_known_ones_are_listed() -> None:
    with pytest.raises(KeyError, match="uncalibrated"):
        summarise(_results(uncalibrated=(1.0, 1.0)))


def test_changes_have_a_sign_and_a_real_minus() -> None:
    assert [format_change(delta) for delta in (1.04, -1.0, 0.04, -0.04, math.nan)] == [
        "+1.0",
        "−1.0",
        "±0.0",
        "±0.0",
        "–",
    ]


def test_unknown_calibrations_keep_their_name() -> None:
    assert display_name("my_rule(power=2, base=e)") == "my_rule, power 2, base e"
