"""Calibrations by name, as a config or a command line gives them.

Shapes: K foreground classes, S cascade stages.
"""

from __future__ import annotations

import ast
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .affine import AffineCalibration, Background
from .calibrations import class_balanced, logit_adjustment, logn, norcal, temperature
from .frequency import ClassCounts
from .registry import Registry
from .stage import StageStatistics
from .statistics import LogitStatistics

__all__ = [
    "CALIBRATION_REGISTRY",
    "CalibrationInputs",
    "build_calibration",
    "parse_calibration",
    "stage_calibrations",
]


@dataclass(frozen=True)
class CalibrationInputs:
    """What a calibration may be made from; each entry takes what it needs.

    Attributes:
        num_classes (int): K.
        stage (StageStatistics): statistics of this classifier, or None.
        counts (ClassCounts): class counts of the training set, a function that returns them (called
            only when they are needed: counting LVIS takes a while), or None.
        background (str): where the background column is.

    Example:
        >>> inputs = CalibrationInputs(num_classes=2)
        >>> CALIBRATION_REGISTRY.get("uncalibrated")(inputs).shift.tolist()
        [0.0, 0.0]
    """

    num_classes: int
    stage: StageStatistics | None = None
    counts: ClassCounts | Callable[[], ClassCounts] | None = None
    background: Background = "last"

    def image_count(self) -> Tensor:
        """(K,) training images.

        Raises:
            ValueError: the class counts are not known.
        """
        if self.counts is None:
            raise ValueError(
                "This calibration needs the class counts of the training set: give counts=, or "
                "register the training set so that class_counts(DATASET) can count it."
            )
        counts = self.counts() if callable(self.counts) else self.counts
        if len(counts.image_count) != self.num_classes:
            raise ValueError(
                f"The training set has {len(counts.image_count)} classes, this head "
                f"{self.num_classes}. Count the data set that the model was trained on."
            )
        return torch.as_tensor(counts.image_count)

    def statistics(self) -> StageStatistics:
        """The statistics.

        Raises:
            ValueError: there are none.
        """
        if self.stage is None:
            raise ValueError(
                "This calibration needs logit statistics: give the file of --collect-stats with "
                "--stats PATH or MODEL.LOGN.STATISTICS."
            )
        return self.stage


CALIBRATION_REGISTRY: Registry = Registry("calibration")
"""Name -> ``function(inputs: CalibrationInputs, **options) -> AffineCalibration``."""


@CALIBRATION_REGISTRY.register("uncalibrated")
def _uncalibrated(inputs: CalibrationInputs) -> AffineCalibration:
    return AffineCalibration.identity(inputs.num_classes, inputs.background)


@CALIBRATION_REGISTRY.register("logn")
def _logn(inputs: CalibrationInputs, **options: Any) -> AffineCalibration:
    return logn(inputs.statistics(), background=inputs.background, **options)


@CALIBRATION_REGISTRY.register("logn_mean")
def _logn_mean(inputs: CalibrationInputs) -> AffineCalibration:
    return _logn(inputs, use_std=False, beta="none")


@CALIBRATION_REGISTRY.register("logn_std")
def _logn_std(inputs: CalibrationInputs) -> AffineCalibration:
    return _logn(inputs, use_mean=False, beta="none")


@CALIBRATION_REGISTRY.register("logn_beta")
def _logn_beta(inputs: CalibrationInputs) -> AffineCalibration:
    return _logn(inputs, use_mean=False, use_std=False)


@CALIBRATION_REGISTRY.register("logn_no_beta")
def _logn_no_beta(inputs: CalibrationInputs) -> AffineCalibration:
    return _logn(inputs, beta="none")


@CALIBRATION_REGISTRY.register("norcal")
def _norcal(inputs: CalibrationInputs, **options: Any) -> AffineCalibration:
    return norcal(inputs.image_count(), background=inputs.background, **options)


@CALIBRATION_REGISTRY.register("class_balanced")
def _class_balanced(inputs: CalibrationInputs, **options: Any) -> AffineCalibration:
    return class_balanced(inputs.image_count(), background=inputs.background, **options)


@CALIBRATION_REGISTRY.register("logit_adjustment")
def _logit_adjustment(inputs: CalibrationInputs, **options: Any) -> AffineCalibration:
    return logit_adjustment(inputs.image_count(), background=inputs.background, **options)


@CALIBRATION_REGISTRY.register("temperature")
def _temperature(inputs: CalibrationInputs, **options: Any) -> AffineCalibration:
    return temperature(inputs.num_classes, background=inputs.background, **options)


def parse_calibration(text: str) -> tuple[str, dict[str, Any]]:
    """Reads a calibration as people write it: a name, or a call with keywords.

    Args:
        text (str): for example "logn" or "norcal(gamma=0.6)" or "logn(beta=mean, std_power=2)".

    Returns:
        tuple[str, dict]: the name in `CALIBRATION_REGISTRY`, and the options.

    Raises:
        KeyError: unknown name; the message lists the known ones.
        ValueError: the text has another form.

    Example:
        >>> parse_calibration("logn(beta=mean, std_power=2)")
        ('logn', {'beta': 'mean', 'std_power': 2})
    """
    form = "Write a name or a call with keywords, for example norcal(gamma=0.6)."
    try:
        node = ast.parse(text.strip(), mode="eval").body
        if isinstance(node, ast.Name):
            name, options = node.id, {}
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and not node.args:
            name = node.func.id
            options = _options(node.keywords)
        else:
            raise ValueError
    except (SyntaxError, ValueError):
        raise ValueError(f"Can't read the calibration {text!r}. {form}") from None
    CALIBRATION_REGISTRY.get(name)
    return name, options


def build_calibration(text: str, inputs: CalibrationInputs) -> AffineCalibration:
    """Builds a calibration from its written form.

    Args:
        text (str): see `parse_calibration`.
        inputs (CalibrationInputs): statistics and counts.

    Returns:
        AffineCalibration: named ``text``.

    Raises:
        KeyError: unknown name; the message lists the known ones.
        ValueError: unknown options, or something that the calibration needs is missing.

    Example:
        >>> build_calibration("temperature(temperature=2)", CalibrationInputs(num_classes=3))
        AffineCalibration(name='temperature(temperature=2)', num_classes=3, background='last')
    """
    name, options = parse_calibration(text)
    try:
        calibration = CALIBRATION_REGISTRY.get(name)(inputs, **options)
    except TypeError as error:
        raise ValueError(f"The calibration {text!r} has wrong options: {error}.") from None
    calibration.name = text
    return calibration


def stage_calibrations(
    text: str,
    *,
    num_classes: int,
    num_stages: int = 1,
    statistics: LogitStatistics | None = None,
    counts: ClassCounts | Callable[[], ClassCounts] | None = None,
    background: Background = "last",
) -> list[AffineCalibration]:
    """One calibration for each cascade stage (one for other heads), each from its own statistics.

    Args:
        text (str): see `parse_calibration`.
        num_classes (int): K.
        num_stages (int): S.
        statistics (LogitStatistics): S stages; None for calibrations that need none.
        counts (ClassCounts): of the training set, or a function that returns them, or None.
        background (str): where the background column is.

    Returns:
        list[AffineCalibration]: S calibrations.

    Raises:
        KeyError: unknown name.
        ValueError: something that the calibration needs is missing or does not fit.

    Example:
        >>> calibrations = stage_calibrations("uncalibrated", num_classes=3, num_stages=2)
        >>> [calibration.name for calibration in calibrations]
        ['uncalibrated', 'uncalibrated']
    """
    stages: Sequence[StageStatistics | None] = [None] * num_stages
    if statistics is not None:
        statistics.check(num_classes=num_classes, num_stages=num_stages)
        if statistics.background != background:
            raise ValueError(
                f"The statistics have the background column '{statistics.background}', this head "
                f"'{background}'. Collect them again with this head, or give its background=."
            )
        stages = statistics.stages
    if callable(counts):
        counts = functools.cache(counts)  # count once, not once a stage
    return [
        build_calibration(text, CalibrationInputs(num_classes, stage, counts, background))
        for stage in stages
    ]


def _options(keywords: Sequence[ast.keyword]) -> dict[str, Any]:
    """Keywords with literal values; a bare word is a string, so that beta=mean needs no quotes."""
    options = {}
    for keyword in keywords:
        if keyword.arg is None or keyword.arg in options:
            raise ValueError("**, or a keyword twice")
        value = keyword.value
        literal = value.id if isinstance(value, ast.Name) else ast.literal_eval(value)
        options[keyword.arg] = literal
    return options
