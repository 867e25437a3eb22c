#!/usr/bin/env python
"""Old name of `logn data check`; works for one release."""

import sys

from logn_d2.cli import main

if __name__ == "__main__":
    sys.exit(main(["data", "check", *sys.argv[1:]]))
