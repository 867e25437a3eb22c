"""Calibrations by name, for configs and command lines.

Shapes: K foreground classes, S cascade stages.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import UserError
from ..frequency import ClassCounts, CountsSource, known_counts
from .affine import AffineCalibration, Background
from .calibration_grids import expand_grid
from .registry import Registry
from .specs import parse_call
from .stage import StageStatistics
from .statistics import LogitStatistics

Classifier = Callable[[], tuple[Tensor, Tensor | None]]
"""Returns weight (C, D) and bias (C,) or None."""


@dataclass(eq=False)
class CalibrationInputs:
    """The inputs of a calibration; each registry entry uses those that it needs.

    Attributes:
        num_classes (int): K.
        stage (StageStatistics): statistics of this classifier, or None.
        counts (ClassCounts): class counts of the training set, a function that returns them (called
            only if needed, because counting LVIS takes a while), or None.
        background (str): position of the background column.
        classifier (Callable): returns this classifier's weight (C, D) and bias (C,) or None; called
            only if needed, because weights may be loaded later. Or None.
        stage_index (int): index of the cascade stage.
        unlabelled (Tensor): `LogitStatistics.unlabelled` of this stage, or None.
        used (set[str]): the inputs that a calibration has used: "statistics", "counts", "weights".

    Example:
        >>> inputs = CalibrationInputs(num_classes=2)
        >>> CALIBRATION_REGISTRY.get("uncalibrated")(inputs).shift.tolist()
        [0.0, 0.0]
    """

    num_classes: int
    stage: StageStatistics | None = None
    counts: CountsSource = None
    background: Background = "last"
    classifier: Classifier | None = None
    stage_index: int = 0
    unlabelled: Tensor | None = None
    used: set[str] = field(default_factory=set, init=False)

    def parameters(self) -> tuple[Tensor, Tensor | None]:
        """Weight and bias of the classifier.

        Raises:
            ValueError: the parameters are unknown.
        """
        self.used.add("weights")
        if self.classifier is None:
            raise UserError(
                "This calibration needs the weights of the classifier: attach it to a model whose "
                "weights are loaded, or give classifiers= to stage_calibrations."
            )
        return self.classifier()

    def groups(self) -> np.ndarray | None:
        """(K,) letters of the data set's own groups, or None."""
        # Unlike `class_counts`, no error: a data set without groups of its own is ordinary.
        counts = known_counts(self.counts)
        return None if counts is None else counts.groups

    def image_count(self) -> Tensor:
        """(K,) training images.

        Raises:
            ValueError: the class counts are unknown.
        """
        return torch.as_tensor(self.class_counts().image_count)

    def class_counts(self) -> ClassCounts:
        """The class counts.

        Raises:
            ValueError: the class counts are unknown.
        """
        self.used.add("counts")
        counts = known_counts(self.counts)
        if counts is None:
            raise UserError(
                "This calibration needs the class counts of the training set: give counts=, or "
                "register the training set so that class_counts(DATASET) can count it."
            )
        if len(counts.image_count) != self.num_classes:
            raise UserError(
                f"The training set has {len(counts.image_count)} classes, this head "
                f"{self.num_classes}. Count the data set that the model was trained on."
            )
        return counts

    def statistics(self) -> StageStatistics:
        """The statistics.

        Raises:
            ValueError: no statistics are given.
        """
        self.used.add("statistics")
        if self.stage is None:
            raise UserError(
                "This calibration needs logit statistics: give the file of `logn collect` with "
                "--stats PATH or MODEL.LOGN.STATISTICS."
            )
        return self.stage


CALIBRATION_REGISTRY: Registry = Registry("calibration")
"""Name -> ``function(inputs: CalibrationInputs, **options) -> AffineCalibration``."""


def parse_calibration(text: str) -> tuple[str, dict[str, Any]]:
    """Parse the text of a calibration: a name, or a call with keywords.

    Args:
        text (str): for example "logn", "norcal(gamma=0.6)", "logn(beta=mean, std_power=2)" or
            "groups(rare=logn, common=norcal(gamma=0.4), frequent=none)".

    Returns:
        tuple[str, dict]: the name in `CALIBRATION_REGISTRY`, and the options.

    Raises:
        KeyError: unknown name; the message lists the known ones.
        ValueError: the text has a wrong form, or is a grid.

    Example:
        >>> parse_calibration("logn(beta=mean, std_power=2)")
        ('logn', {'beta': 'mean', 'std_power': 2})
    """
    grid = expand_grid(text)
    if len(grid) > 1:
        raise UserError(
            f"{text!r} is a grid of {len(grid)} calibrations, but one is needed here, for example "
            f"{grid[0]}. A sweep (`logn sweep`) compares all of a grid."
        )
    # A grid of one, such as [0.6], is that calibration.
    name, options = parse_call(grid[0], "calibration", "norcal(gamma=0.6)")
    # Only for its error: an unknown name should stop a command before it loads a model.
    CALIBRATION_REGISTRY.get(name)
    return name, options


def build_calibration(text: str, inputs: CalibrationInputs) -> AffineCalibration:
    """Build a calibration from its text.

    Args:
        text (str): see `parse_calibration`.
        inputs (CalibrationInputs): statistics and counts.

    Returns:
        AffineCalibration: named ``text``.

    Raises:
        KeyError: unknown name; the message lists the known ones.
        ValueError: unknown options, or a missing input of the calibration.

    Example:
        >>> build_calibration("temperature(temperature=2)", CalibrationInputs(num_classes=3))
        AffineCalibration(name='temperature(temperature=2)', num_classes=3, background='last')
    """
    name, options = parse_calibration(text)
    try:
        calibration = CALIBRATION_REGISTRY.get(name)(inputs, **options)
    except TypeError as error:
        # A TypeError out of the body of a registered function is a bug, and keeps its traceback.
        if not _is_of_the_call(error):
            raise
        raise UserError(f"The calibration {text!r} has wrong options: {error}.") from None
    # The complete text, not the registry's name: two options of one method must differ in tables
    # and file names.
    calibration.name = text
    return calibration


def _is_of_the_call(error: TypeError) -> bool:
    """Whether options did not fit a function's parameters, and not a mistake in its body."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    # A call with wrong keywords fails in the caller's frame, and all callers are in these modules.
    callers = (__name__, f"{__package__}.calibration_entries")
    return trace is not None and trace.tb_frame.f_globals.get("__name__") in callers


def stage_inputs(
    *,
    num_classes: int,
    num_stages: int = 1,
    statistics: LogitStatistics | None = None,
    counts: CountsSource = None,
    background: Background = "last",
    classifiers: Sequence[Classifier] | None = None,
    class_names: Sequence[str] | None = None,
    fingerprints: Sequence[Tensor | None] = (),
) -> list[CalibrationInputs]:
    """The inputs of each stage's calibration; arguments and errors as of `stage_calibrations`."""
    # Also if the calibration does not use them: the wrong file is a mistake in any case.
    if statistics is not None:
        statistics.check(
            num_classes=num_classes,
            num_stages=num_stages,
            class_names=class_names,
            fingerprints=fingerprints,
        )
        if statistics.background != background:
            raise UserError(
                f"The statistics have the background column '{statistics.background}', this head "
                f"'{background}'. Collect them again with this head, or give its background=."
            )
    if callable(counts):
        counts = functools.cache(counts)  # once, not once per stage
    return [
        CalibrationInputs(
            num_classes,
            None if statistics is None else statistics.stages[index],
            counts,
            background,
            classifier,
            index,
            None if statistics is None else statistics.unlabelled(index),
        )
        for index, classifier in enumerate(classifiers or [None] * num_stages)
    ]


def stage_calibrations(text: str, **options: Any) -> list[AffineCalibration]:
    """One calibration for each cascade stage (one for other heads), each from its own statistics.

    Args:
        text (str): see `parse_calibration`.
        num_classes (int): K.
        num_stages (int): S.
        statistics (LogitStatistics): S stages; None for calibrations that need none.
        counts (ClassCounts): counts of the training set, or a function that returns them, or None.
        background (str): position of the background column.
        classifiers (Sequence[Callable]): S functions that return a classifier's weight and bias,
            for calibrations that need them.
        class_names, fingerprints: of the model, which the statistics are compared with; see
            `LogitStatistics.check`.

    Returns:
        list[AffineCalibration]: S calibrations.

    Raises:
        KeyError: unknown name.
        ValueError: an input of the calibration is missing or does not fit the model.

    Example:
        >>> calibrations = stage_calibrations("uncalibrated", num_classes=3, num_stages=2)
        >>> [calibration.name for calibration in calibrations]
        ['uncalibrated', 'uncalibrated']
    """
    return [build_calibration(text, inputs) for inputs in stage_inputs(**options)]
