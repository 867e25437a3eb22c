"""`logn stats`: tables, differences and validity of statistics files."""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import logging
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from tabulate import tabulate
from torch import Tensor

from ..core import (
    LogitStatistics,
    StageStatistics,
    StatisticsError,
    load_batch_norm,
)
from ..core.affine import foreground_columns
from ..core.fingerprint import fingerprint_differences
from ..errors import UnknownNameError

# Standard error of a mean, in standard deviations of the logit, above which a class counts as
# noisy: sampling alone then moves its calibrated logit by as much.
NOISY = 0.2


def import_checkpoint(args: argparse.Namespace) -> int:
    """Write and print the statistics in a checkpoint of the released code."""
    names = ("momentum", "debias", "images_per_batch", "rois_per_image")
    options = {name: getattr(args, name) for name in names}
    path, output, dataset = args.checkpoint, args.output, args.class_names_from
    try:
        classes = class_names_of(dataset) if dataset else None
        datasets = (dataset,) if dataset else ()
        statistics = load_batch_norm(path, classes, datasets=datasets, **options)
        statistics.save(output)
    except (ValueError, OSError, KeyError) as error:
        # The text of a KeyError is the repr of its message.
        print(f"error: {error.args[0] if isinstance(error, KeyError) else error}", file=sys.stderr)
        return 1
    show(output, statistics, rows=10)
    return 0


def class_names_of(dataset: str) -> Sequence[str]:
    """The classes of a registered data set, in the order of a model's logits."""
    from detectron2.data import MetadataCatalog  # the other actions work without Detectron2

    from ..glyphs import register_glyphs

    register_glyphs()
    names = MetadataCatalog.get(dataset).get("thing_classes")
    if not names:
        raise UnknownNameError(f"No data set '{dataset}' with class names is registered.")
    return names


def run(args: argparse.Namespace) -> int:
    """Run an action of `logn stats`; return the exit status."""
    logging.basicConfig(format="%(levelname)s: %(message)s")
    if args.action == "import":
        return import_checkpoint(args)
    rows = None if args.all else args.rows
    files = load(args.paths)
    if len(files) < len(args.paths):
        return 1
    try:
        if args.action == "compare":
            compare(files, rows)
        elif args.action == "check":
            return int(sum(validate(path, statistics) for path, statistics in files) > 0)
        else:
            if args.action == "merge":
                files = [(args.output, merge(files, args.output))]
            for path, statistics in files:
                show(path, statistics, rows)
    except (StatisticsError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def load(paths: Sequence[str]) -> list[tuple[str, LogitStatistics]]:
    """Load the readable files and print the errors of the others."""
    files = []
    for path in paths:
        try:
            files.append((path, LogitStatistics.load(path)))
        except (StatisticsError, OSError) as error:
            print(f"error: {error}", file=sys.stderr)
    return files


def show(path: str, statistics: LogitStatistics, rows: int | None) -> None:
    """Print the metadata, and a table for each stage with classes sorted by mean logit."""
    print(f"{path}\n")
    print_table(["property", "value"], list(_properties(statistics)), "ll")
    names = _column_names(statistics)
    for index, stage in enumerate(statistics.stages):
        order = _foreground_order(statistics, stage.mean)
        error = _standard_error(stage)
        print(f"\nStage {index}, by mean logit:\n")
        cells = [
            [
                _escaped(names[c]),
                f"{int(stage.count[c]):,}",
                f"{stage.mean[c]:.4f}",
                f"{stage.std[c]:.4f}",
                "-" if error is None else f"{error[c]:.4f}",
                "" if stage.usable[c] else "not usable",
            ]
            for c in order
        ]
        head = ["class", "count", "mean", "std", "std error", "note"]
        print_table(head, _ends(cells, rows, int(statistics.background != "none")), "lrrrrl")
    print()


def _properties(statistics: LogitStatistics) -> Iterator[list[str]]:
    yield ["classes", f"{statistics.num_classes:,} (background: {statistics.background})"]
    yield ["stages", str(len(statistics.stages))]
    yield ["data sets", ", ".join(statistics.datasets) or "-"]
    yield ["images, RoIs", f"{statistics.num_images:,}, {statistics.num_rois:,}"]
    yield ["RoIs are", statistics.population]
    momentum = "" if statistics.momentum is None else f", momentum {statistics.momentum}"
    yield ["estimator", statistics.estimator + momentum]
    augmented = ", augmented" if statistics.augmented else ""
    yield ["sampler", statistics.sampler + augmented]
    precision = "unknown" if statistics.autocast is None else statistics.autocast or "off"
    yield ["mixed precision", precision]
    yield ["not usable", f"{len(statistics.unusable_classes())} classes"]
    for index, stage in enumerate(statistics.stages):
        error = _standard_error(stage)
        if error is not None and stage.usable.any():
            share = (error / stage.std)[stage.usable]
            many = int((share > NOISY).sum())
            yield [f"stage {index}", f"std error above {NOISY} std in {many} columns"]
    if statistics.stop_at > 0:
        reached = "reached" if statistics.reached else "not reached"
        yield ["ended at error", f"{statistics.stop_at:g}, {reached}"]
    # Moving averages have none.
    with contextlib.suppress(StatisticsError):
        error = f"{statistics.sampling_error():.4f}" if statistics.stages else "-"
        yield ["sampling error", f"{error} (largest standard error of a LogN logit)"]
    for name, value in sorted(statistics.provenance.items()):
        yield [_escaped(name), _escaped(value if isinstance(value, str) else json.dumps(value))]


def compare(files: Sequence[tuple[str, LogitStatistics]], rows: int | None) -> None:
    """Print the columns whose means differ most, relative to the difference's standard error.

    Raises:
        StatisticsError: the files differ in classes or number of stages.
    """
    (path, left), (other_path, right) = files
    _check_comparable(left, right)
    print(f"A: {path}\nB: {other_path}\n")
    # By name: a pass that ended early has properties that others lack.
    of_a, of_b = (dict(_properties(each)) for each in (left, right))
    table = [[name, of_a.get(name, "-"), of_b.get(name, "-")] for name in {**of_a, **of_b}]
    print_table(["property", "A", "B"], table, "lll")
    for index, (a, b) in enumerate(zip(left.stages, right.stages)):
        print(f"\nStage {index}, {_same_weights(a, b)}; largest differences of the mean first:\n")
        _compare_stages(a, b, _column_names(left), rows)
    print()


def _compare_stages(
    a: StageStatistics, b: StageStatistics, names: Sequence[str], rows: int | None
) -> None:
    difference = b.mean - a.mean
    # 0 / 0 means that both files saw a single value in the column: no difference.
    by_std = torch.nan_to_num(difference / a.std, nan=0.0)
    error = _combined_error(a, b)
    by_error = None if error is None else torch.nan_to_num(difference / error, nan=0.0)
    size = (by_std if by_error is None else by_error).abs()
    cells = [
        [
            _escaped(names[c]),
            f"{a.mean[c]:.4f}",
            f"{b.mean[c]:.4f}",
            "-" if by_error is None else f"{by_error[c]:+.2f}",
            f"{by_std[c]:+.4f}",
            f"{b.std[c] / a.std[c]:.4f}",
        ]
        for c in size.argsort(descending=True, stable=True).tolist()
    ]
    head = ["class", "mean A", "mean B", "(B - A) / std error", "(B - A) / std A", "std B / std A"]
    print_table(head, cells if rows is None else cells[:rows], "lrrrrr")
    if by_error is not None:
        finite = by_error[by_error.isfinite()]
        rms = float(finite.square().mean().sqrt())
        print(f"\nRoot mean square over columns: {rms:.2f} std errors (1 is expected by chance).")


def merge(files: Sequence[tuple[str, LogitStatistics]], output: str) -> LogitStatistics:
    """Merge the statistics of all files and write them.

    Raises:
        StatisticsError: files that do not belong together, or a repeated file.
    """
    paths = [Path(path).resolve() for path, _ in files]
    for path in paths:
        if paths.count(path) > 1:
            raise StatisticsError(f"'{path.name}' is repeated; its RoIs would count twice.")
    merged = functools.reduce(LogitStatistics.merge, (statistics for _, statistics in files))
    merged.save(output)
    return merged


def validate(path: str, statistics: LogitStatistics) -> int:
    """Print a line for each problem, or "ok"; return the number of problems.

    `LogitStatistics.load` has already refused truncated files and values that are not finite. Notes
    are printed too, but not counted.
    """
    problems = [*_file_problems(statistics)]
    for index, stage in enumerate(statistics.stages):
        problems += [f"stage {index}: {text}" for text in _stage_problems(statistics, stage)]
        if stage.fingerprint is None:
            print(f"{path}: note: stage {index} has no fingerprint of the weights it belongs to.")
    for problem in problems:
        print(f"{path}: problem: {problem}")
    if not problems:
        print(f"{path}: ok")
    print()
    return len(problems)


def _file_problems(statistics: LogitStatistics) -> Iterator[str]:
    if not statistics.stages:
        yield "the file has no stages; collect the statistics again."
        return
    if len(set(statistics.class_names)) < statistics.num_classes:
        yield "class names repeat, so classes can't be told apart; check the data set's metadata."
    unusable = statistics.unusable_classes()
    if unusable:
        names = ", ".join(unusable[:5]) + (", ..." if len(unusable) > 5 else "")
        yield (
            f"{len(unusable)} of {statistics.num_classes} classes have fewer than two logits or "
            f"only one value; LogN leaves them unchanged: {names}."
        )


def _stage_problems(statistics: LogitStatistics, stage: StageStatistics) -> Iterator[str]:
    # A "positives" pass counts each RoI for only one class; an imported background is unknown.
    foreground = foreground_columns(statistics.background)
    count = stage.count if statistics.estimator == "exact" else stage.count[foreground]
    if statistics.population != "positives" and len(count.unique()) > 1:
        low, high = int(count.min()), int(count.max())
        yield f"columns have {low:,} to {high:,} logits, but every RoI has all of them."
    # The file stores both the variance and its mergeable state, which must agree.
    if stage.moments is not None and not torch.allclose(
        stage.var, stage.moments.var, rtol=1e-9, atol=1e-12
    ):
        yield "var differs from the mergeable state; the file was changed."


def print_table(head: Sequence[str], rows: Sequence[Sequence[str]], align: str) -> None:
    """Print a Markdown table whose columns are also aligned as plain text.

    Args:
        head (Sequence[str]): titles.
        rows (Sequence[Sequence[str]]): cells.
        align (str): "l" or "r" for each column.
    """
    sides = ["left" if side == "l" else "right" for side in align]
    print(tabulate(rows, head, "pipe", colalign=sides, disable_numparse=True))


def _ends(cells: list[list[str]], rows: int | None, num_last: int) -> list[list[str]]:
    """The first and last rows, and the trailing rows that are always shown."""
    classes, last = cells[: len(cells) - num_last], cells[len(cells) - num_last :]
    if rows is None or len(classes) <= 2 * rows:
        return cells
    gap = [f"... {len(classes) - 2 * rows:,} more (--all)"] + [""] * (len(cells[0]) - 1)
    return [*classes[:rows], gap, *classes[len(classes) - rows :], *last]


def _column_names(statistics: LogitStatistics) -> list[str]:
    names, background = list(statistics.class_names), ["(background)"]
    if statistics.background == "none":
        return names
    return names + background if statistics.background == "last" else background + names


def _foreground_order(statistics: LogitStatistics, mean: Tensor) -> list[int]:
    """Columns by decreasing mean; the background last."""
    order = mean.argsort(descending=True, stable=True).tolist()
    if statistics.background != "none":
        background = 0 if statistics.background == "first" else len(mean) - 1
        order.remove(background)
        order.append(background)
    return order


def _standard_error(stage: StageStatistics) -> Tensor | None:
    """(C,) standard error of the mean; None for moving averages and files of early releases."""
    # Files of early releases have no groups of images, so their errors are NaN.
    error = None if stage.moments is None else stage.moments.std_error
    return None if error is None or error.isnan().any() else error


def _combined_error(a: StageStatistics, b: StageStatistics) -> Tensor | None:
    """(C,) standard error of the difference, from the files that have one."""
    errors = [e for e in (_standard_error(a), _standard_error(b)) if e is not None]
    return torch.stack(errors).square().sum(dim=0).sqrt() if errors else None


def _check_comparable(left: LogitStatistics, right: LogitStatistics) -> None:
    for name in ("class_names", "background"):
        if getattr(left, name) != getattr(right, name):
            raise StatisticsError(f"The files have different {name}; they can't be compared.")
    if len(left.stages) != len(right.stages):
        raise StatisticsError(
            f"The files have {len(left.stages)} and {len(right.stages)} stages; they can't be "
            "compared."
        )


def _same_weights(a: StageStatistics, b: StageStatistics) -> str:
    if a.fingerprint is None or b.fingerprint is None:
        return "weights unknown"
    differs = fingerprint_differences(a.fingerprint, b.fingerprint)
    return "other weights" if differs.any() else "same weights"


def _escaped(text: str) -> str:
    # A bar would end the cell, a line break the row.
    return text.replace("|", "\\|").replace("\n", " ")
