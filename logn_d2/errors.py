"""Errors that a user can correct, as opposed to bugs.

A command ends with the message of such an error, without a traceback. Any other exception is a bug
and keeps its traceback. Each class is also the built-in exception that a caller would expect.
"""

from __future__ import annotations

__all__ = ["MissingFileError", "UnknownNameError", "UserError"]


class UserError(ValueError):
    """An invalid value, file or setting; the message names it and the remedy."""


class MissingFileError(UserError, FileNotFoundError):
    """A file that does not exist."""


class UnknownNameError(UserError, KeyError):
    """A name that is not registered; the message lists the known ones."""

    def __str__(self) -> str:
        # A KeyError's text is the repr of its argument.
        return str(self.args[0]) if self.args else ""
