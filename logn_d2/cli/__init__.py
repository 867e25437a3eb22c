"""The command line: `logn COMMAND ...`, or `python -m logn_d2 COMMAND ...`."""

from .main import main

__all__ = ["main"]
