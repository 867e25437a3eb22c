"""Guards that check a calibration again when the classifier's weights change.

Statistics belong to one set of weights, and some calibrations (tau_norm) are computed from the
weights. A model may get other weights at any time, from a checkpoint, an optimizer or an
initialization.

Shapes: C logit columns, D feature channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor, nn

from ..core import (
    AffineCalibration,
    CalibrationInputs,
    CountsSource,
    LogitStatistics,
    build_calibration,
)
from ..core.calibration_registry import stage_inputs
from ..sites import ClassLayers
from .box_predictors import classifier_layer, classifier_reader, predictor_fingerprint


@dataclass(eq=False)
class WeightsGuard:
    """Checks a calibration, or computes it again, as soon as the classifier has other weights.

    Changes show in the tensors' version counters, which cost nothing to compare. Writing that
    bypasses these (``parameter.data.copy_``) goes unnoticed.

    Attributes:
        text (str): the calibration; see `parse_calibration`.
        inputs (CalibrationInputs): all that it was made from but the weights.
        statistics (LogitStatistics): those of all stages, or None.
        strict (bool): whether the statistics must belong to exactly these weights.
        from_weights (bool): whether the calibration is computed from the weights.
    """

    text: str
    inputs: CalibrationInputs
    statistics: LogitStatistics | None = None
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
                fingerprints=[*[None] * self.inputs.stage_index, predictor_fingerprint(predictor)],
            )
        if self.from_weights:
            inputs = replace(self.inputs, classifier=classifier_reader(predictor))
            made = build_calibration(self.text, inputs)
            # In place: the calibration is a submodule that others may hold a reference to.
            calibration.column_scale.copy_(made.column_scale)
            calibration.column_shift.copy_(made.column_shift)
        # Last, so that a failed check is repeated at the next use.
        self._seen = state


def guarded_calibrations(
    predictors: Sequence[nn.Module | ClassLayers],
    text: str,
    *,
    statistics: LogitStatistics | None = None,
    counts: CountsSource = None,
    strict: bool = True,
    **options: Any,
) -> tuple[list[AffineCalibration], list[WeightsGuard]]:
    """One calibration for each predictor, and the guard of its weights.

    Args:
        predictors (Sequence[nn.Module]): S of them, or a site's layers; their weights may be
            loaded later.
        text, statistics, counts: see `stage_calibrations`.
        strict (bool): whether the statistics must belong to exactly the weights in use.
        **options: others of `stage_calibrations`.

    Raises:
        ValueError: an input of the calibration is missing or does not fit the model.
    """
    readers = [classifier_reader(each) for each in predictors]
    given = {"statistics": statistics, "counts": counts, "classifiers": readers}
    inputs = stage_inputs(num_stages=len(readers), **given, **options)
    calibrations = [build_calibration(text, each) for each in inputs]
    guards = []
    for each in inputs:
        # A calibration uses weights if it asks for them, so that those that users register need no
        # flag.
        again = "weights" in each.used
        # Counts are kept only for making the calibration again.
        kept = replace(each, classifier=None, counts=counts if again else None)
        guards.append(WeightsGuard(text, kept, statistics, strict, again))
    return calibrations, guards


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
