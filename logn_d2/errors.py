"""Mistakes that a user can put right, apart from mistakes of ours.

A command ends with one sentence where one of these is raised. Any other exception is a bug, and
keeps its traceback. Each is also the built-in exception that a caller would expect.
"""

from __future__ import annotations

__all__ = ["MissingFileError", "UnknownNameError", "UserError"]


class UserError(ValueError):
    """A value, file or setting that can't be used; the message says which, and what to do."""


class MissingFileError(UserError, FileNotFoundError):
    """A file that is not there."""


class UnknownNameError(UserError, KeyError):
    """A name that nobody has registered; the message lists the known ones."""

    def __str__(self) -> str:
        # A KeyError's text is the repr of its argument.
        return str(self.args[0]) if self.args else ""
