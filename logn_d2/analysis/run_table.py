"""Text tables of one or more runs (such as before and after a calibration), by group."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tabulate import tabulate

__all__ = ["run_table"]


def run_table(
    groups: Sequence[str],
    runs: Sequence[str],
    headers: Sequence[str],
    cells: Callable[[str, str], Sequence[str] | None],
) -> str:
    """Format a Markdown table with adjacent lines for the runs of a group.

    Args:
        groups (Sequence[str]): names.
        runs (Sequence[str]): names; a single unnamed run gets no column.
        headers (Sequence[str]): headers of the columns after group and run.
        cells (Callable): maps group and run to these columns, or to None for no line.

    Example:
        >>> print(run_table(["all", "r"], [""], ["AP"], lambda group, run: [group.upper()]))
        | group   |   AP |
        |:--------|-----:|
        | all     |  ALL |
        | r       |    R |
    """
    named = list(runs) != [""]
    lines = []
    for group in groups:
        for run in runs:
            row = cells(group, run)
            if row is not None:
                lines.append([group, *([run] if named else []), *row])
    names = ["group", "run"] if named else ["group"]
    align = ["left"] * len(names) + ["right"] * len(headers)
    headers = [*names, *headers]
    return tabulate(lines, headers, tablefmt="pipe", disable_numparse=True, colalign=align)
