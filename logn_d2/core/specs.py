"""The small language of configs and command lines: the name of a method with its options."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable, Iterable
from numbers import Integral, Real
from typing import Any

from ..errors import UserError


def parse_call(text: str, kind: str, example: str) -> tuple[str, dict[str, Any]]:
    """Parse a name, or a call with keywords.

    Args:
        text (str): for example "logn" or "norcal(gamma=0.6)" or "logn(beta=mean, std_power=2)".
        kind (str): kind of method, for the error message, for example "calibration".
        example (str): an example for the error message.

    Returns:
        tuple[str, dict]: the name, and the options; a bare word is a string, a call its text.

    Raises:
        ValueError: the text has another form.

    Example:
        >>> parse_call("logn(beta=mean, std_power=2)", "calibration", "norcal(gamma=0.6)")
        ('logn', {'beta': 'mean', 'std_power': 2})
    """
    try:
        # Python's own grammar, but nothing is evaluated: names stay text, and values must be
        # literals.
        node = ast.parse(text.strip(), mode="eval").body
        if isinstance(node, ast.Name):
            return node.id, {}
        if isinstance(node, ast.Call):
            return _name_and_options(node)
        raise UserError("neither a name nor a call")
    # literal_eval raises ValueError for anything but a literal, and deeply nested text overflows
    # the parser.
    except (RecursionError, SyntaxError, TypeError, ValueError):
        raise UserError(
            f"Can't read the {kind} {text!r}. Write a name or a call with keywords, for example "
            f"{example}."
        ) from None


def check_options(text: str, kind: str, entry: Callable, given: Iterable[str]) -> None:
    """Check that a registered function or class has the given options.

    Args:
        text (str): the whole text, for the error message.
        kind (str): kind of method, for example "loss".
        entry (Callable): its keyword-only arguments are the options.
        given (Iterable[str]): names of options.

    Raises:
        ValueError: an option is unknown; the message lists the known ones.

    Example:
        >>> def focal(num_classes, *, gamma=2.0):
        ...     pass
        >>> check_options("focal(gamma=1)", "loss", focal, ["gamma"])
    """
    parameters = inspect.signature(entry).parameters.values()
    # Positional arguments, such as the number of classes, come from the program and not from the
    # text.
    known = [each.name for each in parameters if each.kind is each.KEYWORD_ONLY]
    unknown = [name for name in given if name not in known]
    if unknown:
        raise UserError(
            f"The {kind} {text!r} has no option {', '.join(unknown)}. Its options: "
            f"{', '.join(known) or 'none'}."
        )


def check_bool(name: str, value: Any) -> None:
    """Check an option that is on or off; a bare word such as ``no`` is a string, and would be true.

    Args:
        name (str): name of the option, for the error message.
        value (Any): the given value.

    Raises:
        ValueError: neither True nor False.

    Example:
        >>> check_bool("use_mean", False)
    """
    if not isinstance(value, bool):
        raise UserError(f"{name} is {value!r}, expected True or False.")


def check_number(name: str, value: Any, interval: str, *, whole: bool = False) -> None:
    """Check a number from a config or command line.

    Args:
        name (str): name of the option, for the error message.
        value (Any): the given value.
        interval (str): allowed values, for example "[0, 1)"; a square bracket includes its end.
        whole (bool): whether it must be an integer.

    Raises:
        ValueError: no number, or outside the interval.

    Example:
        >>> check_number("momentum", 0.9, "[0, 1)")
    """
    low, high = map(float, interval[1:-1].split(","))
    # numpy's numbers register with these abstract types; True would pass as 1.
    is_number = isinstance(value, Integral if whole else Real) and not isinstance(value, bool)
    if (
        not is_number
        # NaN fails every comparison, and so this one.
        or not low <= value <= high
        or (value == low and interval[0] == "(")
        or (value == high and interval[-1] == ")")
    ):
        kind = "a whole number" if whole else "a number"
        raise UserError(f"{name} is {value!r}, expected {kind} in {interval}.")


def _name_and_options(node: ast.Call) -> tuple[str, dict[str, Any]]:
    if not isinstance(node.func, ast.Name) or node.args:
        raise UserError("another call")
    options = {}
    for keyword in node.keywords:
        # `**` has no name. Python itself refuses a repeated keyword only when it compiles.
        if keyword.arg is None or keyword.arg in options:
            raise UserError("**, or a keyword twice")
        options[keyword.arg] = _value(keyword.value)
    return node.func.id, options


def _value(node: ast.expr) -> Any:
    """A literal; a bare word is a string, so that beta=mean needs no quotes; a call is its text."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Call):
        # Parsed only to refuse what could not be read later, when the inner method is made.
        _name_and_options(node)
        return ast.unparse(node)
    return ast.literal_eval(node)
