#!/usr/bin/env python
"""Draw LT-Glyphs, the long-tail benchmark that needs no download.

Example:
    python tools/draw_glyphs.py --size demo
    python tools/draw_glyphs.py --size demo --check
"""

from __future__ import annotations

import argparse
import os
import sys

from logn_d2.glyphs import SIZES, draw_glyphs, glyphs_folder, verify_glyphs


def parse_args() -> argparse.Namespace:
    """Command line arguments."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", choices=sorted(SIZES), default="demo")
    parser.add_argument(
        "--root",
        default=os.environ.get("DETECTRON2_DATASETS", "datasets"),
        help="datasets root (default: $DETECTRON2_DATASETS, else ./datasets)",
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--num-workers", type=int, help="processes (default: all processors)")
    parser.add_argument(
        "--overwrite", action="store_true", help="replace a set drawn with other settings"
    )
    parser.add_argument("--check", action="store_true", help="only verify what is there")
    return parser.parse_args()


def main() -> int:
    """Draw or verify; the exit status is 1 when something is wrong."""
    args = parse_args()
    try:
        if args.check:
            folder = glyphs_folder(args.root, args.size)
            problems = verify_glyphs(folder)
            print("\n".join(problems) if problems else f"{folder}: all files as drawn")
            return 1 if problems else 0
        print(draw_glyphs(args.root, args.size, args.seed, args.num_workers, args.overwrite))
    except (OSError, ValueError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
