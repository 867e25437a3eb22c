"""Losses by name, for configs and command lines.

Shapes: K foreground classes.
"""

from __future__ import annotations

from typing import Any

from ...errors import UserError
from ...frequency import CountsSource
from ..registry import Registry
from ..specs import check_options, parse_call
from .base import ClassificationLoss

LOSS_REGISTRY: Registry = Registry("loss")
"""Name -> a `ClassificationLoss`, called as ``entry(num_classes, **options)``, or as
``entry(num_classes, counts=counts, **options)`` if it ``needs_counts``."""


def parse_loss(text: str) -> tuple[str, dict[str, Any]]:
    """Parse the text of a loss: a name, or a call with keywords.

    Args:
        text (str): for example "focal" or "seesaw(p=0.8, q=2.0)".

    Returns:
        tuple[str, dict]: the name in `LOSS_REGISTRY`, and the options.

    Raises:
        KeyError: unknown name; the message lists the known ones.
        ValueError: the text has another form, or the loss does not have one of the options.

    Example:
        >>> parse_loss("seesaw(p=0.8, q=2.0)")
        ('seesaw', {'p': 0.8, 'q': 2.0})
    """
    name, options = parse_call(text, "loss", "seesaw(p=0.8, q=2.0)")
    entry = LOSS_REGISTRY.get(name)
    if entry.needs_counts and "counts" in options:
        raise UserError(f"The loss {text!r} gets its counts from the training set, not from text.")
    check_options(text, "loss", entry, options)
    return name, options


def build_loss(
    text: str,
    num_classes: int,
    counts: CountsSource = None,
) -> ClassificationLoss:
    """Build a loss from its text.

    Args:
        text (str): see `parse_loss`.
        num_classes (int): K.
        counts (ClassCounts): counts of the training set, for losses that need them; a function that
            returns them, called in the first training step; or None for a model that is only tested
            and whose checkpoint contains them.

    Returns:
        ClassificationLoss: a new object; each cascade stage needs its own.

    Raises:
        KeyError: unknown name; the message lists the known ones.
        ValueError: unknown options or wrong values.

    Example:
        >>> loss = build_loss("seesaw(p=0.8, q=2.0)", num_classes=3)
        >>> loss.num_outputs
        5
    """
    name, options = parse_loss(text)
    entry = LOSS_REGISTRY.get(name)
    if entry.needs_counts:
        options["counts"] = counts
    return entry(num_classes, **options)
