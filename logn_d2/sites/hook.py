"""A calibration at the outputs of layers, and its removal."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from torch import Tensor, nn

from ..core import AffineCalibration
from .layers import ClassLayers

__all__ = ["CHILD", "CalibrationHook", "attached_layers", "paused"]

CHILD = "logn_calibration"

Guard = Callable[[ClassLayers, AffineCalibration], None]


class CalibrationHook:
    """A forward hook of each layer: calibrated logits in evaluation, raw ones in training.

    An object, and not a closure: a copy of the model gets hooks that know the copy's layers. The
    calibration is a submodule of the first layer, so that it follows the model from device to
    device.

    Attributes:
        classifier (ClassLayers): whose outputs are calibrated.
        guard (Callable): looks at the weights that the calibration is for, or None.
    """

    def __init__(self, classifier: ClassLayers, guard: Guard | None) -> None:
        self.classifier = classifier
        self.guard = guard
        self.is_paused = False

    @classmethod
    def attach(
        cls, classifier: ClassLayers, calibration: AffineCalibration, guard: Guard | None
    ) -> None:
        """Calibrates the layers' outputs from now on."""
        hook = cls(classifier, guard)
        calibration.to(next(classifier.owner.parameters()).device)
        # The layer's own mode decides, and a calibration has none.
        classifier.owner.add_module(CHILD, calibration)
        for layer in classifier.layers:
            layer.register_forward_hook(hook)

    def release(self) -> None:
        """Removes the calibration."""
        del self.classifier.owner._modules[CHILD]
        for layer in self.classifier.layers:
            hooks = layer._forward_hooks
            for key in [k for k, hook in hooks.items() if isinstance(hook, CalibrationHook)]:
                del hooks[key]

    @property
    def calibration(self) -> AffineCalibration:
        """What is applied."""
        return self.classifier.owner._modules[CHILD]

    def check(self) -> None:
        """Looks again at what the calibration belongs to, if the weights have changed."""
        if self.guard is not None:
            self.guard(self.classifier, self.calibration)

    def __call__(self, layer: nn.Module, inputs: tuple, output: Tensor) -> Tensor | None:
        if layer.training or self.is_paused:
            return None
        self.check()
        return self.classifier.calibrated(output, self.calibration)


def attached_layers(model: nn.Module) -> ClassLayers | None:
    """The layers of a model that have a calibration; None for none."""
    hook = _hook(model)
    return None if hook is None else hook.classifier


@contextmanager
def paused(model: nn.Module) -> Iterator[None]:
    """Raw logits for a while."""
    hook = _hook(model)
    try:
        if hook is not None:
            hook.is_paused = True
        yield
    finally:
        if hook is not None:
            hook.is_paused = False


def _hook(model: nn.Module) -> CalibrationHook | None:
    """The layers of a site share one."""
    hooks = (hook for module in model.modules() for hook in module._forward_hooks.values())
    return next((hook for hook in hooks if isinstance(hook, CalibrationHook)), None)
