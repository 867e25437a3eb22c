"""What belongs to a classifier's weights, and is looked at again when these change.

Statistics are of one set of weights, and some calibrations (tau_norm) are made from them. A model
may be given other weights at any time: by a checkpoint, an optimizer, or an initialization.

Shapes: C logit columns, D feature channels.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field

from torch import Tensor, nn

from ..core import (
    AffineCalibration,
    CalibrationInputs,
    ClassCounts,
    LogitStatistics,
    build_calibration,
)
from ..core.affine import Background
from ..sites import ClassLayers
from .box_predictors import classifier_layer, classifier_reader, predictor_fingerprint

__all__ = ["WeightsGuard", "noting_reader"]


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


def noting_reader(asked: set[int], stage: int, predictor: nn.Module) -> Callable:
    """Reads weights that are not loaded yet, and notes that this stage's calibration needs them."""
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
