"""The report about image classifiers against figures that are counted one by one."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from logn_d2.classification.accuracy import ImageResult
from logn_d2.classification.predictions import StoredPredictions, predictions_name
from logn_d2.cli.report import parse_args
from logn_d2.commands.report import run as run_command
from logn_d2.errors import UnknownNameError, UserError
from logn_d2.frequency import ClassCounts
from logn_d2.report import Settings, build_report, make_report, open_runs, summarise

NAMES = ("ax", "bee & <co>", "cat", "dodo", "elk")
COUNTS = (200, 101, 50, 12, 3)
GROUPS = ("many", "many", "medium", "few", "few")
N, UNKNOWN = 300, 40
SETTINGS = Settings(resamples=30)


def stored(calibrations=("uncalibrated", "logn"), seed=0, counts=COUNTS, unknown="far"):
    """Predictions that are better for few with each further calibration."""
    rng = np.random.default_rng(seed)
    labels = np.arange(N) % 5
    results, scores = {}, {"own": {}, unknown: {}}
    for step, name in enumerate(calibrations):
        right = (
            rng.random(N) < np.array([0.9, 0.8, 0.6, 0.2 + 0.3 * step, 0.1 + 0.3 * step])[labels]
        )
        predicted = np.where(right, labels, rng.integers(0, 5, N))
        results[name] = ImageResult(predicted, labels, rng.uniform(0.2, 1, N), None, 5)
        for dataset, size, shift in (("own", N, 1.0), (unknown, UNKNOWN, 0.0)):
            values = rng.normal(shift + step, 1, (2, size)).round(1)
            scores[dataset][name] = {"msp": values[0], "energy": values[1]}
    known = None if counts is None else ClassCounts(NAMES, np.array(counts), np.array(counts), 9)
    return StoredPredictions.gather(results, scores if unknown else {}, NAMES, known)


def folder(path, predictions, dataset="own"):
    path.mkdir()
    predictions.save(path / predictions_name(dataset))
    return str(path)


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    path = folder(tmp_path_factory.mktemp("images") / "run", stored())
    rows = [
        {"calibration": name, "image": {"acc": 1.0, "T": 1.5, "ECE_T": 2.25}}
        for name in ("uncalibrated", "logn")
    ]
    Path(path, "results.json").write_text(json.dumps({"rows": rows}))
    return make_report(open_runs([path]), settings=SETTINGS)


def test_predictions_are_read_as_they_were_written(tmp_path):
    predictions = stored(("uncalibrated", "norcal(gamma=0.6)"), unknown="a set: [1]")
    predictions.save(tmp_path / "x.safetensors")
    again = StoredPredictions.load(tmp_path / "x.safetensors")
    assert again.calibrations == predictions.calibrations and again.class_names == NAMES
    assert again.group_names == GROUPS and again.image_count.tolist() == list(COUNTS)
    for name in predictions.calibrations:
        for dataset in ("own", "a set: [1]"):
            mine, theirs = (each.scores_of(dataset, name) for each in (predictions, again))
            assert list(mine) == list(theirs) == ["msp", "energy"]
            assert all(np.array_equal(mine[score], theirs[score]) for score in mine)
        mine, theirs = (each.result(name) for each in (predictions, again))
        assert np.array_equal(mine.predicted, theirs.predicted)
        assert mine.as_dict() == theirs.as_dict()
    with pytest.raises(UnknownNameError, match=r"'logn' in .*Known: uncalibrated, norcal"):
        again.result("logn")
    (tmp_path / "x.safetensors").write_bytes(b"damaged")
    with pytest.raises(UserError, match="not a complete file of predictions"):
        StoredPredictions.load(tmp_path / "x.safetensors")


def test_a_score_that_only_some_calibrations_have(tmp_path):
    results = {name: ImageResult(np.zeros(2, int), np.zeros(2, int), np.ones(2), None, 1)
               for name in ("a", "b")}  # fmt: skip
    scores = {"own": {"a": {"msp": np.ones(2)}, "b": {"msp": np.ones(2), "odin": np.zeros(2)}}}
    predictions = StoredPredictions.gather(results, scores, ("x",), None)
    assert list(predictions.scores_of("own", "a")) == ["msp"]
    assert list(predictions.scores_of("own", "b")) == ["msp", "odin"]
    assert predictions.group_names == ()


def test_accuracies_differences_and_intervals(report):
    comparison, predictions = report.comparison, stored()
    assert comparison.metrics == ("All", "Few", "Medium", "Many")
    for run in comparison.runs:
        hits = predictions.result(run.calibration).predicted == predictions.labels
        figures = comparison.figures[run.name, "image"]
        assert figures.value("All").value == pytest.approx(100 * hits.mean())
        of_class = [hits[predictions.labels == c].mean() for c in range(5)]
        for title in ("few", "medium", "many"):
            mine = [a for a, group in zip(of_class, GROUPS, strict=True) if group == title]
            assert figures.value(title.capitalize()).value == pytest.approx(100 * np.mean(mine))
        assert figures.class_ap == pytest.approx(100 * np.array(of_class))
    before, after = (predictions.result(name) for name in predictions.calibrations)
    expected = after.intervals(before, samples=30)["few"]
    found = comparison.figures["LogN", "image"].difference("Few")
    assert (found.low, found.high) == pytest.approx(tuple(100 * np.array(expected)))
    assert found.value == pytest.approx(100 * (after.metrics()["few"] - before.metrics()["few"]))


def test_confusion_between_groups_is_counted(report):
    predictions, groups = stored(), np.array(GROUPS)
    for run in report.comparison.runs:
        predicted = predictions.result(run.calibration).predicted
        result = report.comparison.results[run.name]
        for row in ("few", "medium", "many"):
            mine = [i for i in range(N) if groups[predictions.labels[i]] == row]
            for column in ("few", "medium", "many"):
                share = np.mean([groups[predicted[i]] == column for i in mine])
                assert result.confusion()[row][column] == pytest.approx(share)
            right = np.mean([predicted[i] == predictions.labels[i] for i in mine])
            assert result.group_accuracy(row) == pytest.approx(right)


def test_calibration_error_is_that_of_the_evaluation(report):
    for run in report.comparison.runs:
        result = report.comparison.results[run.name]
        found = 100 * report.comparison.quality[run.name].ece()
        assert found == pytest.approx(result.as_dict()["ECE"])
        assert report.comparison.temperature(run) == {"T": 1.5, "ECE_T": 2.25}


def test_unknown_images_against_scikit_learn(report):
    (unknown,) = report.comparison.unknown
    predictions, truth = stored(), np.repeat([1, 0], [N, UNKNOWN])
    area = {}
    for (run, score), figures in unknown.figures.items():
        name = {"Uncalibrated": "uncalibrated", "LogN": "logn"}[run]
        sides = [predictions.scores_of(each, name)[score] for each in ("own", "far")]
        area[run, score] = 100 * roc_auc_score(truth, np.concatenate(sides))
        value, change = figures.value("auroc"), figures.difference("auroc")
        assert value.value == pytest.approx(area[run, score])
        assert value.low <= value.value <= value.high
        assert change.value == pytest.approx(area[run, score] - area["Uncalibrated", "msp"])
    assert (unknown.num_known, unknown.num_unknown, len(area)) == (N, UNKNOWN, 4)


def test_the_page_has_every_section_and_escapes_names(report):
    page = build_report(report)
    for name in ("accuracy", "confusion", "confidence", "unknown", "classes", "provenance"):
        assert f'<section id="{name}"' in page
    assert "bee &amp; &lt;co&gt;" in page and "<co>" not in page
    value = report.comparison.figures["LogN", "image"].value("Few").value
    assert f"{value:.1f}" in page and "Uncalibrated, MSP" in page and "2.2" in page
    sentences = summarise(report.comparison)
    assert sentences[0].startswith("LogN against Uncalibrated, accuracy: Few +")
    assert any("Against the images of far, MSP under LogN has an AUROC of" in s for s in sentences)


def test_the_command_writes_a_page_for_two_trainings(tmp_path, capsys):
    paths = [
        folder(tmp_path / name, stored(("uncalibrated",), seed, unknown=unknown))
        for seed, (name, unknown) in enumerate({"a": "far", "b": "other"}.items())
    ]
    args = parse_args([*paths, "--output", str(tmp_path / "r.html"), "--resamples", "9"])
    assert run_command(args) == 0
    assert "b: Uncalibrated against a: Uncalibrated, accuracy" in capsys.readouterr().out
    page = (tmp_path / "r.html").read_text()
    assert "mostly noise" in page and '<section id="unknown"' not in page


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_count": None}, "lack the number of training images"),
        ({"labels": np.zeros(N, int)}, "'.*b' has 300 images of 5 classes, .* labels differ"),
    ],
)
def test_runs_that_can_not_be_compared(tmp_path, change, message):
    other = dataclasses.replace(stored(), **change)
    paths = [folder(tmp_path / "a", stored()), folder(tmp_path / "b", other)]
    with pytest.raises(UserError, match=message):
        make_report(open_runs(paths), settings=SETTINGS)


def test_folders_and_calibrations_that_are_not_clear(tmp_path):
    path = folder(tmp_path / "a", stored())
    with pytest.raises(UnknownNameError, match="Unknown calibration 'auto' in"):
        open_runs([f"{path}:auto"])
    stored().save(tmp_path / "a" / predictions_name("third"))
    with pytest.raises(UserError, match="predictions on several sets: .*--dataset"):
        open_runs([path])
    assert len(open_runs([path], dataset="third")) == 2
