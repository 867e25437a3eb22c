"""The same detections under several limits, beside fixed AP."""

from __future__ import annotations

import types

import numpy as np

from logn_d2.lvis import Detections, LvisGroundTruth, evaluate_fixed_ap, evaluate_lvis

from ..load_script import load_script
from ..lvis.lvis_reference import random_detections, random_lvis


def test_each_calibration_has_a_row_for_each_limit_and_changes_are_of_the_first() -> None:
    script = load_script("benchmarks/detection_limit.py")
    rng = np.random.default_rng(0)
    dataset = random_lvis(rng, with_masks=False)
    truth = LvisGroundTruth.from_dict(dataset)
    found = [
        Detections.from_json_list(
            random_detections(rng, dataset, per_image=60, with_masks=False), truth.category_ids
        )
        for _ in range(2)
    ]
    sweep = types.SimpleNamespace(names=("uncalibrated", "logn"), detections=lambda n: by_name[n])
    by_name = dict(zip(sweep.names, found, strict=True))
    lines = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in script.table(truth, sweep, [5, 50]).splitlines()[2:]
    ]
    assert [line[:2] for line in lines] == [
        [how, name]
        for how in ("AP of 5 an image", "AP of 50 an image", "fixed AP")
        for name in sweep.names
    ]
    limited = [evaluate_lvis(truth, each, max_dets=5).as_dict()["AP"] for each in found]
    assert lines[0][2] == f"{limited[0]:.1f}" and lines[1][2] == f"{limited[1] - limited[0]:+.1f}"
    fixed = [evaluate_fixed_ap(truth, each).as_dict()["AP"] for each in found]
    assert lines[4][2] == f"{fixed[0]:.1f}" and lines[5][2] == f"{fixed[1] - fixed[0]:+.1f}"
