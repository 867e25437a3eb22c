"""The sentences say what the numbers say, in both directions."""

from __future__ import annotations

import math

import pytest

from logn_d2.report import Comparison, headline, summarise
from logn_d2.report.comparison import Value
from logn_d2.report.summary import display_name, format_change, format_interval

from .small_runs import figures_comparison


def _comparison(spread: float = 1.0, **runs: tuple[float, float]) -> Comparison:
    """Runs of (AP, APr)."""
    figures = {
        name: {"AP": ap, "APr": rare, "APc": 10.0, "APf": math.nan}
        for name, (ap, rare) in runs.items()
    }
    return figures_comparison(figures, spread=spread)


def test_headline_has_both_differences_with_intervals() -> None:
    said = headline(_comparison(uncalibrated=(20.0, 10.0), logn=(19.0, 14.1)))
    assert said.startswith("LogN against Uncalibrated, boxes: APr +4.1 [3.")
    assert ", AP −1.0 [−1." in said and said.endswith("].")


def test_headline_leaves_out_what_can_not_be_measured() -> None:
    said = headline(_comparison(uncalibrated=(20.0, math.nan), logn=(19.0, math.nan)))
    assert "APr" not in said and "AP −1.0" in said
    nothing = (math.nan, math.nan)
    assert "nothing to measure" in headline(_comparison(uncalibrated=nothing, logn=nothing))


@pytest.mark.parametrize(
    ("logn", "said"),
    [
        ((22.0, 12.0), "LogN raises AP and APr. These images leave open how APc changes."),
        ((18.0, 12.0), "LogN raises APr and lowers AP."),
        ((18.0, 10.5), "LogN lowers AP. These images leave open how APr and APc changes."),
        ((20.5, 9.5), "changes nothing that the choice of images could not explain."),
    ],
)
def test_verdict_is_what_the_intervals_allow(logn: tuple[float, float], said: str) -> None:
    text = " ".join(summarise(_comparison(uncalibrated=(20.0, 10.0), logn=logn)))
    assert said in text


def test_without_intervals_nothing_is_sure() -> None:
    comparison = _comparison(0.0, uncalibrated=(20.0, 10.0), logn=(30.0, 30.0))
    text = " ".join(summarise(comparison))
    assert "APr +20.0, AP +10.0." in text and "raises" not in text


def test_parts_are_ranked_by_what_they_give() -> None:
    comparison = _comparison(
        uncalibrated=(20.0, 10.0),
        logn=(19.0, 10.0),
        logn_mean=(20.5, 10.0),
        logn_std=(21.0, 10.0),
        logn_beta=(18.0, 10.0),
    )
    text = " ".join(summarise(comparison))
    assert "largest contribution is dividing by the standard deviation (+1.0 AP)" in text
    assert text.index("subtracting the mean (+0.5 AP)") < text.index("beta (−2.0 AP)")


def test_parts_that_all_lose_are_not_called_a_contribution() -> None:
    comparison = _comparison(
        uncalibrated=(20.0, 10.0), logn=(19.0, 10.0), logn_mean=(20.0, 9.0), logn_beta=(18.0, 9.0)
    )
    text = " ".join(summarise(comparison))
    assert "None of its parts raises AP alone" in text and "largest contribution" not in text


def test_whatever_does_better_is_named_the_baseline_too() -> None:
    runs = {"uncalibrated": (20.0, 10.0), "logn": (19.0, 11.0), "norcal(gamma=0.6)": (21.0, 12.0)}
    text = " ".join(summarise(_comparison(**runs)))
    assert "More AP than LogN (19.0): NorCal, gamma 0.6 (21.0) and Uncalibrated (20.0)." in text
    assert "More APr than LogN (11.0): NorCal, gamma 0.6 (12.0)." in text


def test_what_is_as_high_in_the_digits_shown_does_not_count_as_better() -> None:
    text = " ".join(summarise(_comparison(uncalibrated=(19.04, 10.0), logn=(19.0, 11.0))))
    assert "More AP than LogN (19.0): nothing compared here." in text


def test_masks_have_a_sentence_of_their_own() -> None:
    figures = {"uncalibrated": {"AP": 1.0, "APr": 2.0}, "logn": {"AP": 2.0, "APr": 1.0}}
    text = " ".join(summarise(figures_comparison(figures, tasks=("bbox", "segm"))))
    assert "For masks: AP +1.0 [" in text


def test_changes_have_a_sign_and_a_real_minus() -> None:
    changes = [format_change(delta) for delta in (1.04, -1.0, 0.04, -0.04, math.nan)]
    assert changes == ["+1.0", "−1.0", "±0.0", "±0.0", "–"]


def test_an_interval_has_no_negative_zero() -> None:
    assert format_interval(Value(0.0, -0.04, 0.04)) == "[0.0, 0.0]"
    assert format_interval(Value(1.0)) == ""


def test_unknown_calibrations_keep_their_name() -> None:
    assert display_name("my_rule(power=2, base=e)") == "my_rule, power 2, base e"
