"""The registered calibrations, each with its inputs from `CalibrationInputs`.

Shapes: K foreground classes.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import Any

import torch

from .. import UNCALIBRATED
from ..errors import UserError
from ..frequency import frequency_groups
from .affine import AffineCalibration
from .auto_calibration import auto
from .calibration_registry import CALIBRATION_REGISTRY, CalibrationInputs, build_calibration
from .calibrations import logn, tau_norm, temperature
from .learned_scales import learned_scales, lws
from .prior_calibrations import (
    class_balanced,
    fracal,
    logit_adjustment,
    matching_gamma,
    norcal,
    p2p,
)
from .specs import check_number

logger = logging.getLogger(__name__)


@CALIBRATION_REGISTRY.register(UNCALIBRATED)
def _uncalibrated(inputs: CalibrationInputs) -> AffineCalibration:
    return AffineCalibration.identity(inputs.num_classes, inputs.background)


@CALIBRATION_REGISTRY.register("logn")
def _logn(inputs: CalibrationInputs, **options: Any) -> AffineCalibration:
    given = {"background": inputs.background, "unlabelled": inputs.unlabelled}
    return logn(inputs.statistics(), **given, **options)


def _part(fixed: dict[str, Any]) -> Callable[[CalibrationInputs], AffineCalibration]:
    """LogN with these options and no others."""
    return lambda inputs: _logn(inputs, **fixed)


for _name, _fixed in {
    "logn_mean": {"use_std": False, "beta": "none"},
    "logn_std": {"use_mean": False, "beta": "none"},
    "logn_beta": {"use_mean": False, "use_std": False},
    "logn_no_beta": {"beta": "none"},
}.items():
    CALIBRATION_REGISTRY.register(_name)(_part(_fixed))


@CALIBRATION_REGISTRY.register("norcal")
def _norcal(inputs: CalibrationInputs, **options: Any) -> AffineCalibration:
    image_count = inputs.image_count()
    if options.get("gamma") == "auto":
        gamma = matching_gamma(inputs.statistics(), image_count, background=inputs.background)
        # Tables and files show the text gamma=auto, so the log has the value.
        logger.info("norcal(gamma=auto), stage %d: gamma is %.3f", inputs.stage_index, gamma)
        options["gamma"] = gamma
    return norcal(image_count, background=inputs.background, **options)


def _made_by(
    function: Callable[..., AffineCalibration],
    given: Callable[[CalibrationInputs], Any],
    inputs: CalibrationInputs,
    **options: Any,
) -> AffineCalibration:
    return function(given(inputs), background=inputs.background, **options)


# Name -> the function, and the inputs that it takes.
for _name, _entry in {
    "p2p": (p2p, CalibrationInputs.statistics),
    "auto": (auto, CalibrationInputs.statistics),
    "fracal": (fracal, CalibrationInputs.class_counts),
    "class_balanced": (class_balanced, CalibrationInputs.image_count),
    "logit_adjustment": (logit_adjustment, CalibrationInputs.image_count),
    "temperature": (temperature, lambda inputs: inputs.num_classes),
}.items():
    CALIBRATION_REGISTRY.register(_name)(functools.partial(_made_by, *_entry))


@CALIBRATION_REGISTRY.register("tau_norm")
def _tau_norm(inputs: CalibrationInputs, **options: Any) -> AffineCalibration:
    return tau_norm(*inputs.parameters(), background=inputs.background, **options)


@CALIBRATION_REGISTRY.register("lws")
def _lws(inputs: CalibrationInputs, *, checkpoint: str) -> AffineCalibration:
    _, bias = inputs.parameters()
    scales = learned_scales(checkpoint)
    # Compared before use: factors of another model would broadcast or fail far from the cause.
    columns = inputs.num_classes + (inputs.background != "none")
    if inputs.stage_index >= len(scales) or len(scales[inputs.stage_index]) != columns:
        raise UserError(
            f"The checkpoint {checkpoint} has scales of {[len(each) for each in scales]} "
            f"columns, but this is stage {inputs.stage_index} of a head with {columns} columns. "
            "Name the LWS checkpoint of this model."
        )
    return lws(scales[inputs.stage_index], bias, background=inputs.background)


@CALIBRATION_REGISTRY.register("groups")
def _groups(
    inputs: CalibrationInputs,
    *,
    rare_max: int | None = None,
    common_max: int | None = None,
    **choices: str,
) -> AffineCalibration:
    """A calibration for each frequency group; unnamed groups keep their raw logits.

    The groups are the data set's own, those of APr, APc and APf. A data set without groups gets
    LVIS's (at most 10 and 100 images); given limits override both.

    Each calibration is built for all classes, so that LogN's beta and centred shifts are the usual
    ones; each group then takes the values of its classes.
    """
    if not choices or not set(choices) <= set(_GROUPS):
        raise UserError(
            f"groups({', '.join(choices)}) should name calibrations for some of "
            f"{', '.join(_GROUPS)}, for example groups(rare=logn, common=norcal(gamma=0.4))."
        )
    for name, limit in (("rare_max", rare_max), ("common_max", common_max)):
        if limit is not None:
            check_number(name, limit, "[0, inf]")
    image_count, groups = inputs.image_count(), inputs.groups()
    if groups is None or rare_max is not None or common_max is not None:
        # Given limits replace the data set's own groups, also where it has letters.
        groups = frequency_groups(
            image_count,
            10 if rare_max is None else rare_max,
            100 if common_max is None else common_max,
        )
    # Unnamed groups keep their raw logits.
    identity = AffineCalibration.identity(inputs.num_classes)
    scale, shift, softmax_only = identity.scale, identity.shift, False
    for name, text in choices.items():
        if text != "none":
            # Made for all classes first: centred shifts and beta depend on every class, not only on
            # the members of a group.
            chosen = build_calibration(str(text), inputs)
            members = torch.from_numpy(groups == _GROUPS[name])
            scale = torch.where(members, chosen.scale, scale)
            shift = torch.where(members, chosen.shift, shift)
            # A single group whose method has no form for sigmoid scores rules out heads with them.
            softmax_only |= chosen.softmax_only
    return AffineCalibration(scale, shift, background=inputs.background, softmax_only=softmax_only)


_GROUPS = {"rare": "r", "common": "c", "frequent": "f"}
