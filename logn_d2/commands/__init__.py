"""The work of the commands; their arguments are in `logn_d2.cli`."""

__all__ = ["INTERRUPTED"]

# The exit status after Ctrl-C, as of a shell.
INTERRUPTED = 130
