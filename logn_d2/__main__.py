"""`python -m logn_d2` is the command `logn`."""

import sys

from .cli import main

if __name__ == "__main__":  # not in processes that a command starts
    sys.exit(main())
