"""What belongs to a classifier's weights, and is looked at again when these change.

Statistics are of one set of weights, and some calibrations (tau_norm) are made from them. A model
may be given other weights at any time: by a checkpoint, an optimizer, or an initialization.

Shapes: C logit columns, D feature channels.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from torch import Tensor, nn

from ..core import (
    AffineCalibration,
    CalibrationInputs,
    ClassCounts,
    LogitStatistics,
    build_calibration,
    stage_calibrations,
)
from ..core.affine import Background
from ..sites import ClassLayers
from .box_predictors import classifier_layer, classifier_reader, predictor_fingerprint

__all__ = ["WeightsGuard", "guarded_calibrations"]


@dataclass(eq=False)
class WeightsGuard:
    """Checks a calibration, or makes it anew, as soon as the classifier has other weights.

    Changes are seen in the tensors' version counters, which costs nothing between changes. What
    bypasses these (``parameter.data.copy_``) is not seen.

    Attributes:
        text (str): the calibration; see `parse_calibration`.
        statistics (LogitStatistics): that it is made from, or None.
        counts (ClassCounts): of the training set, or a function that returns them, or None.
        stage (int): which cascade stage this is.
        background (str): where the background column is.
        strict (bool): whether the statistics must be of these very weights.
        from_weights (bool): whether the calibration is made from the weights.
    """

    text: str
    statistics: LogitStatistics | None = None
    counts: ClassCounts | Callable[[], ClassCounts] | None = None
    stage: int = 0
    background: Background = "last"
    strict: bool = True
    from_weights: bool = False
    _seen: tuple = field(default=(), repr=False)

    def __call__(self, predictor: nn.Module | ClassLayers, calibration: AffineCalibration) -> None:
        """Call it before each use of the calibration.

        Args:
            predictor (nn.Module): with the classifier; or a site's layers.
            calibration (AffineCalibration): changed in place where it is made from the weights.

        Raises:
            StatisticsError: the statistics are of other weights.
        """
        state = _state(predictor)
        if state == self._seen:
            return
        if self.statistics is not None and self.strict:
            self.statistics.check(
                num_classes=calibration.num_classes,
                num_stages=len(self.statistics.stages),
                fingerprints=[*[None] * self.stage, predictor_fingerprint(predictor)],
            )
        if self.from_weights:
            made = self._made(predictor, calibration.num_classes)
            calibration.column_scale.copy_(made.column_scale)
            calibration.column_shift.copy_(made.column_shift)
        self._seen = state

    def _made(self, predictor: nn.Module, num_classes: int) -> AffineCalibration:
        known = self.statistics is not None
        inputs = CalibrationInputs(
            num_classes,
            self.statistics.stages[self.stage] if known else None,
            self.counts,
            self.background,
            classifier_reader(predictor),
            self.stage,
            functools.partial(self.statistics.unlabelled, self.stage) if known else None,
        )
        return build_calibration(self.text, inputs)


def guarded_calibrations(
    predictors: Sequence[nn.Module | ClassLayers],
    text: str,
    *,
    num_classes: int,
    statistics: LogitStatistics | None = None,
    counts: ClassCounts | Callable[[], ClassCounts] | None = None,
    background: Background = "last",
    class_names: Sequence[str] | None = None,
    fingerprints: Sequence[Tensor | None] = (),
    strict: bool = True,
) -> tuple[list[AffineCalibration], list[WeightsGuard]]:
    """One calibration for each predictor, and what keeps watch over its weights.

    Args:
        predictors (Sequence[nn.Module]): S of them, or a site's layers; their weights may be
            loaded later.
        text, num_classes, statistics, counts, background, class_names, fingerprints: see
            `stage_calibrations`.
        strict (bool): whether the statistics must be of the very weights that are used.

    Raises:
        ValueError: something that the calibration needs is missing or does not fit.
    """
    asked: set[int] = set()
    calibrations = stage_calibrations(
        text,
        num_classes=num_classes,
        num_stages=len(predictors),
        statistics=statistics,
        counts=counts,
        background=background,
        classifiers=[_noting_reader(asked, *each) for each in enumerate(predictors)],
        class_names=class_names,
        fingerprints=fingerprints,
    )
    guards = [
        WeightsGuard(
            text,
            statistics,
            counts if index in asked else None,
            index,
            background,
            strict,
            from_weights=index in asked,
        )
        for index in range(len(predictors))
    ]
    return calibrations, guards


def _noting_reader(asked: set[int], stage: int, predictor: nn.Module | ClassLayers) -> Callable:
    """Reads weights that may not be loaded yet, and notes that a calibration is made from them."""
    read = classifier_reader(predictor)

    def note_and_read() -> tuple[Tensor, Tensor | None]:
        asked.add(stage)
        return read()

    return note_and_read


def _state(predictor: nn.Module | ClassLayers) -> tuple:
    """Differs whenever a tensor of the classifier was replaced or written to."""
    if isinstance(predictor, ClassLayers):
        tensors = predictor.tensors()
    else:
        layer = classifier_layer(predictor)
        tensors = [] if layer is None else [*layer.parameters(), *layer.buffers()]
    return tuple((id(each), each.data_ptr(), _version(each)) for each in tensors)


def _version(tensor: Tensor) -> int:
    # Tensors made in inference mode have no counter, and can't be written to outside of it.
    return -1 if tensor.is_inference() else tensor._version
