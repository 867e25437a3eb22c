"""Detectors with known sites, by the full names of their classes."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from ..core.registry import Registry
from ..errors import UserError
from .site import LogitSite

SITE_REGISTRY: Registry[Callable[[nn.Module], LogitSite]] = Registry("site")
"""Full class name, such as "my_project.models.MyDetector" -> function of the model.

Keyed by name, so that a lookup does not import detectors.
"""


def known_site(model: nn.Module) -> LogitSite | None:
    """The site of the detector found by `site_detector`, or None."""
    detector = site_detector(model)
    return None if detector is None else _entry(detector)(detector)


def site_detector(model: nn.Module) -> nn.Module | None:
    """The detector with a known site, possibly inside a wrapper, or None.

    Args:
        model (nn.Module): the detector, DistributedDataParallel, torch.compile's module, ...

    Raises:
        UserError: there are several detectors, such as a teacher and a student.
    """
    # All modules, because a wrapper may hold the detector at any depth.
    found = {name: each for name, each in model.named_modules() if _entry(each) is not None}
    if len(found) > 1:
        raise UserError(
            f"This {type(model).__name__} contains {len(found)} detectors: {', '.join(found)}. "
            f"Pass one of them, for example model.{list(found)[-1]}."
        )
    return next(iter(found.values()), None)


def _entry(module: nn.Module) -> Callable[[nn.Module], LogitSite] | None:
    # From the class to its parents, so that a subclass's own site wins over that of its parent.
    # What a LazyConfig file makes with type() belongs to no module.
    kinds = ((getattr(kind, "__module__", ""), kind.__qualname__) for kind in type(module).__mro__)
    names = (f"{where}.{name}" for where, name in kinds)
    return next((SITE_REGISTRY.get(name) for name in names if name in SITE_REGISTRY), None)
