"""What the numbers say, in words: every sentence follows from a `Comparison` alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from .results import BASELINE, TASKS

if TYPE_CHECKING:
    from .comparison import Comparison, Value

__all__ = [
    "display_name",
    "format_change",
    "format_interval",
    "format_value",
    "headline",
    "join_words",
    "summarise",
]

_NAMES = {
    BASELINE: "Uncalibrated",
    "logn": "LogN",
    "logn_mean": "LogN, mean only",
    "logn_std": "LogN, std only",
    "logn_beta": "LogN, beta only",
    "logn_no_beta": "LogN without beta",
    "norcal": "NorCal",
    "logit_adjustment": "Logit adjustment",
    "class_balanced": "Class-balanced",
    "temperature": "Temperature",
}
_PARTS = {
    "logn_mean": "subtracting the mean",
    "logn_std": "dividing by the standard deviation",
    "logn_beta": "the shift by beta",
}
_WHOLE = "logn"


def display_name(calibration: str) -> str:
    """A calibration as people call it.

    Example:
        >>> display_name("norcal(gamma=0.6)")
        'NorCal, gamma 0.6'
    """
    name, _, options = calibration.partition("(")
    title = _NAMES.get(name.strip(), name.strip())
    options = options.rstrip(") ").replace("=", " ")
    return f"{title}, {options}" if options else title


def format_value(value: float, decimals: int = 1) -> str:
    """A number with a real minus, or a dash where there is nothing to measure."""
    return "–" if math.isnan(value) else f"{value:,.{decimals}f}".replace("-", "−")


def format_change(delta: float) -> str:
    """A change with its sign, a real minus, and ±0.0 for none."""
    if math.isnan(delta):
        return "–"
    return "±0.0" if round(delta, 1) == 0 else f"{delta:+.1f}".replace("-", "−")


def format_interval(value: Value) -> str:
    """The ends of an interval in brackets; empty where there is none.

    Example:
        >>> from logn_d2.report.comparison import Value
        >>> format_interval(Value(0.8, -0.24, 1.96))
        '[−0.2, 2.0]'
    """
    if math.isnan(value.low):
        return ""
    # Adding 0 makes 0.0 of -0.0.
    low, high = (format_value(round(end, 1) + 0.0) for end in (value.low, value.high))
    return f"[{low}, {high}]"


def headline(comparison: Comparison) -> str:
    """The result in one sentence, for boxes: "LogN: APr +4.1 [2.9, 5.2], AP +0.8 [...]"."""
    task = comparison.tasks[0]
    figures = comparison.figures[comparison.focus.name, task]
    said = [_said(metric, figures.difference(metric)) for metric in _rare_and_all(comparison)]
    return (
        f"{comparison.focus.name} against {comparison.baseline.name}, {TASKS[task]}: "
        f"{', '.join(part for part in said if part) or 'nothing to measure'}."
    )


def summarise(comparison: Comparison) -> list[str]:
    """Sentences about the run in focus.

    Returns:
        list[str]: plain text, the headline first.
    """
    sentences = [
        headline(comparison),
        *(_verdict(comparison, task) for task in comparison.tasks[:1]),
        *(_other_task(comparison, task) for task in comparison.tasks[1:]),
        _parts(comparison),
        _better(comparison),
        _certainty(comparison),
    ]
    return [sentence for sentence in sentences if sentence]


def _rare_and_all(comparison: Comparison) -> tuple[str, str]:
    """AP of the classes with fewest training images, and AP."""
    return comparison.metrics[1], comparison.metrics[0]


def _said(metric: str, change: Value) -> str:
    if math.isnan(change.value):
        return ""
    return f"{metric} {format_change(change.value)} {format_interval(change)}".rstrip()


def _verdict(comparison: Comparison, task: str) -> str:
    """What goes up and down beyond the choice of images, and what the images can't tell."""
    figures = comparison.figures[comparison.focus.name, task]
    up, down, open_ = [], [], []
    for metric in comparison.metrics:
        change = figures.difference(metric)
        if not math.isnan(change.low):
            where = up if change.low > 0 else down if change.high < 0 else open_
            where.append(metric)
    said = [f"raises {join_words(up)}"] if up else []
    said += [f"lowers {join_words(down)}"] if down else []
    if not up and not down:
        said = ["changes nothing that the choice of images could not explain"]
    text = f"On this data {comparison.focus.name} {' and '.join(said)}."
    if open_ and (up or down):
        text += f" These images leave open how {join_words(open_)} changes."
    return text


def _other_task(comparison: Comparison, task: str) -> str:
    figures = comparison.figures[comparison.focus.name, task]
    said = [_said(metric, figures.difference(metric)) for metric in comparison.metrics]
    said = [part for part in said if part]
    return f"For {TASKS[task]}: {', '.join(said)}." if said else ""


def _parts(comparison: Comparison) -> str:
    """Which of the three parts of LogN moves AP, largest gain first."""
    focus, task = comparison.focus, comparison.tasks[0]
    if focus.calibration != _WHOLE:
        return ""
    gains = [
        (comparison.figures[run.name, task].difference("AP").value, _PARTS[run.calibration])
        for run in comparison.runs[1:]
        if run.calibration in _PARTS and run.folder is focus.folder
    ]
    ranked = sorted((gain for gain in gains if not math.isnan(gain[0])), key=lambda gain: -gain[0])
    if len(ranked) < 2:
        return ""
    listed = [f"{text} ({format_change(delta)} AP)" for delta, text in ranked]
    if ranked[0][0] <= 0:
        return f"None of its parts raises AP alone: {join_words(listed)}."
    first, rest = listed[0], join_words(listed[1:])
    return f"Of its parts alone the largest contribution is {first}, then {rest}."


def _better(comparison: Comparison) -> str:
    """Which other runs have a higher AP, or AP of rare classes, in the digits that are shown."""
    said, task = [], comparison.tasks[0]
    for metric in reversed(_rare_and_all(comparison)):
        reached = {
            run.name: round(comparison.figures[run.name, task].value(metric).value, 1)
            for run in comparison.runs
        }
        own = reached[comparison.focus.name]
        better = sorted((n for n in reached if reached[n] > own), key=lambda n: -reached[n])
        if not math.isnan(own):
            listed = join_words([f"{name} ({reached[name]:.1f})" for name in better])
            than = f"{comparison.focus.name} ({own:.1f})"
            said.append(f"More {metric} than {than}: {listed or 'nothing compared here'}.")
    return " ".join(said)


def _certainty(comparison: Comparison) -> str:
    return (
        f"In brackets: {comparison.level} intervals from {comparison.settings.resamples:,} "
        f"resamples of the {comparison.truth.num_images:,} validation images, the same resamples "
        "for all runs. They do not cover another training, whose figures can differ by more."
    )


def join_words(parts: Sequence[str]) -> str:
    """A list as it is written in a sentence.

    Example:
        >>> join_words(["AP", "APr", "APc"])
        'AP, APr and APc'
    """
    if len(parts) < 2:
        return "".join(parts)
    return f"{', '.join(parts[:-1])} and {parts[-1]}"
