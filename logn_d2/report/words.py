"""Names and number formats of the report; independent of its content."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from .. import UNCALIBRATED
from ..results import TASKS

MEASURES = {**TASKS, "image": "accuracy"}
"""The object of each task: AP of boxes or masks; accuracy for image classifiers."""
SCORES = {
    "msp": "MSP",
    "max_logit": "largest logit",
    "energy": "energy",
    "msp, normalized": "MSP, normalised",
    "odin": "ODIN",
}
"""Display names of OOD scores; a score that is not listed is shown under its own name."""
_NAMES = {
    UNCALIBRATED: "Uncalibrated",
    "logn": "LogN",
    "logn_mean": "LogN, mean only",
    "logn_std": "LogN, std only",
    "logn_beta": "LogN, beta only",
    "logn_no_beta": "LogN without beta",
    "norcal": "NorCal",
    "fracal": "FRACAL",
    "p2p": "P2P",
    "auto": "Auto",
    "logit_adjustment": "Logit adjustment",
    "class_balanced": "Class-balanced",
    "temperature": "Temperature",
    "groups": "Groups",
}


def display_name(calibration: str) -> str:
    """The display name of a calibration.

    Example:
        >>> display_name("norcal(gamma=0.6)")
        'NorCal, gamma 0.6'
        >>> display_name("groups(rare=norcal(gamma=0.4), common=logn)")
        'Groups, rare NorCal (gamma 0.4), common LogN'
    """
    title, options = _parsed(calibration)
    return ", ".join([title, *options])


def _parsed(calibration: str) -> tuple[str, list[str]]:
    """Title and options; text that is not a call is a title without options."""
    # By hand: a page also shows names that `parse_calibration` does not know and would refuse.
    name, bracket, rest = calibration.strip().partition("(")
    if bracket and (not rest.endswith(")") or rest.count("(") != rest.count(")") - 1):
        return calibration, []
    name = name.strip()
    return _NAMES.get(name, name), [_option(each) for each in _split(rest[:-1])]


def _split(options: str) -> Iterator[str]:
    """Split at the commas outside inner brackets."""
    depth = start = 0
    for place, letter in enumerate(f"{options},"):
        depth += (letter == "(") - (letter == ")")
        if letter == "," and depth == 0:
            if part := options[start:place].strip():
                yield part
            start = place + 1


def _option(text: str) -> str:
    name, equals, value = text.partition("=")
    if not equals:
        return text
    title, options = _parsed(value)
    return (
        f"{name.strip()} {title} ({', '.join(options)})" if options else f"{name.strip()} {title}"
    )


def format_value(value: float, decimals: int = 1) -> str:
    """Format a number with a true minus sign; a dash if it is undefined."""
    # Adding 0 turns -0.0 into 0.0.
    return "–" if math.isnan(value) else _minus(f"{round(value, decimals) + 0.0:,.{decimals}f}")


def format_change(delta: float) -> str:
    """Format a change in points with its sign and a true minus; ±0.0 for no change."""
    if math.isnan(delta):
        return "–"
    return "±0.0" if round(delta, 1) == 0 else _minus(f"{delta:+.1f}")


def format_correlation(value: float) -> str:
    """Format a correlation with its sign and two decimals."""
    return "–" if math.isnan(value) else _minus(f"{value:+.2f}")


def format_interval(low: float, high: float) -> str:
    """Format the ends of an interval in brackets; "" if it is undefined.

    Example:
        >>> format_interval(-0.24, 1.96)
        '[−0.2, 2.0]'
    """
    return "" if math.isnan(low) else f"[{format_value(low)}, {format_value(high)}]"


def format_threshold(score: float) -> str:
    """Format a score threshold with four digits, since calibrated scores may all be small.

    Example:
        >>> format_threshold(0.00012345)
        '0.0001234'
    """
    return f"{score:.4g}"


def join_words(parts: Sequence[str]) -> str:
    """Join a list as in a sentence.

    Example:
        >>> join_words(["AP", "APr", "APc"])
        'AP, APr and APc'
    """
    if len(parts) < 2:
        return "".join(parts)
    return f"{', '.join(parts[:-1])} and {parts[-1]}"


def plural(number: int, noun: str) -> str:
    """Format a number with its noun.

    Example:
        >>> plural(1, "image"), plural(1200, "image")
        ('1 image', '1,200 images')
    """
    return f"{number:,} {noun}{'s' * int(number != 1)}"


def _minus(text: str) -> str:
    # The true minus has the width of the plus sign, so that columns of changes stay aligned.
    return text.replace("-", "−")
