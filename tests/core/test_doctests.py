"""Every public name of logn_d2.core has an example, and all examples pass."""

import doctest
import importlib
import inspect
import pkgutil

import pytest

import logn_d2.core
import logn_d2.core.losses

MODULES = [module.name for module in pkgutil.walk_packages(logn_d2.core.__path__, "logn_d2.core.")]


@pytest.mark.parametrize("name", MODULES)
def test_examples_of(name):
    failures, _ = doctest.testmod(importlib.import_module(name))
    assert failures == 0


@pytest.mark.parametrize("package", [logn_d2.core, logn_d2.core.losses], ids=lambda p: p.__name__)
def test_every_public_function_and_class_has_an_example(package):
    things = {name: getattr(package, name) for name in package.__all__}
    without = [
        name
        for name, thing in things.items()
        if (inspect.isfunction(thing) or inspect.isclass(thing))
        and not (inspect.isclass(thing) and issubclass(thing, Exception))
        and ">>>" not in (thing.__doc__ or "")
    ]
    assert without == []


def test_every_public_name_is_there_once():
    names = logn_d2.core.__all__
    assert all(hasattr(logn_d2.core, name) for name in names)
    assert len(set(names)) == len(names)
