"""Text tables of one or more runs (such as before and after a calibration), by group."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tabulate import tabulate


def markdown(lines: Sequence[Sequence[object]], headers: Sequence[str], texts: int = 1) -> str:
    """Format a Markdown table of finished cells.

    Args:
        lines (Sequence[Sequence]): cells of each line.
        headers (Sequence[str]): headers of the columns.
        texts (int): number of leading columns with text; numbers are aligned on the right.
    """
    align = ["left"] * texts + ["right"] * (len(headers) - texts)
    return tabulate(lines, headers, tablefmt="pipe", disable_numparse=True, colalign=align)


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
    return markdown(lines, [*names, *headers], len(names))
