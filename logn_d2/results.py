"""The result file of a comparison of calibrations, for people and other programs.

`results.json` holds:

- ``rows``: one per calibration: ``{"calibration": name, "bbox": {...}, "segm": {...}}`` with at
  least AP for each task, in percent; ``null`` if no class has objects. For an image classifier
  ``{"calibration": name, "image": {"acc": ...}, "ood SET": {...}}``;
- ``provenance``, optional: the origin of the figures, shown by the report;
- ``classes``, optional.

AP of each class is in CSV files, ``per_class_TASK_CALIBRATION.csv``; files of early releases have
it here, as ``class_ap``, which is not read.

Shapes: K foreground classes.
"""

from __future__ import annotations

import functools
import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from . import UNCALIBRATED
from .errors import MissingFileError, UserError, check_known
from .files import plain, write_json
from .frequency import group_title

TASKS = {"bbox": "boxes", "segm": "masks"}
"""Tasks of detectors, and the name of their output."""

T = TypeVar("T")
_RCF = ("r", "c", "f")
_SECTIONS = ("rows", "provenance", "classes", "class_ap")
_CLASS_FIELDS = ("names", "labels", "groups", "image_count", "instance_count")


@dataclass(frozen=True)
class ResultRow:
    """The metrics of one calibration.

    Attributes:
        calibration (str): as written, for example "norcal(gamma=0.6)".
        tasks (dict[str, dict[str, float]]): "bbox" and, with a mask head, "segm"; for an image
            classifier "image", and "ood SET" for unknown images; metric -> percent, NaN where
            undefined.
    """

    calibration: str
    tasks: Mapping[str, Mapping[str, float]]


@dataclass(frozen=True)
class ClassInfo:
    """The classes of a data set.

    Attributes:
        names (tuple[str, ...]): K names.
        labels (tuple[str, ...]): K short names for pictures, such as the drawn character.
        groups (tuple[str, ...]): K names of groups, such as LVIS's "r", "c", "f".
        image_count (ndarray): (K,) training images.
        instance_count (ndarray): (K,) training objects.
    """

    names: tuple[str, ...]
    labels: tuple[str, ...]
    groups: tuple[str, ...]
    image_count: np.ndarray
    instance_count: np.ndarray

    def __post_init__(self) -> None:
        # Read from json they are lists; a frozen dataclass can be changed only in this way.
        for name in ("image_count", "instance_count"):
            object.__setattr__(self, name, np.asarray(getattr(self, name), dtype=np.int64))
        lengths = {name: len(getattr(self, name)) for name in _CLASS_FIELDS}
        if len(set(lengths.values())) > 1:
            raise UserError(f"The classes have columns of different lengths: {lengths}.")
        if not self.names:
            raise UserError(
                "The list of classes is empty; leave the field out if the classes are unknown."
            )

    def __len__(self) -> int:
        return len(self.names)

    @functools.cached_property
    def group_names(self) -> tuple[str, ...]:
        """LVIS's r, c, f, if no other group occurs; else groups by increasing number of images."""
        if set(self.groups) <= set(_RCF):
            return _RCF
        mean = {
            name: self.image_count[self._in(name)].mean() for name in dict.fromkeys(self.groups)
        }
        return tuple(sorted(mean, key=lambda name: (mean[name], name)))

    @functools.cached_property
    def is_rare(self) -> np.ndarray:
        """Mark classes of the first group, which has the fewest images, (K,) bool."""
        return self._in(self.group_names[0])

    @property
    def rare_classes(self) -> str:
        """The name of these classes: "rare classes", or 'classes of "few"'."""
        name = self.group_names[0]
        return f"{group_title(name)} classes" if name in _RCF else f'classes of "{name}"'

    def _in(self, group: str) -> np.ndarray:
        return np.array([name == group for name in self.groups])


@dataclass(frozen=True)
class Results:
    """The content of `results.json`.

    Attributes:
        rows (tuple[ResultRow, ...]): one per calibration, including the uncalibrated one.
        provenance (dict): origin of the figures.
        classes (ClassInfo): the classes, or None.
    """

    rows: tuple[ResultRow, ...]
    provenance: Mapping[str, Any] = field(default_factory=dict)
    classes: ClassInfo | None = None

    def __post_init__(self) -> None:
        names = [row.calibration for row in self.rows]
        if UNCALIBRATED not in names:
            raise UserError(
                f"The results contain {', '.join(names) or 'no calibration'}; they need "
                f"'{UNCALIBRATED}' to compare with. Evaluate it as well."
            )
        repeated = sorted({name for name in names if names.count(name) > 1})
        if repeated:
            raise UserError(f"The results have several rows of {', '.join(repeated)}.")
        for row in self.rows:
            if set(row.tasks) != set(self.rows[0].tasks):
                raise UserError(
                    f"'{row.calibration}' was evaluated for {', '.join(row.tasks)}, '{names[0]}' "
                    f"for {', '.join(self.rows[0].tasks)}. Evaluate all for the same tasks."
                )

    @property
    def tasks(self) -> tuple[str, ...]:
        """The tasks that were evaluated, boxes first."""
        found = self.rows[0].tasks
        return (*(task for task in TASKS if task in found), *(t for t in found if t not in TASKS))

    def row(self, calibration: str) -> ResultRow:
        """Return the row of a calibration.

        Raises:
            KeyError: no such calibration; the message lists the existing ones.
        """
        rows = {row.calibration: row for row in self.rows}
        check_known("calibration", calibration, rows, " in these results")
        return rows[calibration]

    def to_dict(self) -> dict[str, Any]:
        """Return the content of the file."""
        content: dict[str, Any] = {
            "rows": [{"calibration": row.calibration, **row.tasks} for row in self.rows],
            "provenance": dict(self.provenance),
        }
        if self.classes is not None:
            content["classes"] = {name: getattr(self.classes, name) for name in _CLASS_FIELDS}
        return plain(content)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the file; on failure an existing file stays intact."""
        write_json(path, self.to_dict())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Results:
        """Read a result file.

        Raises:
            FileNotFoundError: the file does not exist.
            ValueError: another format, or a missing field, which the message names.
        """
        return _read(path, cls.from_dict)

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Results:
        """The inverse of :meth:`to_dict`.

        Raises:
            ValueError: a field is missing or unknown; the message names it.
        """
        rows = _rows(content)
        classes = content.get("classes")
        if classes is not None:
            _check_keys("classes", classes, required=_CLASS_FIELDS, known=_CLASS_FIELDS)
            texts = {name: tuple(classes[name]) for name in _CLASS_FIELDS[:3]}
            counts = {name: classes[name] for name in _CLASS_FIELDS[3:]}
            classes = ClassInfo(**texts, **counts)
        return cls(rows, content.get("provenance", {}), classes)


def read_rows(path: str | os.PathLike[str]) -> tuple[ResultRow, ...]:
    """Read the rows of a result file, whatever their metrics.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: another format.
    """
    return _read(path, _rows)


def _read(path: str | os.PathLike[str], parse: Callable[[Any], T]) -> T:
    path = Path(path)
    if not path.is_file():
        raise MissingFileError(
            f"The result file '{path}' does not exist. Write one with: logn sweep ... --output "
            f"{path.parent}"
        )
    try:
        return parse(json.loads(path.read_text(encoding="utf-8")))
    except ValueError as error:
        raise UserError(f"'{path}' can't be used: {error}") from error


def _rows(content: Any) -> tuple[ResultRow, ...]:
    _check_keys("The result file", content, required=("rows",), known=_SECTIONS)
    return tuple(_read_row(index, row) for index, row in enumerate(content["rows"]))


def _read_row(index: int, row: Mapping[str, Any]) -> ResultRow:
    name = f"Row {index} ({row.get('calibration', 'unnamed')})"
    known = ("calibration", *TASKS)
    if "image" in row:
        known = ("calibration", "image", *(task for task in row if task.startswith("ood ")))
    _check_keys(name, row, required=known[:2], known=known)
    tasks = {}
    for task in (task for task in known[1:] if task in row):
        required = {"image": ("acc",)}.get(task, ("AP",) if task in TASKS else ())
        _check_keys(f"{name}, {task},", row[task], required=required)
        tasks[task] = dict(zip(row[task], _numbers(row[task].values()).tolist(), strict=True))
    return ResultRow(row["calibration"], tasks)


def _check_keys(
    what: str, found: Any, *, required: Sequence[str], known: Sequence[str] | None = None
) -> None:
    """Refuse a mapping with a missing key, or with a key that would be ignored."""
    if not isinstance(found, Mapping):
        raise UserError(f"{what} is a {type(found).__name__}, expected an object with fields.")
    missing = [key for key in required if key not in found]
    if missing:
        raise UserError(
            f"{what} lacks {', '.join(missing)}; it has {', '.join(found) or 'nothing'}. "
            "Write the results again with this version."
        )
    unknown = [key for key in found if known is not None and key not in known]
    if unknown:
        raise UserError(
            f"{what} has unknown fields {', '.join(unknown)}; known are {', '.join(known or ())}."
        )


def _numbers(values: Any) -> np.ndarray:
    """Convert to float64 with NaN for None.

    Raises:
        ValueError: a value that is not a number.
    """
    values = list(values)
    try:
        return np.array([math.nan if value is None else float(value) for value in values])
    except TypeError:
        raise UserError(f"Expected numbers or null, found {values[:5]}.") from None
