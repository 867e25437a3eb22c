"""Trends of logits: the content of each column, the classes it covers, and undefined values."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import gmean, spearmanr

from logn_d2.core import (
    LogitMoments,
    LogitStatistics,
    PosteriorMoments,
    StageStatistics,
    StatisticsError,
)
from logn_d2.data import class_counts
from logn_d2.engine import load_config

from ..command import command
from ..load_script import ROOT

CONFIG = ROOT / "configs" / "glyphs_tiny_mask_rcnn_R_18_FPN.yaml"
COUNT = np.array([3, 5, 10, 11, 60, 100, 101, 900, 900])
script = command("trends")


def stage_of(num_classes: int, seed: int = 0) -> StageStatistics:
    generator = torch.Generator().manual_seed(seed)
    mean, var = torch.rand(2, num_classes + 1, generator=generator, dtype=torch.float64)
    return StageStatistics(mean - 5, var + 0.5, torch.full((num_classes + 1,), 20))


def test_columns_are_the_obvious_figures_of_the_foreground():
    stage = stage_of(len(COUNT))
    mean, std = stage.mean[:-1].numpy(), stage.var[:-1].sqrt().numpy()
    rare, frequent = [0, 1, 2], [6, 7, 8]
    expected = [
        spearmanr(COUNT, mean).statistic,
        spearmanr(COUNT, std).statistic,
        mean[frequent].mean() - mean[rare].mean(),
        std[frequent].mean() / std[rare].mean(),
        mean.min() - mean.mean(),
        gmean(std),
    ]
    found = script.trend(stage, COUNT)
    assert list(found) == list(script.COLUMNS)
    assert list(found.values())[:6] == pytest.approx(expected, rel=1e-12)
    assert math.isnan(found["gamma"]) and math.isnan(found["own"])  # without posteriors


def test_posterior_columns_of_a_worked_example():
    """Class 0 has 0.5 of its 0.8 on its own object, class 1 nothing of its 0.4."""
    posteriors = torch.tensor([[0.5, 0.1, 0.4], [0.2, 0.2, 0.6], [0.1, 0.1, 0.8]]).double()
    moments, sums = LogitMoments(3), PosteriorMoments(3)
    moments.update(posteriors.log())
    sums.update(posteriors.log(), posteriors, torch.tensor([0, 2, 2]))
    stage = StageStatistics.from_moments(moments, posteriors=sums)
    found = script.trend(stage, np.array([40, 10]))
    assert found["own"] == pytest.approx((0.5 / 0.8 + 0) / 2)
    # Over negatives 0.3 / 2 and 0.4 / 3; the counts differ by a factor of four.
    assert found["gamma"] == pytest.approx(math.log(0.15 / (0.4 / 3)) / math.log(4))


def test_the_background_column_has_no_say():
    stage = stage_of(len(COUNT))
    order = [len(COUNT), *range(len(COUNT))]
    first = StageStatistics(*(each[order] for each in (stage.mean, stage.var, stage.count)))
    stage.mean[-1] = -100
    assert script.trend(stage, COUNT) == script.trend(first, COUNT, "first")


def test_classes_that_are_not_usable_have_no_say():
    stage = stage_of(len(COUNT))
    kept = [0, 1, 2, 3, 5, 6, 7, 8]
    fewer = StageStatistics(
        *(each[[*kept, 9]] for each in (stage.mean, stage.var, stage.count.clone()))
    )
    stage.count[4] = 1
    assert script.trend(stage, COUNT) == script.trend(fewer, COUNT[kept])


def test_figures_of_groups_that_are_not_there_are_unknown():
    found = script.trend(stage_of(3), np.array([20, 30, 40]))
    assert math.isnan(found["mean f - r"]) and math.isnan(found["std f / r"])
    assert not math.isnan(found["rho of mean"])
    nothing = stage_of(3)
    nothing.count[:] = 0
    assert all(map(math.isnan, script.trend(nothing, np.array([20, 30, 40])).values()))


@pytest.fixture
def write_run(tiny_root, tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tiny_root))

    def write(name: str, seed: int, *opts: str, stages: int = 1, **fields: object) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        cfg = load_config(CONFIG, ["OUTPUT_DIR", str(folder), "MODEL.DEVICE", "cpu", *opts])
        (folder / "config.yaml").write_text(cfg.dump())
        (folder / "model_final.pth").touch()
        names = class_counts(cfg.DATASETS.TRAIN).class_names
        found = tuple(stage_of(len(names), seed + i) for i in range(stages))
        statistics = replace(LogitStatistics(found, names), **fields)
        statistics.save(folder / "logn_stats.safetensors")
        return folder

    return write


def rows_of(text: str) -> list[list[str]]:
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def test_runs_of_one_kind_share_a_row(write_run, capsys):
    linear = ("MODEL.LOGN.CLASSIFIER", "linear")
    runs = [write_run("a", 0), write_run("b", 1), write_run("c", 2, *linear)]
    assert script.main(list(map(str, runs))) == 0
    text = capsys.readouterr().out
    cosine_row, linear_row = rows_of(text)
    assert cosine_row[:4] == ["cosine", "TrainingSampler", "0", "2"]
    assert linear_row[:4] == ["linear", "TrainingSampler", "0", "1"]
    counts = class_counts("lt_glyphs_tiny_train").image_count
    values = [script.trend(stage_of(len(counts), seed), counts)["rho of mean"] for seed in (0, 1)]
    assert cosine_row[4] == f"{np.mean(values):.2f} ± {np.std(values, ddof=1):.2f}"
    assert all(f"- {name}: " in text for name in script.COLUMNS)


def test_stages_of_a_cascade_have_rows_of_their_own(write_run, capsys):
    assert script.main([str(write_run("a", 0, stages=3))]) == 0
    assert [row[2] for row in rows_of(capsys.readouterr().out)] == ["0", "1", "2"]


def test_a_run_of_the_demo_names_no_test_set_and_needs_none(write_run, capsys):
    assert script.main([str(write_run("a", 0, "DATASETS.TEST", "()"))]) == 0
    assert len(rows_of(capsys.readouterr().out)) == 1


def test_what_is_missing_is_named(write_run, tmp_path, capsys):
    run = write_run("a", 0)
    for args, message in (
        ([str(tmp_path / "nowhere")], "is not a finished training"),
        ([str(run), "--file", "other.safetensors"], "logn collect"),
    ):
        with pytest.raises(SystemExit):
            script.main(args)
        assert message in capsys.readouterr().err


def test_statistics_of_other_classes_are_refused(write_run):
    names = tuple(f"class {i}" for i in range(12))
    run = write_run("a", 0, class_names=names)
    with pytest.raises(StatisticsError):
        script.trends_of(run, "logn_stats.safetensors")
