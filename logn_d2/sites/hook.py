"""Calibrating the outputs of layers by forward hooks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from torch import Tensor, nn

from ..core import AffineCalibration
from .layers import ClassLayers
from .running import forget_compiled

CHILD = "logn_calibration"

Guard = Callable[[ClassLayers, AffineCalibration], None]


class CalibrationHook:
    """A forward hook of each layer: calibrated logits in evaluation, raw ones in training.

    An object instead of a closure, so that the hooks of a copied model refer to the copy's layers.
    The calibration is a submodule of the first layer, so that it follows the model to other
    devices.

    Attributes:
        classifier (ClassLayers): the layers with calibrated outputs.
        guard (Callable): checks that the calibration belongs to the weights, or None.
    """

    def __init__(self, classifier: ClassLayers, guard: Guard | None) -> None:
        self.classifier = classifier
        self.guard = guard
        self.is_paused = False

    @classmethod
    def attach(
        cls, classifier: ClassLayers, calibration: AffineCalibration, guard: Guard | None
    ) -> None:
        """Calibrate the layers' outputs from now on."""
        hook = cls(classifier, guard)
        calibration.to(next(classifier.owner.parameters()).device)
        # The mode of the layer decides whether it is calibrated; the calibration has no mode.
        classifier.owner.add_module(CHILD, calibration)
        # One hook object for all layers, so that one guard checks the weights.
        for layer in classifier.layers:
            layer.register_forward_hook(hook)
        forget_compiled()

    def release(self) -> None:
        """Remove the calibration."""
        # Through the dictionaries, because a copied model has no handles of its hooks.
        del self.classifier.owner._modules[CHILD]
        for layer in self.classifier.layers:
            hooks = layer._forward_hooks
            for key in [k for k, hook in hooks.items() if isinstance(hook, CalibrationHook)]:
                del hooks[key]
        forget_compiled()

    @property
    def calibration(self) -> AffineCalibration:
        """The applied calibration."""
        # Read from the module each time: `.to()` and copies replace what a reference would hold.
        return self.classifier.owner._modules[CHILD]

    def check(self) -> None:
        """Check again that the calibration fits, if the weights have changed."""
        if self.guard is not None:
            self.guard(self.classifier, self.calibration)

    def __call__(self, layer: nn.Module, inputs: tuple, output: Tensor) -> Tensor | None:
        # A loss trains raw logits; None leaves the output as it is.
        if layer.training or self.is_paused:
            return None
        self.check()
        return self.classifier.calibrated(output, self.calibration)


def attached_layers(model: nn.Module) -> ClassLayers | None:
    """The calibrated layers of a model, or None."""
    hook = _hook(model)
    return None if hook is None else hook.classifier


@contextmanager
def paused(model: nn.Module) -> Iterator[None]:
    """Disable the calibration for the context."""
    hook = _hook(model)
    if hook is None:
        yield
        return
    hook.is_paused = True
    try:
        yield
    finally:
        hook.is_paused = False


def _hook(model: nn.Module) -> CalibrationHook | None:
    """The hook, which the layers of a site share, or None."""
    hooks = (hook for module in model.modules() for hook in module._forward_hooks.values())
    return next((hook for hook in hooks if isinstance(hook, CalibrationHook)), None)
