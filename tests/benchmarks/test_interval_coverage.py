"""Intervals hold the average over validation sets as often as documented, rare classes too."""

from __future__ import annotations

import argparse
from dataclasses import replace

import pytest

from ..load_script import load_script


@pytest.fixture(scope="module")
def found():
    script = load_script("benchmarks/interval_coverage.py")
    script.NUM_CLASSES = 8
    args = argparse.Namespace(sets=60, resamples=60, seed=0)
    runs = list(script.results(args, script.IMAGES_PER_CLASS["few (3)"]))
    return script, [list(each) for each in zip(*runs)]


def test_intervals_of_few_images_hold_the_average_in_most_sets(found):
    script, (figures, differences) = found
    for results in (figures, differences):
        mean, following = script.coverage(results, "centred")
        # 60 sets: a share of 0.9 has a standard deviation of 0.04.
        assert 0.75 <= mean <= 1.0
        # Another single set varies as much again, so that an interval is not for it.
        assert following < mean


def test_narrower_intervals_would_hold_it_less_often(found):
    script, (figures, _) = found
    narrow = [replace(each, level=0.5) for each in figures]
    assert script.coverage(narrow, "centred")[0] < 0.75
