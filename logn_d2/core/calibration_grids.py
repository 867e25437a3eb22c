"""Grids of calibrations: one text that stands for several, for example norcal(gamma=0.2:1:0.2)."""

from __future__ import annotations

import ast
import itertools
import re
from collections.abc import Iterator
from decimal import Decimal

from ..errors import UserError

# A typing error in a step should not start a sweep of a million calibrations.
MAX_GRID = 1000

_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
_QUOTED = r"\"(?:\\.|[^\"\\])*\"|'(?:\\.|[^'\\])*'"
# Quoted text is matched first, so that a range inside it stays text.
_RANGE = re.compile(rf"{_QUOTED}|({_NUMBER})\s*:\s*({_NUMBER})\s*:\s*({_NUMBER})")


def expand_grid(text: str) -> tuple[str, ...]:
    """Expand a text into the calibrations that it stands for.

    An option can be a list, ``[0.2, 0.4]``, or a range ``start:stop:step`` that contains its stop.
    Several of them, also inside groups(...), give all combinations; the first varies slowest.

    Args:
        text (str): as for `parse_calibration`, or with lists and ranges as values.

    Returns:
        tuple[str, ...]: texts for `parse_calibration`; only the given text, unchanged, if it
        contains no list or range.

    Raises:
        ValueError: an empty list or range, or more than `MAX_GRID` calibrations.

    Example:
        >>> expand_grid("norcal(gamma=0.2:0.6:0.2)")
        ('norcal(gamma=0.2)', 'norcal(gamma=0.4)', 'norcal(gamma=0.6)')
        >>> expand_grid("logn(beta=[min, mean], std_power=[1, 2])")[1:3]
        ('logn(beta=min, std_power=2)', 'logn(beta=mean, std_power=1)')
    """
    # Lazily, one beyond the limit: the product of a few ranges may have billions of members.
    found = list(itertools.islice(_expanded(_RANGE.sub(_listed, text), text), MAX_GRID + 1))
    if len(found) > MAX_GRID:
        raise UserError(
            f"The grid {text!r} stands for more than {MAX_GRID} calibrations. Take larger steps."
        )
    # A value that two lists share would otherwise be evaluated twice; the order of the text is
    # kept.
    return tuple(dict.fromkeys(found))


def _expanded(spelled: str, text: str) -> Iterator[str]:
    """One text after the other, by choosing from the first list that is left."""
    try:
        tree = ast.parse(spelled.strip(), mode="eval")
    except SyntaxError:
        yield text  # parse_calibration says what is wrong with it
        return
    # Breadth first, so that outer options vary slowest, as in nested loops.
    keywords = (node for node in ast.walk(tree) if isinstance(node, ast.keyword))
    first = next((each for each in keywords if isinstance(each.value, ast.List)), None)
    if first is None:
        yield text
        return
    values = first.value.elts
    if not values:
        raise UserError(f"The grid {text!r} has an empty list of values for {first.arg}.")
    for value in values:
        # The tree is changed in place and unparsed before the next value replaces this one.
        first.value = value
        chosen = ast.unparse(tree.body)
        yield from _expanded(chosen, chosen)


def _listed(match: re.Match[str]) -> str:
    """The range as a list; quoted text as it is."""
    if match[1] is None:
        return match[0]
    start, stop, step = map(Decimal, match.groups())  # 0.2 + 0.4 is 0.6 here
    if step == 0 or (stop - start) / step < 0:
        raise UserError(
            f"The range {match[0]} is empty or endless. Write start:stop:step, for example "
            "0.2:1:0.2."
        )
    count = int((stop - start) / step) + 1
    if count > MAX_GRID:
        raise UserError(f"The range {match[0]} has {count} values, expected at most {MAX_GRID}.")
    return f"[{', '.join(str(start + index * step) for index in range(count))}]"
