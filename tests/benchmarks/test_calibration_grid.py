"""The grid of calibrations: every point can be built, and the verdict is arithmetic."""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path

import pytest
import torch

from logn_d2.core import (
    CalibrationInputs,
    LogitMoments,
    PosteriorMoments,
    StageStatistics,
    build_calibration,
    parse_calibration,
)

from ..load_script import load_script


@pytest.fixture(scope="module")
def grid():
    return load_script("benchmarks/calibration_grid.py")


def test_every_point_is_a_calibration_and_is_there_once(grid):
    assert [text for text, count in Counter(grid.POINTS).items() if count > 1] == []
    for text in grid.POINTS:
        parse_calibration(text)
    assert {grid.PLAIN, grid.LOGN, grid.NORCAL, grid.AUTO_POINT} <= set(grid.POINTS)


def test_tables_have_the_best_of_a_family_and_the_worst_of_the_groups(grid):
    texts = [*grid.POINTS, grid.AUTO]
    scores = {text: dict.fromkeys(grid.METRICS, 10.0) for text in texts}
    best = "p2p(alpha=0.8, offset=-1)"
    scores[best] = {"AP": 12.0, "APr": 15.0, "APc": 10.0, "APf": 9.5}
    scores[grid.AUTO] = {"AP": 11.9, "APr": 14.0, "APc": 10.0, "APf": 9.75}
    scores[grid.LOGN]["AP"], scores[grid.NORCAL]["AP"] = 9.0, 11.5
    rows = [line.strip("| ").split("|") for line in grid.table(scores).splitlines()]
    row = next([cell.strip() for cell in row] for row in rows if row[0].strip() == "P2P, all RoIs")
    assert row[1:] == [best, "+2.0", "+5.0", "+0.0", "-0.5"]
    (line,) = grid.verdict({"rfs": scores}).splitlines()[2:]
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells == ["rfs", "-0.10", "+2.90", "+0.40", "APf -0.25", "yes"]
    ends = {"rfs": {"APf": (-0.5, 0.04)}}
    assert "| APf -0.25 [-0.5, +0.0] |" in grid.verdict({"rfs": scores}, ends)


def test_a_group_without_classes_is_a_dash_and_never_the_worst(grid):
    texts = [*grid.POINTS, grid.AUTO]
    scores = {text: {"AP": 9.0, "APr": 5.0, "APc": 9.0, "APf": math.nan} for text in texts}
    scores[grid.AUTO]["APc"] = 8.0
    assert grid.worst_group(scores, grid.AUTO) == "APc"
    nobody = {text: {"AP": 9.0} | dict.fromkeys(grid.METRICS[1:], math.nan) for text in texts}
    assert grid.worst_group(nobody, grid.AUTO) == "AP"
    rows = grid.table(scores).splitlines()[2:]
    assert {row.strip("| ").split("|")[-1].strip() for row in rows} == {"-"}
    assert "nan" not in grid.over_seeds({"signs0": scores, "signs1": scores})


def test_spread_is_over_the_seeds_of_a_training(grid):
    texts = [*grid.POINTS, grid.AUTO]
    blocks = {}
    for seed, ap in enumerate((10.0, 12.0)):
        scores = {text: dict.fromkeys(grid.METRICS, ap) for text in texts}
        scores[grid.AUTO]["AP"] = ap + 1 + seed
        blocks[f"rfs/seed{seed}/cross_entropy"] = scores
    blocks["random/seed0/cross_entropy"] = blocks["rfs/seed0/cross_entropy"]
    lines = [line.replace(" ", "") for line in grid.over_seeds(blocks).splitlines()[2:]]
    assert lines[0].startswith("|rfs,cross_entropy(2)|uncalibrated|11.0±1.4|")
    auto = grid.SHOWN.index(grid.AUTO)
    assert lines[auto].startswith("|rfs,cross_entropy(2)|auto|+1.5±0.7|+0.0±0.0|")
    assert lines[-1].startswith("|random,cross_entropy(1)|auto|+1.0|+0.0|")
    runs = dict(zip(("demo0", "demo1", "other"), blocks.values(), strict=True))
    kinds = [line.split("|")[1].strip() for line in grid.over_seeds(runs).splitlines()[2:]]
    assert list(dict.fromkeys(kinds)) == ["demo (2)", "other (1)"]


def test_a_point_has_to_meet_all_three_in_every_block(grid):
    texts = [*grid.POINTS, grid.AUTO]
    scores = {text: dict.fromkeys(grid.METRICS, 10.0) for text in texts}
    scores["fracal"] = {"AP": 12.0, "APr": 15.0, "APc": 12.0, "APf": 9.8}
    scores[grid.AUTO] = {"AP": 12.2, "APr": 16.0, "APc": 12.0, "APf": 9.6}
    scores["logn_mean"]["AP"] = 11.8
    rows = grid.criteria({"a": scores, "b": scores}).splitlines()[2:]
    found = {
        cells[0]: cells[1:] for cells in ([c.strip() for c in r[1:-1].split("|")] for r in rows)
    }
    assert found["fracal"] == ["+2.0", "+2.0", "2, -0.2", "2, -0.2", "2"]
    assert found["auto"] == ["+2.2", "+2.2", "2, +0.0", "0, -0.4", "0"]
    assert found["logn_mean"] == ["+1.8", "+1.8", "0, -0.4", "2, +0.0", "0"]


def test_the_margins_are_of_the_best_and_of_the_worst_training(grid):
    texts = [*grid.POINTS, grid.AUTO]
    blocks = {name: {t: dict.fromkeys(grid.METRICS, 10.0) for t in texts} for name in "ab"}
    blocks["b"]["fracal"] = dict.fromkeys(grid.METRICS, 9.0)
    (row,) = [r for r in grid.criteria(blocks).splitlines() if r.startswith("| fracal ")]
    cells = [cell.strip() for cell in row[1:-1].split("|")]
    assert cells[1:] == ["-0.5", "-1.0", "1, -1.0", "1, -1.0", "0"]


def test_runs_of_one_folder_name_keep_apart(grid):
    one, other = Path("out/rfs/seed0/cross_entropy"), Path("out/rfs/seed1/cross_entropy")
    assert list(grid._named([one, other])) == ["seed0/cross_entropy", "seed1/cross_entropy"]
    assert list(grid._named([one])) == ["cross_entropy"] and grid._named([]) == {}


def test_auto_is_its_point_of_the_grid(grid):
    """Its figures are that point's: figures of an older rule in a grid.json are not taken."""
    generator = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(40, 6, generator=generator), torch.arange(40) % 6
    moments, posteriors = LogitMoments(6), PosteriorMoments(6)
    moments.update(logits)
    posteriors.update(logits, logits.softmax(1), labels)
    stage = StageStatistics.from_moments(moments, posteriors=posteriors)
    inputs = CalibrationInputs(5, stage)
    auto, point = (build_calibration(text, inputs) for text in (grid.AUTO, grid.AUTO_POINT))
    assert torch.equal(auto.shift, point.shift) and torch.equal(auto.scale, point.scale)


def test_figures_of_finished_runs_are_kept_and_auto_is_taken_from_its_point(grid, tmp_path):
    scores = {text: dict.fromkeys(grid.METRICS, 1.0) for text in [*grid.POINTS, grid.AUTO]}
    scores[grid.AUTO_POINT] = dict.fromkeys(grid.METRICS, 2.0)
    (tmp_path / "grid.json").write_text(json.dumps(scores))
    assert grid.evaluate(tmp_path)[grid.AUTO]["AP"] == 2.0
