"""The detectors whose site is known, by the full names of their classes."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from ..core.registry import Registry
from ..errors import UserError
from .site import LogitSite

__all__ = ["SITE_REGISTRY", "known_site", "site_detector"]

SITE_REGISTRY: Registry[Callable[[nn.Module], LogitSite]] = Registry("site")
"""From a class's full name, such as "my_project.models.MyDetector", to a function of the model.

By name, so that no detector has to be imported to be looked for.
"""


def known_site(model: nn.Module) -> LogitSite | None:
    """The site of the detector that `site_detector` finds; None for none."""
    detector = site_detector(model)
    return None if detector is None else _entry(detector)(detector)


def site_detector(model: nn.Module) -> nn.Module | None:
    """The detector with a known site, or the one inside a wrapper; None for none.

    Args:
        model (nn.Module): the detector, DistributedDataParallel, torch.compile's module, ...

    Raises:
        UserError: it holds several, such as a teacher and a student.
    """
    found = {name: each for name, each in model.named_modules() if _entry(each) is not None}
    if len(found) > 1:
        raise UserError(
            f"This {type(model).__name__} holds {len(found)} detectors: {', '.join(found)}. Give "
            f"the one that is meant, for example model.{list(found)[-1]}."
        )
    return next(iter(found.values()), None)


def _entry(module: nn.Module) -> Callable[[nn.Module], LogitSite] | None:
    names = (f"{kind.__module__}.{kind.__qualname__}" for kind in type(module).__mro__)
    return next((SITE_REGISTRY.get(name) for name in names if name in SITE_REGISTRY), None)
