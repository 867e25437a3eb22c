"""Errors that a user can correct, as opposed to bugs.

A command ends with the message of such an error, without a traceback. Any other exception is a bug
and keeps its traceback. Each class is also the built-in exception that a caller would expect.
"""

from __future__ import annotations

from collections.abc import Iterable


class UserError(ValueError):
    """An invalid value, file or setting; the message names it and the remedy."""


class MissingFileError(UserError, FileNotFoundError):
    """A file that does not exist."""


class UnknownNameError(UserError, KeyError):
    """A name that is not registered; the message lists the known ones."""

    def __str__(self) -> str:
        # A KeyError's text is the repr of its argument.
        return str(self.args[0]) if self.args else ""


def check_choice(name: str, value: object, known: Iterable[object]) -> None:
    """Check that a setting has one of its known values.

    Raises:
        ValueError: the setting has another value.

    Example:
        >>> check_choice("beta", "best", ("min", "max", "mean"))
        Traceback (most recent call last):
            ...
        logn_d2.errors.UserError: beta is 'best', expected 'min', 'max' or 'mean'.
    """
    known = list(known)
    if value not in known:
        *others, last = map(repr, known)
        listed = f"{', '.join(others)} or {last}" if others else last
        raise UserError(f"{name} is {value!r}, expected {listed}.")


def check_known(what: str, name: object, known: Iterable[object], where: str = "") -> None:
    """Check that a name is among the known ones.

    Args:
        what (str): the named thing, such as "size".
        name, known: the name and the known ones.
        where (str): the place of the known ones, such as " in output/run".

    Raises:
        KeyError: the name is unknown.

    Example:
        >>> check_known("size", "huge", ("tiny", "demo"))
        Traceback (most recent call last):
            ...
        logn_d2.errors.UnknownNameError: Unknown size 'huge'. Known: tiny, demo.
    """
    known = list(known)
    if name not in known:
        listed = ", ".join(map(str, known))
        raise UnknownNameError(f"Unknown {what} '{name}'{where}. Known: {listed}.")
