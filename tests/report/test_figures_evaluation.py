"""Figures of errors, scores and intervals show the numbers behind them."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from logn_d2.analysis.calibration_quality import CalibrationQuality, calibration_quality
from logn_d2.analysis.errors import ERROR_TYPES, ErrorAnalysis, error_analysis
from logn_d2.analysis.thresholds import ThresholdCurve, ap_against_threshold
from logn_d2.lvis.detections import Detections
from logn_d2.lvis.ground_truth import LvisGroundTruth
from logn_d2.report.figures import (
    error_figure,
    interval_figure,
    population_figure,
    reliability_figure,
    save_figure,
    score_figure,
    svg_data_uri,
    threshold_figure,
)

Pair = tuple[Detections, Detections]
RUNS = ("uncalibrated", "logn")
METRICS = ("AP", "APr", "APc", "APf")


@pytest.fixture
def analyses(truth: LvisGroundTruth, detections: Pair) -> dict[str, ErrorAnalysis]:
    return {name: error_analysis(truth, each) for name, each in zip(RUNS, detections)}


@pytest.fixture
def qualities(truth: LvisGroundTruth, detections: Pair) -> dict[str, CalibrationQuality]:
    return {name: calibration_quality(truth, each) for name, each in zip(RUNS, detections)}


@pytest.fixture
def curves(truth: LvisGroundTruth, detections: Pair) -> dict[str, ThresholdCurve]:
    levels = [0.0, 0.001, 0.6, 0.95]
    return {
        name: ap_against_threshold(truth, each, levels)
        for name, each in zip(RUNS, detections, strict=True)
    }


def _titles(figure: Figure) -> list[str]:
    return [axis.get_title(loc="left") for axis in figure.axes]


def _notes(axis: Axes) -> list[str]:
    return [text.get_text() for text in axis.texts]


def _heights(axis: Axes) -> list[list[float]]:
    return [[bar.get_height() for bar in bars] for bars in axis.containers]


def test_error_figure_draws_the_gains_of_each_group_with_objects(
    analyses: dict[str, ErrorAnalysis],
) -> None:
    figure = error_figure(analyses)
    assert _titles(figure) == ["all", "all together", "rare", "", "frequent", ""]
    for row, group in enumerate(("all", "r", "f")):
        main, together = figure.axes[2 * row : 2 * row + 2]
        for side, analysis in enumerate(analyses.values()):
            gains = [100 * analysis.gain(error, group) for error in ERROR_TYPES]
            assert _heights(main)[side] + _heights(together)[side] == pytest.approx(gains)
    assert [text.get_text() for text in figure.axes[0].get_legend().get_texts()] == [
        "uncalibrated",
        "logn",
    ]
    # Five of six objects of the rare class are found: precision 1 at 84 of the 101 recalls.
    assert _notes(figure.axes[2])[-1] == "AP 83.2 → 83.2"
    assert svg_data_uri(figure)


def test_error_figure_takes_as_many_runs_as_it_can_tell_apart(
    analyses: dict[str, ErrorAnalysis],
) -> None:
    one = analyses["logn"]
    assert len(error_figure({str(i): one for i in range(4)}).axes[0].containers) == 4
    with pytest.raises(ValueError, match="There are 5 runs, expected 1 to 4"):
        error_figure({str(i): one for i in range(5)})


def test_reliability_figure_draws_bins_with_detections_only(
    qualities: dict[str, CalibrationQuality],
) -> None:
    figure = reliability_figure(qualities)
    assert _titles(figure) == ["all", "rare", "frequent"]
    for axis, group in zip(figure.axes, ("all", "r", "f"), strict=True):
        _, *lines = axis.lines
        for line, quality in zip(lines, qualities.values(), strict=True):
            confidence, precision = quality.reliability(group)
            known = quality.histogram("count", group) > 0
            np.testing.assert_array_equal(line.get_xdata(), confidence[known])
            np.testing.assert_array_equal(line.get_ydata(), precision[known])
    errors = [f"{100 * quality.ece():.1f} %" for quality in qualities.values()]
    assert _notes(figure.axes[0]) == [f"ECE {errors[0]} → {errors[1]}"]


def test_score_figure_draws_shares(qualities: dict[str, CalibrationQuality]) -> None:
    figure = score_figure(qualities)
    assert _titles(figure) == ["uncalibrated", "logn", "", ""]
    quality = qualities["logn"]
    hits, count = quality.histogram("hits"), quality.histogram("count")
    stairs = figure.axes[1].patches[0].get_data().values
    np.testing.assert_allclose(stairs, hits / hits.sum())
    parts = np.array(_heights(figure.axes[3]))
    np.testing.assert_allclose(parts.sum(axis=0), count > 0)
    np.testing.assert_allclose(parts[0], hits / np.maximum(count, 1))


def test_threshold_figure_draws_each_metric_that_is_there(
    curves: dict[str, ThresholdCurve],
) -> None:
    figure = threshold_figure(curves, METRICS)
    # No class is common in this data set.
    assert _titles(figure) == ["AP", "APr", "APf", "detections"]
    for line, curve in zip(figure.axes[1].lines, curves.values(), strict=True):
        np.testing.assert_allclose(line.get_ydata(), 100 * curve.metrics["APr"])
    for line, curve in zip(figure.axes[-1].lines, curves.values(), strict=True):
        np.testing.assert_allclose(line.get_ydata(), curve.per_image)


def test_interval_figure_draws_bars_whiskers_and_numbers() -> None:
    estimate = {"uncalibrated": {"AP": 0.2, "APr": math.nan}, "logn": {"AP": 0.3, "APr": 0.1}}
    interval = {"logn": {"AP": (0.25, 0.4), "APr": (math.nan, math.nan)}}
    figure = interval_figure(estimate, ("AP", "APr"), interval, level=0.9)
    (axis,) = figure.axes
    assert np.array(_heights(axis)) == pytest.approx(np.array([[20, 0], [30, 10]]))
    (whisker,) = axis.lines
    assert whisker.get_ydata() == pytest.approx([25, 40])
    assert _notes(axis) == ["20.0", "–", "30.0", "10.0", "with 90 % intervals"]
    assert _notes(interval_figure(estimate, ("AP",)).axes[0]) == ["20.0", "30.0"]


def test_population_figure_orders_classes_and_leaves_out_unknown_ones() -> None:
    sampled = np.array([-3.0, -1.0, -2.0]), np.array([1.0, 3.0, 2.0])
    positives = np.array([1.0, 2.0, math.nan]), np.array([1.0, 1.0, math.nan])
    runs = {"sampled": sampled, "positives": positives}
    figure = population_figure(runs, np.array([5, 50, 20]))
    first, second = figure.axes[0].lines
    assert first.get_ydata().tolist() == [-1, -2, -3]
    assert (second.get_xdata().tolist(), second.get_ydata().tolist()) == ([1, 3], [2, 1])
    assert _notes(figure.axes[0]) == ["Spearman's ρ with images: sampled +1.00, positives +1.00"]
    assert _notes(figure.axes[1]) == ["Spearman's ρ with images: sampled +1.00, positives –"]


def test_nothing_detected_still_makes_figures(truth: LvisGroundTruth) -> None:
    nothing = Detections.empty()
    figures = (
        error_figure({"logn": error_analysis(truth, nothing)}),
        reliability_figure({"logn": calibration_quality(truth, nothing)}),
        score_figure({"logn": calibration_quality(truth, nothing)}),
        threshold_figure({"logn": ap_against_threshold(truth, nothing, [0.5])}, METRICS),
    )
    assert all(svg_data_uri(figure) for figure in figures)


def test_figures_are_saved_completely_and_reproducibly(
    tmp_path: Path, qualities: dict[str, CalibrationQuality]
) -> None:
    for name, head in (("a.png", b"\x89PNG"), ("a.svg", b"<?xml"), ("a.pdf", b"%PDF")):
        paths = [tmp_path / f"{copy}_{name}" for copy in (1, 2)]
        for path in paths:
            save_figure(reliability_figure(qualities), path, dpi=50)
        one, other = (path.read_bytes() for path in paths)
        assert one.startswith(head) and one == other
    with pytest.raises(ValueError, match=r"expected \.png, \.svg or \.pdf"):
        save_figure(reliability_figure(qualities), tmp_path / "a.jpg")
    assert len(list(tmp_path.iterdir())) == 6
