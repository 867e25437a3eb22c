"""Data sets that are read once while a training starts, though many parts ask for them.

Checks, class counts, repeat factors and the loader each load the training set. LVIS's json takes
half a minute and gigabytes each time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from detectron2.data import DatasetCatalog

__all__ = ["is_kept", "records_kept"]

Record = dict[str, Any]


@contextmanager
def records_kept(names: Sequence[str]) -> Iterator[None]:
    """Inside, each data set is loaded when it is first asked for, and not again.

    Afterwards the catalogue is as before, and the memory is free. A list that the catalogue gives
    is its caller's own; the records in it are shared and must not be changed.

    Args:
        names (Sequence[str]): registered data sets, Detectron2's own included; others are ignored.

    Example:
        >>> with records_kept(["lt_glyphs_tiny_train"]):  # doctest: +SKIP
        ...     class_counts("lt_glyphs_tiny_train")  # loads
        ...     class_counts("lt_glyphs_tiny_train")  # does not
    """
    registered = DatasetCatalog.list()
    readers = {
        name: _OnceReader(DatasetCatalog[name])
        for name in names
        if name in registered and not is_kept(name)
    }
    DatasetCatalog.update(readers)
    try:
        yield
    finally:
        for name, reader in readers.items():
            # Not where somebody registered the name anew meanwhile.
            if name in DatasetCatalog.list() and DatasetCatalog[name] is reader:
                DatasetCatalog[name] = reader.load


def is_kept(name: str) -> bool:
    """Whether a data set is inside of `records_kept`."""
    return name in DatasetCatalog.list() and isinstance(DatasetCatalog[name], _OnceReader)


class _OnceReader:
    """Stands in the catalogue for a data set's function."""

    def __init__(self, load: Any) -> None:
        self.load = load
        self._records: list[Record] | None = None

    def __call__(self) -> list[Record]:
        if self._records is None:
            self._records = self.load()
        return list(self._records)
