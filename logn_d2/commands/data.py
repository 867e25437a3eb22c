"""`logn data`: draw LT-Glyphs, convert and filter data sets, check the data of a training."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from tabulate import tabulate

from ..annotations import name_of, read_annotations
from ..data import check_dataset, images_without
from ..data.muscima import VAL_WRITERS, convert_muscima, describe
from ..engine import load_config, short_errors
from ..engine.checks import check_classes, check_ground_truth, check_masks
from ..errors import MissingFileError
from ..files import write_json
from ..glyphs import draw_glyphs, glyphs_folder, register_glyphs, verify_glyphs


def chosen_names(names: Sequence[str], cfg: CfgNode | None) -> list[str]:
    """The names to check, in order and without repetition."""
    if cfg is not None:
        names = [*names, *cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST]
    # Those with annotations: of sets that nobody has fetched there is nothing to check.
    if not names:
        known = [n for n in DatasetCatalog.list() if n.startswith(("lvis_v", "lt_glyphs_"))]
        names = [n for n in known if os.path.isfile(MetadataCatalog.get(n).json_file)]
    return list(dict.fromkeys(names))


def config_problems(cfg: CfgNode) -> list[str]:
    """Problems of readable data sets that would stop a training with the config."""
    problems = []
    checks = (
        lambda: check_classes(cfg, cfg.DATASETS.TEST),
        lambda: check_ground_truth(cfg),
        lambda: check_masks(cfg),
    )
    # All of them are reported, not only the first.
    for each in checks:
        try:
            each()
        except ValueError as error:
            problems.append(str(error))
    return problems


def run(args: argparse.Namespace) -> int:
    """Run an action of `logn data`; return the exit status."""
    with short_errors():
        actions = {"draw": draw, "check": check, "muscima": convert, "without": leave_out}
        return actions[args.action](args)


def draw(args: argparse.Namespace) -> int:
    """Draw a size of LT-Glyphs, or verify existing files."""
    root = args.root or os.environ.get("DETECTRON2_DATASETS", "datasets")
    if args.check:
        folder = glyphs_folder(root, args.size)
        problems = verify_glyphs(folder)
        print("\n".join(problems) if problems else f"{folder}: no file has changed")
        return int(bool(problems))
    print(draw_glyphs(root, args.size, args.seed, args.num_workers, args.overwrite))
    return 0


def convert(args: argparse.Namespace) -> int:
    """Convert MUSCIMA++; print sizes and checksums of the result."""
    writers = args.val_writers or VAL_WRITERS
    contents = convert_muscima(args.source, args.output, val_writers=writers)
    print("\n".join(describe(contents, args.output)))
    return 0


def leave_out(args: argparse.Namespace) -> int:
    """Write the annotations of the images without some classes, and print their number."""
    if not os.path.isfile(args.annotations):
        raise MissingFileError(f"There is no file '{args.annotations}'.")
    content = read_annotations(args.annotations)
    classes, absent = args.classes, []
    if args.classes_of:
        own = {name_of(each).casefold() for each in content["categories"]}
        others = [name_of(each) for each in read_annotations(args.classes_of)["categories"]]
        # Classes that the first file does not know can't be in its images.
        classes = [name for name in others if name.casefold() in own]
        absent = [name for name in others if name.casefold() not in own]
    found = images_without(content, classes)
    write_json(args.output, found, indent=None)
    print(
        f"{args.output}: {len(found['images']):,} of {len(content['images']):,} images show none "
        f"of {len(classes)} classes, with {len(found['annotations']):,} objects of other classes"
    )
    if absent:
        print(f"{len(absent)} classes are not in {args.annotations}: {', '.join(absent)}")
    return 0


def check(args: argparse.Namespace) -> int:
    """Print a table; return 1 if there is a problem or no data set."""
    root = os.environ.get("DETECTRON2_DATASETS", "datasets")
    register_glyphs()
    cfg = load_config(args.config_file) if args.config_file else None
    names = chosen_names(args.names, cfg)
    if not names:
        print(f"There is no data set below {root}; see datasets/README.md.", file=sys.stderr)
        return 1
    reports = [check_dataset(name) for name in names]
    head = ["data set", "images", "objects", "classes", "box only", "state"]
    rows = []
    for report in reports:
        sizes = (report.num_images, report.num_objects, report.num_classes, report.num_without_mask)
        state = "; ".join(report.problems) or "ok"
        rows.append([report.name, *(f"{n:,}" for n in sizes), state])
    align = ["left", *["right"] * 4, "left"]
    print(tabulate(rows, head, "plain", colalign=align, disable_numparse=True))
    # The checks of a config need readable data sets.
    if any(report.problems for report in reports):
        return 1
    problems = [] if cfg is None else config_problems(cfg)
    for problem in problems:
        print(problem)
    return int(bool(problems))
