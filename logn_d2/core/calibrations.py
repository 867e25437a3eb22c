"""Every post-hoc calibration, as a function that returns an `AffineCalibration`.

Shapes: K foreground classes, C logit columns (K + 1 with a background column). mu and sigma are the
mean and standard deviation of a class's logit over the training set, N its training images.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .affine import AffineCalibration, Background
from .frequency import ClassCounts
from .registry import Registry
from .statistics import LogitStatistics, StageStatistics

__all__ = [
    "CALIBRATION_REGISTRY",
    "CalibrationInputs",
    "build_calibration",
    "class_balanced",
    "logit_adjustment",
    "logn",
    "norcal",
    "parse_calibration",
    "stage_calibrations",
    "temperature",
]

# The released code's clamp of the variance.
MIN_VARIANCE = 1e-11


def logn(
    stage: StageStatistics,
    *,
    background: Background = "last",
    use_mean: bool = True,
    use_std: bool = True,
    beta: str | float = "min",
    std_power: float = 1.0,
) -> AffineCalibration:
    """Logit normalization (Zhao, Teng, Wang, IJCV 2024): Eq. 2, or Eq. 1 without background.

        z'_c = (z_c - mu_c + beta) / sigma_c,     z'_bg = z_bg

    Classes that the statistics can't speak for (`StageStatistics.usable`) keep their raw logit.

    Args:
        stage (StageStatistics): of this classifier.
        background (str): "last", "first", or "none" for a plain classifier (Eq. 1).
        use_mean (bool): subtract mu (Table 2).
        use_std (bool): divide by sigma (Table 2).
        beta (str or float): "min" (Eq. 2), "max" or "mean" of the foreground means, "background"
            (the background's mean), "none", or a constant (the paper's choices of beta). Without
            background there is none.
        std_power (float): exponent of sigma; 2 in the paper's App. B.4.

    Returns:
        AffineCalibration: K classes, on the CPU.

    Raises:
        ValueError: an unknown rule for beta, or one that needs a background that is not there.

    Example:
        >>> stage = StageStatistics(
        ...     mean=torch.tensor([-2.0, -3.0, 4.0]),
        ...     var=torch.tensor([4.0, 2.25, 9.0]),
        ...     count=torch.tensor([10, 10, 10]),
        ... )
        >>> logn(stage)(torch.tensor([[2.0, 0.5, 1.0]])).tolist()
        [[0.5, 0.3333333134651184, 1.0]]
    """
    foreground, background_index = _foreground_slice(background)
    mean, var = stage.mean.double()[foreground], stage.var.double()[foreground]
    usable = stage.usable[foreground]
    sigma = var.clamp(min=MIN_VARIANCE).sqrt() ** std_power if use_std else torch.ones_like(var)
    offset = _beta(beta, mean[usable], stage.mean, background_index)
    shift = (offset - mean if use_mean else torch.full_like(mean, offset)) / sigma
    scale = torch.where(usable, 1 / sigma, 1.0)
    shift = torch.where(usable, shift, 0.0)
    return AffineCalibration(scale, shift, background=background, name="logn")


def norcal(
    image_count: Sequence[int], *, gamma: float, background: Background = "last"
) -> AffineCalibration:
    """NorCal (Pan et al., NeurIPS 2021): foreground scores divided by N_c^gamma.

        z'_c = z_c - gamma log N_c,     z'_bg = z_bg

    gamma is a hyper-parameter that the authors choose on the training set; there is no default.

    Args:
        image_count (Sequence[int]): (K,) training images of each class; 0 counts as 1.
        gamma (float): 0 changes nothing.
        background (str): "last", "first" or "none".
    """
    count = _positive_counts(image_count)
    return AffineCalibration(
        torch.ones_like(count), -gamma * count.log(), background=background, name="norcal"
    )


def class_balanced(
    image_count: Sequence[int], *, gamma: float, background: Background = "last"
) -> AffineCalibration:
    """NorCal's other rule: scores times the class-balanced weight (1 - gamma) / (1 - gamma^N_c).

    Args:
        image_count (Sequence[int]): (K,) training images of each class; 0 counts as 1.
        gamma (float): in (0, 1), for example 0.999.
        background (str): "last", "first" or "none".

    Raises:
        ValueError: gamma outside (0, 1).
    """
    if not 0 < gamma < 1:
        raise ValueError(f"gamma is {gamma}, expected a value between 0 and 1, for example 0.999.")
    count = _positive_counts(image_count)
    shift = torch.log((1 - gamma) / (1 - gamma**count))
    return AffineCalibration(
        torch.ones_like(count), shift, background=background, name="class_balanced"
    )


def logit_adjustment(
    image_count: Sequence[int], *, tau: float = 1.0, background: Background = "last"
) -> AffineCalibration:
    """Post-hoc logit adjustment (Menon et al., ICLR 2021) with the prior pi_c = N_c / sum N.

        z'_c = z_c - tau log pi_c,     z'_bg = z_bg

    With a background column this is *not* NorCal at gamma = tau: the normalised prior lifts all
    foreground logits by tau log(sum N) more.

    Args:
        image_count (Sequence[int]): (K,) training images of each class; 0 counts as 1.
        tau (float): 0 changes nothing.
        background (str): "last", "first" or "none".
    """
    count = _positive_counts(image_count)
    shift = -tau * (count / count.sum()).log()
    return AffineCalibration(
        torch.ones_like(count), shift, background=background, name="logit_adjustment"
    )


def temperature(
    num_classes: int, *, temperature: float, background: Background = "last"
) -> AffineCalibration:
    """Foreground logits divided by one temperature.

    Args:
        num_classes (int): K.
        temperature (float): above 0; 1 changes nothing.
        background (str): "last", "first" or "none".
    """
    scale = torch.full((num_classes,), 1 / temperature)
    return AffineCalibration(
        scale, torch.zeros_like(scale), background=background, name="temperature"
    )


@dataclass(frozen=True)
class CalibrationInputs:
    """What a calibration may be made from; each entry takes what it needs.

    Attributes:
        num_classes (int): K.
        stage (StageStatistics): statistics of this classifier, or None.
        counts (ClassCounts): class counts of the training set, a function that returns them (called
            only when they are needed: counting LVIS takes a while), or None.
        background (str): where the background column is.
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
        return torch.from_numpy(counts.image_count)

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
    """
    form = "Write a name or a call with keywords, for example norcal(gamma=0.6)."
    try:
        node = ast.parse(text.strip(), mode="eval").body
        if isinstance(node, ast.Name):
            name, options = node.id, {}
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and not node.args:
            name = node.func.id
            options = {keyword.arg: _literal(keyword.value) for keyword in node.keywords}
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
    """
    stages: Sequence[StageStatistics | None] = [None] * num_stages
    if statistics is not None:
        statistics.check(num_classes=num_classes, num_stages=num_stages)
        stages = statistics.stages
    return [
        build_calibration(text, CalibrationInputs(num_classes, stage, counts, background))
        for stage in stages
    ]


def _literal(node: ast.expr) -> Any:
    """A literal; a bare word is a string, so that beta=mean needs no quotes."""
    return node.id if isinstance(node, ast.Name) else ast.literal_eval(node)


def _foreground_slice(background: Background) -> tuple[slice, int | None]:
    slices = {
        "last": (slice(0, -1), -1),
        "first": (slice(1, None), 0),
        "none": (slice(None), None),
    }
    if background not in slices:
        raise ValueError(f"background is {background!r}, expected one of {', '.join(slices)}.")
    return slices[background]


def _beta(rule: str | float, usable: Tensor, mean: Tensor, background: int | None) -> float:
    """beta by its rule; ``usable`` are foreground means, ``mean`` has all columns."""
    if isinstance(rule, (int, float)) and not isinstance(rule, bool):
        return float(rule)
    if rule == "none" or background is None or len(usable) == 0:
        # Eq. 1: without a background to keep pace with, a common shift has no effect.
        return 0.0
    rules = {
        "min": lambda: usable.min(),
        "max": lambda: usable.max(),
        "mean": lambda: usable.mean(),
        "background": lambda: mean[background],
    }
    if rule not in rules:
        known = ", ".join((*rules, "none"))
        raise ValueError(f"beta is {rule!r}, expected one of {known}, or a number.")
    return float(rules[rule]())


def _positive_counts(image_count: Sequence[int]) -> Tensor:
    """Counts as float64; a class without images counts as one, since log 0 has no use here."""
    count = torch.as_tensor(image_count).double()
    if (count < 0).any():
        raise ValueError("A class count is negative; count the training set again.")
    return count.clamp(min=1)
