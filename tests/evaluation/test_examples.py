"""The examples in the docstrings say the truth."""

import doctest
import importlib

import pytest


@pytest.mark.parametrize(
    "name",
    ["calibration_quality", "detection_outcomes", "errors", "run_table", "score_threshold"],
)
def test_examples_of(name: str) -> None:
    module = importlib.import_module(f"logn_d2.evaluation.{name}")
    failures, examples = doctest.testmod(module)
    assert examples and not failures
