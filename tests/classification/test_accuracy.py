"""Accuracies, groups and intervals, against slow versions."""

from __future__ import annotations

import csv
import doctest

import numpy as np
import pytest

from logn_d2.classification import accuracy
from logn_d2.classification.accuracy import accuracy_table, class_groups, evaluate_images
from logn_d2.core import ClassCounts, shot_groups
from logn_d2.errors import UserError

K = 5
COUNTS = np.array([200, 101, 100, 20, 19])
NAMES = tuple("abcde")


@pytest.fixture
def predictions():
    rng = np.random.default_rng(0)
    probabilities = rng.dirichlet(np.ones(K), 60)
    labels = np.arange(60) % K
    probabilities[:25] = np.eye(K)[labels[:25]] * 0.9 + 0.02
    return probabilities, labels


def counts(image_count=COUNTS):
    return ClassCounts(NAMES, image_count, image_count, int(image_count.sum()))


def test_examples():
    failures, examples = doctest.testmod(accuracy)
    assert examples and not failures


def test_equal_to_the_slow_version(predictions):
    probabilities, labels = predictions
    result = evaluate_images(probabilities, labels, class_groups(counts()))
    hits = [int(np.argmax(p) == y) for p, y in zip(probabilities, labels)]
    classes = [np.mean([h for h, y in zip(hits, labels) if y == c]) for c in range(K)]
    found, shots = result.metrics(), shot_groups(COUNTS)
    assert found["acc"] == pytest.approx(np.mean(hits))
    assert found["acc"] == pytest.approx(np.mean(classes))  # the set is balanced
    for name in ("many", "medium", "few"):
        expected = np.mean([value for value, shot in zip(classes, shots) if shot == name])
        assert found[name] == pytest.approx(expected)
    np.testing.assert_allclose(result.per_class(), classes)
    assert result.as_dict()["acc"] == pytest.approx(100 * np.mean(hits))


def test_limits_are_19_20_100_101():
    assert class_groups(counts()).tolist() == ["f", "f", "c", "c", "r"]


def test_an_empty_group_is_no_zero(predictions):
    result = evaluate_images(*predictions, class_groups(counts(np.full(K, 50))))
    assert np.isnan(result.metrics()["few"]) and np.isnan(result.metrics()["many"])
    assert "-" in accuracy_table({"x": result.as_dict()})
    assert np.isnan(result.intervals(samples=5)["few"]).all()
    assert set(evaluate_images(*predictions).metrics()) == {"acc"}


def test_classes_without_test_images_are_left_out():
    result = evaluate_images(np.eye(K)[[0, 0, 1]], [0, 0, 2], class_groups(counts()))
    assert np.isnan(result.per_class()[[1, 3, 4]]).all()
    assert result.metrics()["medium"] == 0 and result.metrics()["many"] == 1


def test_intervals_hold_the_estimate_and_pairs_are_narrower(predictions):
    probabilities, labels = predictions
    first = evaluate_images(probabilities, labels, class_groups(counts()))
    low, high = first.intervals(samples=300)["acc"]
    assert low < first.metrics()["acc"] < high
    # Binomial: one standard deviation is sqrt(p (1 - p) / N).
    p = first.metrics()["acc"]
    assert (high - low) / 2 == pytest.approx(1.96 * np.sqrt(p * (1 - p) / 60), rel=0.25)
    changed = probabilities.copy()
    changed[0] = np.eye(K)[(labels[0] + 1) % K]
    second = evaluate_images(changed, labels, class_groups(counts()))
    low, high = second.intervals(first, samples=300)["acc"]
    assert -4 / 60 <= low <= -1 / 60 <= high <= 0
    assert first.intervals(samples=20) == first.intervals(samples=20)
    with pytest.raises(UserError, match="can't be paired"):
        first.intervals(evaluate_images(probabilities[1:], labels[1:]))


def test_csv_has_a_line_for_each_class(predictions, tmp_path):
    result = evaluate_images(*predictions, class_groups(counts()))
    result.to_csv(tmp_path / "c.csv", NAMES, counts())
    rows = list(csv.reader((tmp_path / "c.csv").open()))
    assert len(rows) == K + 1 and rows[3][:3] == ["c", "100", "12"]
    assert float(rows[1][3]) == pytest.approx(result.per_class()[0], rel=1e-5)


def test_what_is_refused(predictions):
    probabilities, labels = predictions
    with pytest.raises(UserError, match="expected \\(images, classes\\)"):
        evaluate_images(probabilities, labels[:-1])
    wrong = np.where(np.arange(60) == 7, -1, labels)
    with pytest.raises(UserError, match="1 of 60 images .* number 7 with label -1"):
        evaluate_images(probabilities, wrong)
    with pytest.raises(UserError, match="60 of 60 images have scores outside"):
        evaluate_images(10 * probabilities, labels)
