"""The sentences agree with the numbers: figures that rise, fall or stay, and the better run."""

from __future__ import annotations

import math
import re

import pytest

from logn_d2.report import Comparison, headline, summarise
from logn_d2.report.compared import Value
from logn_d2.report.words import display_name, format_change, format_interval

from .small_runs import figures_comparison


def _comparison(spread: float = 1.0, **runs: tuple[float, float]) -> Comparison:
    """Runs of (AP, APr)."""
    figures = {
        name: {"AP": ap, "APr": rare, "APc": 10.0, "APf": math.nan}
        for name, (ap, rare) in runs.items()
    }
    return figures_comparison(figures, spread=spread)


def _listed(text: str, verb: str) -> set[str]:
    """The metrics behind a verb."""
    found = re.search(rf"{verb} ((?:AP\w*(?:, | and )?)+)", text)
    return set(re.findall(r"AP\w*", found[1])) if found else set()


def test_headline_has_the_differences_that_can_be_measured() -> None:
    said = headline(_comparison(uncalibrated=(20.0, 10.0), logn=(19.0, 14.1)))
    assert re.search(r"APr \+4\.1 \[3\..*AP −1\.0 \[−1\.", said)
    said = headline(_comparison(uncalibrated=(20.0, math.nan), logn=(19.0, math.nan)))
    assert "APr" not in said and "AP −1.0" in said


@pytest.mark.parametrize(
    ("logn", "up", "down", "same"),
    [
        ((22.0, 12.0), {"AP", "APr"}, set(), {"APc"}),
        ((18.0, 12.0), {"APr"}, {"AP"}, {"APc"}),
        ((18.0, 10.5), set(), {"AP"}, {"APr", "APc"}),
        ((20.5, 9.5), set(), set(), set()),
    ],
)
def test_verdict_follows_from_the_intervals(
    logn: tuple[float, float], up: set[str], down: set[str], same: set[str]
) -> None:
    _, text, *_ = summarise(_comparison(uncalibrated=(20.0, 10.0), logn=logn))
    assert (_listed(text, "raises"), _listed(text, "lowers")) == (up, down)
    assert _listed(text, "changes? in") == same
    assert bool(up or down) != text.startswith("No change is larger")


def test_without_intervals_nothing_is_sure() -> None:
    comparison = _comparison(0.0, uncalibrated=(20.0, 10.0), logn=(30.0, 30.0))
    text = " ".join(summarise(comparison))
    assert "APr +20.0, AP +10.0" in text and "raises" not in text


def test_significance_is_decided_in_the_digits_that_are_shown() -> None:
    signs = [
        Value(*each).sign
        for each in (
            *((0.3, 0.06, 0.6), (0.3, 0.04, 0.6), (-0.02, -0.2, -0.01)),
            *((-0.3, -0.5, -0.1), (0.03, 0.02, 0.1), (1.0, math.nan, math.nan)),
        )
    ]
    assert signs == [1, 0, 0, -1, 0, 0]


def test_parts_have_their_separate_gains() -> None:
    runs = {"logn_mean": (20.5, 10.0), "logn_std": (21.0, 10.0), "logn_beta": (18.0, 10.0)}
    text = " ".join(summarise(_comparison(uncalibrated=(20.0, 10.0), logn=(19.0, 10.0), **runs)))
    assert "mean +0.5, std +1.0, beta −2.0" in text


def test_whatever_is_better_in_the_digits_shown_is_named() -> None:
    runs = {"uncalibrated": (20.0, 10.0), "logn": (19.0, 11.0), "norcal(gamma=0.6)": (21.0, 11.04)}
    text = " ".join(summarise(_comparison(**runs)))
    better = re.search(r"Higher AP than LogN \(19\.0\): ([^:]*)\.", text)
    assert better and better[1].startswith("NorCal, gamma 0.6 (21.0) and Uncalibrated (20.0)")
    assert "No run in this comparison has a higher APr than LogN (11.0)" in text


def test_masks_have_a_sentence_of_their_own() -> None:
    figures = {"uncalibrated": {"AP": 1.0, "APr": 2.0}, "logn": {"AP": 2.0, "APr": 1.0}}
    text = " ".join(summarise(figures_comparison(figures, tasks=("bbox", "segm"))))
    assert "For masks: AP +1.0 [" in text


def test_changes_have_a_sign_and_a_real_minus() -> None:
    changes = [format_change(delta) for delta in (1.04, -1.0, 0.04, -0.04, math.nan)]
    assert changes == ["+1.0", "−1.0", "±0.0", "±0.0", "–"]
    assert format_interval(-0.04, 0.04) == "[0.0, 0.0]" and format_interval(*[math.nan] * 2) == ""


def test_nested_options_and_unknown_calibrations_keep_their_brackets() -> None:
    assert display_name("my_rule(power=2, base=e)") == "my_rule, power 2, base e"
    nested = display_name("groups(rare=norcal(gamma=0.4), common=logn)")
    assert nested == "Groups, rare NorCal (gamma 0.4), common LogN"
    for odd in ("f(", "f)", "(", "", "f(a=(b)", "猫($x$)"):
        assert display_name(odd).count("(") >= odd.count("(") - 1
