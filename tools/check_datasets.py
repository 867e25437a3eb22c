#!/usr/bin/env python
"""Check data sets before training: annotations, image files, boxes.

Without names it checks every LVIS and LT-Glyphs set whose annotations are there.

Example:
    python tools/check_datasets.py
    python tools/check_datasets.py lvis_v1_train lvis_v1_val
    python tools/check_datasets.py --config-file configs/my.yaml
"""

from __future__ import annotations

import argparse
import os
import sys

from detectron2.data import DatasetCatalog, MetadataCatalog

from logn_d2.data import check_dataset
from logn_d2.engine import load_config, short_errors
from logn_d2.engine.checks import check_classes, check_ground_truth, check_masks
from logn_d2.glyphs import register_glyphs


def parse_args() -> argparse.Namespace:
    """Command line arguments."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", help="registered names")
    parser.add_argument("--config-file", help="check the sets that this config trains and tests on")
    return parser.parse_args()


def chosen_names(args: argparse.Namespace) -> list[str]:
    """The names to check, in order, each once."""
    names = list(args.names)
    if args.config_file:
        cfg = load_config(args.config_file, [])
        names += [*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST]
    if not names:
        known = [n for n in DatasetCatalog.list() if n.startswith(("lvis_v", "lt_glyphs_"))]
        names = [n for n in known if os.path.isfile(MetadataCatalog.get(n).json_file)]
    return list(dict.fromkeys(names))


def config_problems(args: argparse.Namespace) -> list[str]:
    """What a training with the config would refuse of sets that can be read."""
    if not args.config_file:
        return []
    cfg = load_config(args.config_file, [])
    problems = []
    checks = (
        lambda: check_classes(cfg, cfg.DATASETS.TEST),
        lambda: check_ground_truth(cfg),
        lambda: check_masks(cfg),
    )
    for check in checks:
        try:
            check()
        except ValueError as error:
            problems.append(str(error))
    return problems


def main() -> int:
    """Print a table; the exit status is 1 when something is wrong or nothing was found."""
    args = parse_args()
    root = os.environ.get("DETECTRON2_DATASETS", "datasets")
    register_glyphs()
    with short_errors():
        names = chosen_names(args)
    if not names:
        print(f"No data set was found below {root}; see datasets/README.md.", file=sys.stderr)
        return 1
    reports = [check_dataset(name) for name in names]
    width = max(len(name) for name in names)
    row = "{:{width}}  {:>8}  {:>9}  {:>7}  {:>8}  {}"
    print(row.format("data set", "images", "objects", "classes", "box only", "state", width=width))
    for report in reports:
        sizes = (report.num_images, report.num_objects, report.num_classes, report.num_without_mask)
        state = "; ".join(report.problems) or "ok"
        print(row.format(report.name, *(f"{n:,}" for n in sizes), state, width=width))
    if any(report.problems for report in reports):
        return 1
    problems = config_problems(args)
    for problem in problems:
        print(problem)
    return int(bool(problems))


if __name__ == "__main__":
    sys.exit(main())
