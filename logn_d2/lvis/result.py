"""The result of an evaluation by the LVIS rule: metrics by class, group and area range.

Shapes: K foreground classes, A = 4 area ranges (all, small, medium, large), T = 10 thresholds of
IoU. Precision and recall are in [0, 1]; NaN where there is no object.
"""

from __future__ import annotations

import csv
import functools
import os
from collections import Counter, OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..errors import UserError
from ..files import atomic_write

_AREA_NAMES = ("", "s", "m", "l")
# lvis-api's group names. Every result has them, NaN where unused, so that tables keep their
# columns.
_LVIS_GROUPS = ("r", "c", "f")
# Columns of the per-class table.
_COLUMNS = ("class", "group", "num_gt", "AP", "AP50")


@dataclass(frozen=True, eq=False)
class LvisResult:
    """Precision and recall of an evaluation, and the metrics derived from them.

    Args:
        iou_type (str): "bbox" or "segm".
        max_dets (int): detections kept per image; negative for all.
        precision (ndarray): (A, T, K), mean precision over 101 recalls.
        recall (ndarray): (A, T, K), recall of all kept detections.
        num_gt (ndarray): (K,) number of objects that are not ignored.
        class_names (tuple[str, ...]): K names.
        groups (ndarray | None): (K,) group of each class.
        class_groups (Mapping): further groups: name -> indices of their classes.
    """

    iou_type: str
    max_dets: int
    precision: np.ndarray
    recall: np.ndarray
    num_gt: np.ndarray
    class_names: tuple[str, ...]
    groups: np.ndarray | None
    class_groups: Mapping[str, np.ndarray] = field(default_factory=dict)

    @property
    def per_class_ap(self) -> np.ndarray:
        """AP of each class, (K,) in [0, 1], NaN for a class without objects."""
        return self.precision[0].mean(axis=0)

    @property
    def per_class_ap50(self) -> np.ndarray:
        """AP of each class at an IoU of 0.5, (K,) in [0, 1], NaN for a class without objects."""
        return self.precision[0, 0]

    @functools.cached_property
    def metrics(self) -> OrderedDict[str, float]:
        """All metrics of lvis-api, in [0, 1]; NaN where no class has objects.

        AP, AP50, AP75; APs, APm, APl by area; AP with the name of each group (APr, APc, APf, then
        those of `class_groups`); AR, ARs, ARm, ARl, the recall of the `max_dets` detections.
        """
        metrics = _figures(self.precision, self.recall)
        for name, members in self.members.items():
            metrics[f"AP{name}"] = known_mean(self.precision[0][:, members])
        # Recall comes last, as in lvis-api.
        for name in _AREA_NAMES:
            metrics.move_to_end(f"AR{name}")
        return metrics

    @functools.cached_property
    def group_metrics(self) -> OrderedDict[str, OrderedDict[str, float]]:
        """Metrics of each group separately, in [0, 1].

        Returns:
            OrderedDict: group -> AP, AP50, AP75, APs, APm, APl, AR, ARs, ARm, ARl; NaN where the
            group has no object (of that area).
        """
        return OrderedDict(
            (name, _figures(self.precision[..., members], self.recall[..., members]))
            for name, members in self.members.items()
        )

    @property
    def group_names(self) -> tuple[str, ...]:
        """LVIS's r, c, f, or the names in `groups` in order of first class."""
        return _group_names(self.groups)

    @functools.cached_property
    def members(self) -> OrderedDict[str, np.ndarray]:
        """Indices of the classes of each group: of `groups`, then of `class_groups`."""
        return group_members(self.groups, self.class_groups)

    def as_dict(self) -> OrderedDict[str, float]:
        """Return `metrics` in percent without recall by area, as Detectron2 reports results."""
        return OrderedDict(
            (name, 100 * value)
            for name, value in self.metrics.items()
            if name not in ("ARs", "ARm", "ARl")
        )

    def per_class_rows(self) -> list[dict[str, Any]]:
        """Return one row per class: class, group, num_gt, and AP and AP50 in percent."""
        groups = [""] * len(self.num_gt) if self.groups is None else self.groups.tolist()
        numbers = (self.num_gt, 100 * self.per_class_ap, 100 * self.per_class_ap50)
        columns = (self.class_names, groups, *(each.tolist() for each in numbers))
        return [dict(zip(_COLUMNS, row, strict=True)) for row in zip(*columns, strict=True)]

    def per_class_table(self) -> str:
        """Return `per_class_rows` as a Markdown table without the classes that have no objects."""
        return markdown_rows([row for row in self.per_class_rows() if row["num_gt"]])

    def group_table(self) -> str:
        """Return `group_metrics` in percent as a Markdown table, one line per group."""
        return markdown_rows(
            {"group": name, "classes": len(self.members[name])}
            | {metric: 100 * value for metric, value in row.items()}
            for name, row in self.group_metrics.items()
        )

    def to_csv(self, path: str | os.PathLike[str]) -> None:
        """Write `per_class_rows` as CSV, one line per class; AP is nan without objects.

        Args:
            path (str or PathLike): the file; it is written completely or not at all.
        """
        write_csv(path, self.per_class_rows(), _COLUMNS)


def markdown_rows(rows: Iterable[Mapping[str, Any]]) -> str:
    """Format rows, column -> cell, as a Markdown table with two digits after the point."""
    # Here, because evaluations without tables need no tabulate.
    from tabulate import tabulate

    return tabulate(list(rows), headers="keys", tablefmt="pipe", floatfmt=".2f")


def write_csv(
    path: str | os.PathLike[str], rows: Sequence[Mapping[str, Any]], columns: Sequence[str]
) -> None:
    """Write rows after a header, which an empty table has too; written completely or not at all."""
    with atomic_write(path) as temporary:
        with open(temporary, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, fieldnames=list(columns))
            writer.writeheader()
            writer.writerows(rows)


def group_members(
    groups: np.ndarray | None, class_groups: Mapping[str, np.ndarray]
) -> OrderedDict[str, np.ndarray]:
    """Indices of the classes of each group.

    Args:
        groups (ndarray | None): (K,) group of each class.
        class_groups (Mapping): further groups: name -> indices of their classes.

    Returns:
        OrderedDict: LVIS's r, c, f (or the names in `groups`), then `class_groups`.
    """
    none = np.zeros(0, dtype=np.int64)
    members = OrderedDict(
        (name, none if groups is None else np.flatnonzero(groups == name))
        for name in _group_names(groups)
    )
    members.update(class_groups)
    return members


def _group_names(groups: np.ndarray | None) -> tuple[str, ...]:
    names = () if groups is None else tuple(dict.fromkeys(groups.tolist()))
    return _LVIS_GROUPS if set(names) <= set(_LVIS_GROUPS) else names


def class_members(
    class_groups: Mapping[str, Sequence[str | int]],
    class_names: Sequence[str],
    category_ids: Sequence[int],
) -> dict[str, np.ndarray]:
    """Look up the classes of user-defined groups.

    Args:
        class_groups (Mapping): name of a group -> names of classes, or category ids of the json,
            also mixed. A class may be in several groups or in none.
        class_names (Sequence[str]): K names.
        category_ids (Sequence[int]): K ids.

    Returns:
        dict: name of a group -> ascending indices of its classes, int64.

    Raises:
        ValueError: a class that the data set lacks, or a name that several of its classes share.

    Example:
        >>> class_members({"pets": ["cat", 5]}, ["cat", "cow", "dog"], [1, 3, 5])
        {'pets': array([0, 2])}
    """
    index: dict[str | int, int] = {int(each): k for k, each in enumerate(category_ids)}
    # Ids are integers and names strings, so one dictionary can serve both without clashes.
    index |= {name: k for k, name in enumerate(class_names)}
    times = Counter(class_names)
    found = {}
    for group, members in class_groups.items():
        if isinstance(members, (str, int)):
            raise UserError(
                f"Group {group!r} is {members!r}, expected a list of class names or category ids."
            )
        unknown = [member for member in members if member not in index]
        if unknown:
            raise UserError(
                f"Group {group!r} has {len(unknown)} of {len(members)} classes that the data set "
                f"lacks, the first is {unknown[0]!r}. Give class names, or category ids of its "
                "json."
            )
        twice = [member for member in members if times[member] > 1]
        if twice:
            raise UserError(
                f"Group {group!r} contains {twice[0]!r}, the name of several classes. Give their "
                "category ids instead."
            )
        found[str(group)] = np.unique(np.array([index[member] for member in members], np.int64))
    return found


def _figures(precision: np.ndarray, recall: np.ndarray) -> OrderedDict[str, float]:
    """AP, AP50, AP75, AP and recall by area of (A, T, n) classes."""
    figures = OrderedDict(
        AP=known_mean(precision[0]),
        AP50=known_mean(precision[0, 0]),
        AP75=known_mean(precision[0, 5]),
    )
    areas = list(enumerate(_AREA_NAMES))
    figures.update((f"AP{name}", known_mean(precision[a])) for a, name in areas[1:])
    figures.update((f"AR{name}", known_mean(recall[a])) for a, name in areas)
    return figures


def known_mean(values: np.ndarray) -> float:
    """Mean over all classes with objects; NaN if there is none."""
    # Not np.nanmean: it warns where there is none, and rounds the last digit differently.
    values = values[~np.isnan(values)]
    return float(values.mean()) if values.size else float("nan")
