"""Running a model only for its logits, without changing it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import nn

from ..errors import UserError


class PassEnds(BaseException):
    """Ends a pass. Not an Exception: a model's own "except Exception" must not stop it."""


@contextmanager
def shadowed(module: nn.Module, name: str, function: Callable) -> Iterator[None]:
    """Replace one instance's method for the context."""
    # Directly into __dict__, because nn.Module refuses a function under the name of a submodule.
    missing = object()
    before = module.__dict__.get(name, missing)
    module.__dict__[name] = function
    try:
        yield
    finally:
        if before is missing:
            del module.__dict__[name]
        else:
            module.__dict__[name] = before


@contextmanager
def evaluation_mode(model: nn.Module, training: Sequence[nn.Module | None] = ()) -> Iterator[None]:
    """Set evaluation mode everywhere except in these modules (not their children).

    Compiled modules run eagerly, because compiled code ignores the hooks of a pass.
    """
    # Flags and not train(): that would also change the children.
    before = [(module, module.training) for module in model.modules()]
    in_training = {id(module) for module in training}
    try:
        for module, _ in before:
            module.training = id(module) in in_training
        with _eager():
            yield
    finally:
        for module, mode in before:
            module.training = mode


def forget_compiled() -> None:
    """Make compiled modules compile again, because they do not notice changed hooks."""
    if _may_be_compiled():
        torch.compiler.reset()


def _eager() -> AbstractContextManager:
    if _may_be_compiled() and hasattr(torch.compiler, "set_stance"):  # since PyTorch 2.6
        return torch.compiler.set_stance("force_eager")
    return nullcontext()


def _may_be_compiled() -> bool:
    """Whether torch.compile was called; importing its code only for this would take seconds."""
    return "torch._dynamo" in sys.modules


def heard(model: nn.Module, owner: nn.Module, method: str, run: Callable[[], Any]) -> tuple:
    """The arguments of a method that a model calls in training; the pass ends at that call.

    Only the model itself and the method's owner are in training mode, so that all layers compute
    the logits of test time.

    Args:
        model (nn.Module): the detector.
        owner (nn.Module): owner of the method.
        method (str): such as "losses".
        run (Callable): runs the model.

    Raises:
        RuntimeError: the model did not call it.
    """
    arguments: list[tuple] = []

    def listen(*args: Any, **kwargs: Any) -> None:
        # As one tuple, since releases pass the same arguments by position or by name.
        arguments.append((*args, *kwargs.values()))
        raise PassEnds

    with evaluation_mode(model, [model, owner]), shadowed(owner, method, listen):
        try:
            run()
        except PassEnds:
            return arguments[0]
    raise RuntimeError(f"The model ended its pass without calling {type(owner).__name__}.{method}.")


def check_ground_truth(inputs: Sequence[Mapping[str, Any]], key: str, advice: str) -> None:
    """Raise a UserError if an input lacks its ground truth."""
    if any(key not in each for each in inputs):
        raise UserError(
            f"Candidates can't be matched without ground truth, and an input has no {key!r}. "
            f"{advice}, or use the population 'proposals'."
        )
