"""Caching of data sets while a training starts, so that each is read once.

Checks, class counts, repeat factors and the loader each load the training set, which takes half a
minute and gigabytes for LVIS.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from detectron2.data import DatasetCatalog

from .lvis_loader import lvis_mistakes_named

Record = dict[str, Any]


@contextmanager
def records_kept(names: Sequence[str]) -> Iterator[None]:
    """Load each data set on first use and keep it until the context ends.

    Afterwards the catalogue is restored and the memory is free. Each caller gets its own list, but
    the records in it are shared and must not be changed.

    Args:
        names (Sequence[str]): registered data sets, including Detectron2's own; others are ignored.

    Example:
        >>> with records_kept(["lt_glyphs_tiny_train"]):  # doctest: +SKIP
        ...     class_counts("lt_glyphs_tiny_train")  # loads
        ...     class_counts("lt_glyphs_tiny_train")  # does not
    """
    registered = DatasetCatalog.list()
    # A set that an outer context keeps already stays with that one.
    readers = {
        name: _OnceReader(name, DatasetCatalog[name])
        for name in names
        if name in registered and not is_kept(name)
    }
    # As a dictionary: `register` refuses a name that exists.
    DatasetCatalog.update(readers)
    try:
        yield
    finally:
        for name, reader in readers.items():
            # A name that was registered again meanwhile is left alone.
            if name in DatasetCatalog.list() and DatasetCatalog[name] is reader:
                DatasetCatalog[name] = reader.load


def is_kept(name: str) -> bool:
    """Whether a data set is currently kept by `records_kept`."""
    return name in DatasetCatalog.list() and isinstance(DatasetCatalog[name], _OnceReader)


def release_records(names: Sequence[str]) -> None:
    """Free the records of data sets before the context of `records_kept` ends.

    Args:
        names (Sequence[str]): data sets; those that are not kept are ignored.
    """
    for name in filter(is_kept, names):
        reader = DatasetCatalog[name]
        reader.forget()  # the context still refers to it
        DatasetCatalog[name] = reader.load


class _OnceReader:
    """Replaces a data set's function in the catalogue."""

    def __init__(self, name: str, load: Any) -> None:
        self._name = name
        self.load = load
        self._records: list[Record] | None = None

    def __call__(self) -> list[Record]:
        if self._records is None:
            with lvis_mistakes_named([self._name]):
                self._records = self.load()
        return list(self._records)  # a caller may sort or cut its list

    def forget(self) -> None:
        """Free the records."""
        self._records = None
