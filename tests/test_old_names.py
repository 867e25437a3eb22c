"""Old names still work, with a warning that names the new ones."""

import importlib
import sys

import pytest

import logn_d2.evaluation as old
from logn_d2 import sweeps


def test_every_old_name_is_the_new_one():
    for name, package in old._NAMES.items():
        with pytest.warns(DeprecationWarning, match=f"{name} is logn_d2.{package}.{name} now"):
            found = getattr(old, name)
        assert found is getattr(importlib.import_module(f"logn_d2.{package}"), name)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        old.nothing  # noqa: B018


def test_every_old_module_is_the_new_one():
    for name, new in old._MODULES.items():
        sys.modules.pop(f"logn_d2.evaluation.{name}", None)
        with pytest.warns(DeprecationWarning, match=f"evaluation.{name} is logn_d2.{new} now"):
            found = importlib.import_module(f"logn_d2.evaluation.{name}")
        moved = importlib.import_module(f"logn_d2.{new}")
        assert found is moved and moved.__spec__.name == moved.__name__ == f"logn_d2.{new}"
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("logn_d2.evaluation.nothing")


def test_stored_predictions_are_outputs_and_those_of_a_sweep_are_detections():
    names = {"StoredPredictions": "StoredOutputs", "SweepPredictions": "SweepDetections"}
    for name, new in names.items():
        with pytest.warns(DeprecationWarning, match=f"{name} is logn_d2.sweeps.{new} now"):
            assert getattr(sweeps, name) is getattr(sweeps, new)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        sweeps.nothing  # noqa: B018
