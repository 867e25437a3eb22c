"""A name-to-function registry whose errors list the known names."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from ..errors import UserError, check_known

T = TypeVar("T", bound=Callable)


class Registry(Generic[T]):
    """Maps names to functions or classes.

    It is `fvcore.common.registry.Registry` without the dependency, so that `logn_d2.core` needs
    only torch and numpy, and with errors that name the alternatives.

    Args:
        kind (str): noun for an entry in error messages, for example "calibration".

    Example:
        >>> registry = Registry("greeting")
        >>> @registry.register("polite")
        ... def polite(name):
        ...     return f"Good morning, {name}."
        >>> registry.get("polite")("Ada")
        'Good morning, Ada.'
    """

    def __init__(self, kind: str) -> None:
        self._kind = kind
        self._entries: dict[str, T] = {}

    def register(self, name: str) -> Callable[[T], T]:
        """Decorator that registers under ``name``; a name can be taken only once."""

        def add(entry: T) -> T:
            if name in self._entries:
                raise UserError(f"The {self._kind} '{name}' is registered already.")
            self._entries[name] = entry
            return entry

        return add

    def get(self, name: str) -> T:
        """The entry called ``name``.

        Raises:
            KeyError: unknown name; the message lists the known ones.
        """
        check_known(self._kind, name, sorted(self._entries))
        return self._entries[name]

    def __contains__(self, name: str) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)
