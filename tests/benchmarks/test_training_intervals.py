"""Cells over several trainings: mean, spread, and the interval of the mean."""

from __future__ import annotations

import re
import types

import numpy as np
import pytest

from logn_d2.analysis import bootstrap_difference, bootstrap_lvis
from logn_d2.lvis import Detections, LvisGroundTruth, match_lvis

from ..load_script import load_script
from ..lvis.lvis_reference import random_detections, random_lvis

RESAMPLES = 40


@pytest.fixture(scope="module")
def made():
    """The script, annotations, and two trainings' detections under two calibrations."""
    script = load_script("benchmarks/training_intervals.py")
    rng = np.random.default_rng(0)
    dataset = random_lvis(rng, with_masks=False)
    truth = LvisGroundTruth.from_dict(dataset)
    trainings = {
        folder: {
            name: Detections.from_json_list(
                random_detections(rng, dataset, per_image=30, with_masks=False), truth.category_ids
            )
            for name in ("uncalibrated", "logn")
        }
        for folder in ("seed0", "seed1")
    }
    return script, truth, trainings


def rows(script, truth, trainings, monkeypatch):
    def load(folder):
        found = trainings[folder.parent.name]
        return types.SimpleNamespace(names=tuple(found), detections=found.__getitem__)

    monkeypatch.setattr(script, "SweepDetections", types.SimpleNamespace(load=load))
    folders = [script.Path(name) for name in trainings]
    text = script.table(truth, folders, RESAMPLES)
    return [
        [[float(each) for each in re.findall(r"[-+]?[\d.]+", cell)] for cell in cells]
        for cells in (line.strip("|").split("|")[1:] for line in text.splitlines()[2:])
    ]


def test_one_training_has_the_intervals_of_the_bootstrap(made, monkeypatch):
    script, truth, trainings = made
    own = trainings["seed0"]
    base, change = rows(script, truth, {"seed0": own}, monkeypatch)
    first, second = (match_lvis(truth, own[name]) for name in own)
    expected = bootstrap_lvis(first, resamples=RESAMPLES)
    difference = bootstrap_difference(first, second, resamples=RESAMPLES)
    for row, result in ((base, expected), (change, difference)):
        for cell, figure in zip(row, script.FIGURES, strict=True):
            if cell:
                numbers = [result.estimate[figure], *result.intervals[figure]]
                np.testing.assert_allclose(cell, 100 * np.array(numbers), atol=0.051)


def test_several_trainings_have_their_mean_and_spread(made, monkeypatch):
    script, truth, trainings = made
    _, change = rows(script, truth, trainings, monkeypatch)
    differences = [
        bootstrap_difference(*(match_lvis(truth, each) for each in found.values()), resamples=1)
        for found in trainings.values()
    ]
    values = np.array([100 * each.estimate["AP"] for each in differences])
    np.testing.assert_allclose(change[0][:2], [values.mean(), values.std(ddof=1)], atol=0.051)
    assert change[0][2] < change[0][0] < change[0][3]


def test_equal_trainings_have_no_spread_and_the_interval_of_one(made, monkeypatch):
    script, truth, trainings = made
    twice = {"seed0": trainings["seed0"], "seed1": trainings["seed0"]}
    one = rows(script, truth, {"seed0": trainings["seed0"]}, monkeypatch)
    two = rows(script, truth, twice, monkeypatch)
    for single, double in zip(one[1], two[1], strict=True):
        if single:
            assert double == [single[0], 0.0, *single[1:]]
