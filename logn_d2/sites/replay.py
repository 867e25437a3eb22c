"""A model's outputs under many calibrations, for little more than the cost of one pass."""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from ..core import AffineCalibration
from .hook import paused
from .running import evaluation_mode, shadowed
from .site import Inputs, LogitSite


@torch.no_grad()
def outputs_under(
    model: nn.Module,
    site: LogitSite,
    inputs: Inputs,
    calibrations: Mapping[str, AffineCalibration],
) -> dict[str, Any]:
    """The model's outputs for a batch under each calibration, bit for bit as with it attached.

    The site's reused modules and the layers with the logits run once; everything after them runs
    once per calibration. An attached calibration is ignored.

    Args:
        model (nn.Module): the detector itself.
        site (LogitSite): its site.
        inputs (Sequence[Mapping]): as for the site's `run`.
        calibrations (Mapping): name -> calibration of C columns, on the model's device.

    Raises:
        UserError: a calibration of another number or order of columns.
    """
    for each in calibrations.values():
        each.check_columns(site.num_classes, site.background)
    kept: dict[nn.Module, list[Any]] = defaultdict(list)
    outputs = {}
    # Raw logits: each calibration is applied to them once, below.
    with evaluation_mode(model), paused(model):
        for name, calibration in calibrations.items():
            with ExitStack() as stack:
                # Modules and layers are replaced inside their model, whose own forward then joins
                # the parts as always.
                for module in site.reused:
                    again = _again(module, kept[module])
                    stack.enter_context(shadowed(module, "forward", again))
                for layer in site.layers:
                    raw = _again(layer, kept[layer])
                    again = functools.partial(_calibrated, site, calibration, raw)
                    stack.enter_context(shadowed(layer, "forward", again))
                outputs[name] = site.run(model, inputs) if site.run else model(inputs)
    return outputs


def _again(module: nn.Module, kept: list[Any]) -> Callable:
    """A forward method that records its outputs in the first pass and replays them later."""
    # The bound method before it is shadowed. A copy of the list, since `keep` appends to it.
    forward, replayed = module.forward, iter(tuple(kept))
    if kept:
        # By the order of calls: a head runs once for each feature map.
        return lambda *args, **kwargs: next(replayed)

    def keep(*args: Any, **kwargs: Any) -> Any:
        kept.append(forward(*args, **kwargs))
        return kept[-1]

    return keep


def _calibrated(
    site: LogitSite, calibration: AffineCalibration, raw: Callable, *args: Any, **kwargs: Any
) -> Tensor:
    return site.calibrated(raw(*args, **kwargs), calibration)
