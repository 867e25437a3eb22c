"""The examples in the docstrings pass."""

import doctest
import importlib
import pkgutil

import logn_d2


def test_examples_of_all_modules():
    results = {
        module.name: doctest.testmod(importlib.import_module(module.name))
        for module in pkgutil.walk_packages(logn_d2.__path__, "logn_d2.")
        if not module.name.endswith("__main__")
    }
    assert [name for name, result in results.items() if result.failed] == []
    assert sum(result.attempted for result in results.values()) > 150
