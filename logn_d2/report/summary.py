"""Findings of a report as sentences, each derived only from what was compared."""

from __future__ import annotations

import math

from .compared import ComparedRuns, Value
from .image_numbers import ImageComparison
from .words import MEASURES, format_change, format_interval, format_value, join_words, plural

_PARTS = {"logn_mean": "mean", "logn_std": "std", "logn_beta": "beta"}
_WHOLE = "logn"


def headline(comparison: ComparedRuns) -> str:
    """The result in one sentence: "LogN against Uncalibrated, boxes: APr +4.1 [2.9, 5.2], ..."."""
    task = comparison.tasks[0]
    figures = comparison.figures[comparison.focus.name, task]
    said = [_said(metric, figures.difference(metric)) for metric in _rare_and_all(comparison)]
    return (
        f"{comparison.focus.name} against {comparison.baseline.name}, {MEASURES[task]}: "
        f"{', '.join(part for part in said if part) or 'nothing to measure'}."
    )


def summarise(comparison: ComparedRuns) -> list[str]:
    """Sentences about the run in focus.

    Returns:
        list[str]: plain text, the headline first.
    """
    sentences = [
        headline(comparison),
        _verdict(comparison),
        *(_other_task(comparison, task) for task in comparison.tasks[1:]),
        _parts(comparison),
        *_better(comparison),
        *(_unknown(comparison) if isinstance(comparison, ImageComparison) else ()),
        _certainty(comparison),
    ]
    return [sentence for sentence in sentences if sentence]


def _rare_and_all(comparison: ComparedRuns) -> tuple[str, str]:
    """The metric of the classes with the fewest training images, and that of all."""
    return comparison.metrics[1], comparison.metrics[0]


def _said(metric: str, change: Value) -> str:
    if math.isnan(change.value):
        return ""
    interval = format_interval(change.low, change.high)
    return f"{metric} {format_change(change.value)} {interval}".rstrip()


def _name(metric: str) -> str:
    """A metric in a sentence: AP as it is, a group's accuracy by its group."""
    return metric if metric.startswith("AP") else f"accuracy ({metric})"


def _verdict(comparison: ComparedRuns) -> str:
    """Metrics that rise or fall by more than the sampling error, and those that do not."""
    # A sign compares the whole interval with 0 in the digits shown, so the sentence and the table
    # below it can't disagree.
    figures = comparison.figures[comparison.focus.name, comparison.tasks[0]]
    signs = {
        metric: change.sign
        for metric in comparison.metrics
        if not math.isnan((change := figures.difference(metric)).low)
    }
    up, down, same = ([m for m, sign in signs.items() if sign == s] for s in (1, -1, 0))
    if not up and not down:
        return (
            "No change is larger than the sampling error of these validation images."
            if same
            else ""
        )
    said = [f"raises {join_words(up)}"] if up else []
    said += [f"lowers {join_words(down)}"] if down else []
    text = f"On these images {comparison.focus.name} {' and '.join(said)}."
    if same:
        change = "changes" if len(same) > 1 else "change"
        text += f" The {change} in {join_words(same)} {'are' if len(same) > 1 else 'is'} within "
        text += "the sampling error."
    return text


def _other_task(comparison: ComparedRuns, task: str) -> str:
    figures = comparison.figures[comparison.focus.name, task]
    said = [_said(metric, figures.difference(metric)) for metric in comparison.metrics]
    said = [part for part in said if part]
    return f"For {MEASURES[task]}: {', '.join(said)}." if said else ""


def _parts(comparison: ComparedRuns) -> str:
    """Change by each of LogN's parts, applied alone."""
    focus, task, metric = comparison.focus, comparison.tasks[0], comparison.metrics[0]
    gains = {
        _PARTS[run.calibration]: comparison.figures[run.name, task].difference(metric).value
        for run in comparison.runs[1:]
        if run.calibration in _PARTS and run.folder is focus.folder
    }
    known = [f"{n} {format_change(gains[n])}" for n in _PARTS.values() if n in gains]
    # The parts explain LogN itself; beside a variant of it, or alone, they would mislead.
    if focus.calibration != _WHOLE or len(known) < 2:
        return ""
    return f"Applied alone, LogN's parts change {_name(metric)} by: {', '.join(known)}."


def _better(comparison: ComparedRuns) -> list[str]:
    """Other runs that are better for all classes, or for rare ones, in the digits shown."""
    said, task = [], comparison.tasks[0]
    # Rounded as shown: 20.04 is not called higher than 20.01, which the table prints as equal.
    for metric in reversed(_rare_and_all(comparison)):
        reached = {
            run.name: round(comparison.figures[run.name, task].value(metric).value, 1)
            for run in comparison.runs
        }
        own = reached[comparison.focus.name]
        better = sorted((n for n in reached if reached[n] > own), key=lambda n: -reached[n])
        # Of two runs, the verdict has already told which is better.
        if math.isnan(own) or (len(comparison.runs) == 2 and not better):
            continue
        than = f"{comparison.focus.name} ({own:.1f})"
        if better:
            listed = join_words([f"{name} ({reached[name]:.1f})" for name in better])
            said.append(f"Higher {_name(metric)} than {than}: {listed}.")
        else:
            said.append(f"No run in this comparison has a higher {_name(metric)} than {than}.")
    return said


def _unknown(comparison: ImageComparison) -> list[str]:
    """How well MSP of the run in focus tells unknown images apart."""
    said, focus = [], comparison.focus.name
    for each in comparison.unknown:
        of_focus = each.figures[focus, "msp"]
        change = _said("", of_focus.difference("auroc")).strip()
        said.append(
            f"Against the images of {each.dataset}, MSP under {focus} has an AUROC of "
            f"{format_value(of_focus.value('auroc').value)} %, {change} relative to "
            f"{comparison.baseline.name}."
        )
    return said


def _certainty(comparison: ComparedRuns) -> str:
    return (
        f"In brackets: {comparison.level} intervals from {comparison.settings.resamples:,} "
        f"bootstrap resamples of the {plural(comparison.num_images, 'validation image')}; "
        "all runs share the resamples. They cover only the choice of images: another training can "
        "change the figures by more."
    )
