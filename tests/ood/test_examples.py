"""Every public name has an example that says the truth, and the package needs numpy alone."""

import doctest
import importlib
import inspect
import pkgutil
import subprocess
import sys

import pytest

import logn_d2.ood

MODULES = [module.name for module in pkgutil.walk_packages(logn_d2.ood.__path__, "logn_d2.ood.")]


@pytest.mark.parametrize("name", MODULES)
def test_examples_of(name):
    failures, examples = doctest.testmod(importlib.import_module(name))
    assert examples and not failures


def test_every_public_function_has_an_example():
    things = {name: getattr(logn_d2.ood, name) for name in logn_d2.ood.__all__}
    functions = {name: thing for name, thing in things.items() if inspect.isfunction(thing)}
    assert [name for name, thing in functions.items() if ">>>" not in thing.__doc__] == []


def test_works_where_nothing_but_numpy_is_installed():
    code = """
import sys
for name in ("torch", "detectron2", "scipy", "sklearn", "pytorch_ood", "PIL", "cv2"):
    sys.modules[name] = None
from logn_d2.ood import energy, evaluate_ood
print(evaluate_ood(energy([[3.0, 0.0]]), energy([[1.0, 1.0]])).auroc)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout.strip() == "1.0", result.stderr
