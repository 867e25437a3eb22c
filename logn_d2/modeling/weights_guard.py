"""Guards that check a calibration again when the classifier's weights change.

Statistics belong to one set of weights, and some calibrations (tau_norm) are computed from the
weights. A model may get other weights at any time, from a checkpoint, an optimizer or an
initialization.

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
    CountsSource,
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
    """Checks a calibration, or computes it again, as soon as the classifier has other weights.

    Changes show in the tensors' version counters, which cost nothing to compare. Writing that
    bypasses these (``parameter.data.copy_``) goes unnoticed.

    Attributes:
        text (str): the calibration; see `parse_calibration`.
        statistics (LogitStatistics): those of the calibration, or None.
        counts (ClassCounts): counts of the training set, or a function that returns them, or None.
        stage (int): index of the cascade stage.
        background (str): position of the background column.
        strict (bool): whether the statistics must belong to exactly these weights.
        from_weights (bool): whether the calibration is computed from the weights.
    """

    text: str
    statistics: LogitStatistics | None = None
    counts: CountsSource = None
    stage: int = 0
    background: Background = "last"
    strict: bool = True
    from_weights: bool = False
    _seen: tuple = field(default=(), repr=False)

    def __call__(self, predictor: nn.Module | ClassLayers, calibration: AffineCalibration) -> None:
        """Call it before each use of the calibration.

        Args:
            predictor (nn.Module): the module with the classifier, or a site's layers.
            calibration (AffineCalibration): changed in place if it is computed from the weights.

        Raises:
            StatisticsError: the statistics belong to other weights.
        """
        state = _state(predictor)
        # The usual case, in each batch.
        if state == self._seen:
            return
        if self.statistics is not None and self.strict:
            self.statistics.check(
                num_classes=calibration.num_classes,
                # This guard knows one stage only, so the number of stages is not compared again.
                num_stages=len(self.statistics.stages),
                fingerprints=[*[None] * self.stage, predictor_fingerprint(predictor)],
            )
        if self.from_weights:
            made = self._made(predictor, calibration.num_classes)
            # In place: the calibration is a submodule that others may hold a reference to.
            calibration.column_scale.copy_(made.column_scale)
            calibration.column_shift.copy_(made.column_shift)
        # Last, so that a failed check is repeated at the next use.
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
    counts: CountsSource = None,
    background: Background = "last",
    class_names: Sequence[str] | None = None,
    fingerprints: Sequence[Tensor | None] = (),
    strict: bool = True,
) -> tuple[list[AffineCalibration], list[WeightsGuard]]:
    """One calibration for each predictor, and the guard of its weights.

    Args:
        predictors (Sequence[nn.Module]): S of them, or a site's layers; their weights may be
            loaded later.
        text, num_classes, statistics, counts, background, class_names, fingerprints: see
            `stage_calibrations`.
        strict (bool): whether the statistics must belong to exactly the weights in use.

    Raises:
        ValueError: an input of the calibration is missing or does not fit the model.
    """
    # Whether a calibration uses weights is seen by whether it asks for them, so that registered
    # calibrations of others need no flag.
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
            # Counts are kept only for making the calibration again.
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
    """A reader of weights that may be loaded later; it notes that a calibration depends on them."""
    read = classifier_reader(predictor)

    def note_and_read() -> tuple[Tensor, Tensor | None]:
        asked.add(stage)
        return read()

    return note_and_read


def _state(predictor: nn.Module | ClassLayers) -> tuple:
    """A value that differs whenever a tensor of the classifier was replaced or written to."""
    if isinstance(predictor, ClassLayers):
        tensors = predictor.tensors()
    else:
        layer = classifier_layer(predictor)
        tensors = [] if layer is None else [*layer.parameters(), *layer.buffers()]
    # The id finds replaced tensors, the address `.to()` and `.data =`, the counter writing in
    # place.
    return tuple((id(each), each.data_ptr(), _version(each)) for each in tensors)


def _version(tensor: Tensor) -> int:
    # Tensors made in inference mode have no counter, and can't be written to outside of it.
    return -1 if tensor.is_inference() else tensor._version
