"""What the numbers say, in words. Every sentence follows from the printed numbers alone."""

from __future__ import annotations

import math
from collections.abc import Sequence

from .analysis import Change, ap_change
from .results import BASELINE, METRICS, TASKS, Results

__all__ = ["display_name", "format_change", "format_value", "summarise"]

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
_WITHOUT_BETA = "logn_no_beta"
_SCOPES = {"AP": "AP over all classes", "APr": "AP of the rare classes (APr)"}


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


def format_value(value: float) -> str:
    """A metric with one decimal, or a dash where there is nothing to measure."""
    return "–" if math.isnan(value) else f"{value:.1f}"


def format_change(delta: float) -> str:
    """A change with its sign, a real minus, and ±0.0 for none."""
    if math.isnan(delta):
        return "–"
    return "±0.0" if round(delta, 1) == 0 else f"{delta:+.1f}".replace("-", "−")


def summarise(results: Results, calibration: str = _WHOLE) -> list[str]:
    """Sentences about one calibration, the most important first.

    Args:
        results (Results): with a row of the calibration.
        calibration (str): what the report is about.

    Returns:
        list[str]: plain text. The first sentence can stand alone.

    Raises:
        KeyError: the results have no such row.
    """
    task = results.tasks[0]
    sentences = [
        _lead(results, calibration, task),
        *(_other_task(results, calibration, other) for other in results.tasks[1:]),
        _parts(results, task) if calibration == _WHOLE else "",
        _without_beta(results, task) if calibration == _WHOLE else "",
        _better(results, calibration, task),
        _certainty(results, calibration, task),
    ]
    return [sentence for sentence in sentences if sentence]


def _lead(results: Results, calibration: str, task: str) -> str:
    changes = {metric: ap_change(results, calibration, task, metric) for metric in ("APr", "AP")}
    said = [_verb_phrase(_SCOPES[metric], change) for metric, change in changes.items()]
    verdict = _verdict(changes["APr"].delta, changes["AP"].delta)
    others = " and ".join(
        f"{metric} {format_change(ap_change(results, calibration, task, metric).delta)}"
        for metric in ("APc", "APf")
    )
    return (
        f"On this data {display_name(calibration)} {verdict}: for {TASKS[task]} it {said[0]} and "
        f"{said[1]}, with {others}."
    )


def _verdict(rare: float, whole: float) -> str:
    """What the signs of both changes amount to; NaN counts as no change."""
    rare, whole = (0.0 if math.isnan(delta) else delta for delta in (rare, whole))
    if rare == whole == 0:
        return "changes nothing that one decimal shows"
    if rare >= 0 and whole >= 0:
        return "helps"
    if rare <= 0 and whole <= 0:
        return "does harm"
    return (
        "helps the rare classes at the others' cost" if rare > 0 else "helps all but rare classes"
    )


def _verb_phrase(scope: str, change: Change) -> str:
    if math.isnan(change.delta):
        return f"leaves open the {scope}, which this data can't measure"
    if change.delta == 0:
        return f"leaves the {scope} at {change.after:.1f}"
    verb = "raises" if change.delta > 0 else "lowers"
    return f"{verb} the {scope} from {change.before:.1f} to {change.after:.1f}"


def _other_task(results: Results, calibration: str, task: str) -> str:
    changes = ((metric, ap_change(results, calibration, task, metric)) for metric in METRICS)
    said = ", ".join(f"{metric} {format_change(change.delta)}" for metric, change in changes)
    return f"For {TASKS[task]} the changes are {said}."


def _parts(results: Results, task: str) -> str:
    """Which of the three parts of LogN moves AP, largest gain first."""
    known = {row.calibration for row in results.rows}
    deltas = {
        text: ap_change(results, part, task, "AP").delta
        for part, text in _PARTS.items()
        if part in known
    }
    deltas = {text: delta for text, delta in deltas.items() if not math.isnan(delta)}
    if len(deltas) < 2:
        return ""
    ranked = sorted(deltas.items(), key=lambda item: -item[1])
    listed = [f"{text} ({format_change(delta)} AP)" for text, delta in ranked]
    if ranked[0][1] <= 0:
        return f"None of its parts raises AP alone: {_join(listed)}."
    return f"Of its parts alone the largest contribution is {listed[0]}, then {_join(listed[1:])}."


def _without_beta(results: Results, task: str) -> str:
    if _WITHOUT_BETA not in {row.calibration for row in results.rows}:
        return ""
    row = results.row(_WITHOUT_BETA)
    ap, rare = (format_value(row.value(task, metric)) for metric in ("AP", "APr"))
    return f"Without beta it reaches {ap} AP and {rare} APr."


def _better(results: Results, calibration: str, task: str) -> str:
    """Which other calibrations have a higher AP or APr."""
    said = []
    for metric in ("AP", "APr"):
        reached = results.row(calibration).value(task, metric)
        rivals = [(row.value(task, metric), row.calibration) for row in results.rows]
        better = sorted(((v, n) for v, n in rivals if v > reached), key=lambda item: -item[0])
        listed = [f"{display_name(name)} ({value:.1f})" for value, name in better]
        said.append(f"More {metric}: {_join(listed) or 'nothing compared here'}.")
    return " ".join(said)


def _certainty(results: Results, calibration: str, task: str) -> str:
    """How far the changes could be chance of the classes; another training is another matter."""
    said = []
    for metric in ("AP", "APr"):
        change = ap_change(results, calibration, task, metric)
        if not math.isnan(change.low):
            bounds = f"{format_change(change.low)} to {format_change(change.high)} for {metric}"
            chance = " (which includes no change)" if change.low <= 0 <= change.high else ""
            said.append(bounds + chance)
    if not said:
        return ""
    return (
        f"Had the classes been drawn otherwise, the change would lie within {_join(said)} "
        "(95 % bootstrap interval); this is one training, another seed can differ by more."
    )


def _join(parts: Sequence[str]) -> str:
    if len(parts) < 2:
        return "".join(parts)
    return f"{', '.join(parts[:-1])} and {parts[-1]}"
