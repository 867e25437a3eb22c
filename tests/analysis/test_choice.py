"""Choosing by cross-fitting: against a slow version, and on candidates that differ by chance."""

from __future__ import annotations

import numpy as np
import pytest

from logn_d2.analysis import choose
from logn_d2.lvis import Detections, LvisGroundTruth, evaluate_lvis, match_lvis

BOX, ELSEWHERE = [0, 0, 20, 20], [60, 60, 20, 20]
NUM_CLASSES = 4


def truth_of(images: range, categories: np.ndarray) -> LvisGroundTruth:
    return LvisGroundTruth.from_dict(
        {
            "images": [{"id": i} for i in images],
            "categories": [{"id": c + 1, "name": str(c)} for c in range(NUM_CLASSES)],
            "annotations": [
                {"id": i + 1, "image_id": i, "category_id": int(categories[i]) + 1, "bbox": BOX}
                for i in images
            ],
        }
    )


def noisy(number: int, seed: int, right: float, categories: np.ndarray) -> Detections:
    """Detections of which a share is right, with scores that say little of it."""
    rng = np.random.default_rng(seed)
    hit = rng.random(number) < right
    boxes = np.where(hit[:, None], BOX, ELSEWHERE)
    return Detections(np.arange(number), categories, rng.random(number), boxes)


@pytest.fixture
def data():
    categories = np.random.default_rng(0).integers(NUM_CLASSES, size=60)
    found = {f"c{seed}": noisy(60, seed, 0.5, categories) for seed in range(5)}
    return categories, truth_of(range(60), categories), found


def test_equals_a_slow_version_that_evaluates_every_half(data):
    categories, truth, found = data
    matches = {name: match_lvis(truth, each) for name, each in found.items()}
    choice = choose(matches, "c0", divisions=3, resamples=0, seed=5)
    rng, gains, chosen = np.random.default_rng(5), [], []
    halves = rng.permuted(np.tile(np.arange(60) < 30, (3, 1)), axis=1)
    for first in halves:
        ap = []
        for half in (first, ~first):
            images = np.flatnonzero(half)
            part = truth_of(images.tolist(), categories)
            ap.append(
                [
                    evaluate_lvis(part, each.take(np.flatnonzero(half))).metrics["AP"]
                    for each in found.values()
                ]
            )
        for mine, other in ((0, 1), (1, 0)):
            best = int(np.argmax(ap[mine]))
            chosen.append(f"c{best}")
            gains.append(ap[other][best] - ap[other][0])
    assert choice.change == pytest.approx(np.mean(gains), abs=1e-9)
    assert choice.share == {n: chosen.count(n) / 6 for n in choice.share}
    assert sum(choice.share.values()) == pytest.approx(1)


def test_blocks_of_draws_change_nothing(data, monkeypatch):
    _, truth, found = data
    matches = {name: match_lvis(truth, each) for name, each in found.items()}
    whole = choose(matches, "c0", divisions=5, resamples=6)
    monkeypatch.setattr("logn_d2.analysis.choice._BLOCK", 2)
    seen = []
    assert (
        choose(
            matches, "c0", divisions=5, resamples=6, progress=lambda each: seen.append(1) or each
        )
        == whole
    )
    assert seen == [1]


def test_a_choice_among_equals_gains_only_on_its_own_images(data):
    categories, truth, _ = data
    found = {f"c{seed}": noisy(60, seed, 0.5, categories) for seed in range(30)}
    matches = {name: match_lvis(truth, each) for name, each in found.items()}
    middle = sorted(matches, key=lambda name: matches[name].result().metrics["AP"])[15]
    choice = choose(matches, middle, resamples=60)
    promised = choice.best - matches[middle].result().metrics["AP"]
    assert promised > 0.05 and choice.change < promised / 2
    assert choice.interval[0] < 0 < choice.interval[1] or choice.change < 0.1


def test_what_is_better_everywhere_is_always_chosen(data):
    categories, truth, found = data
    perfect = Detections(np.arange(60), categories, np.ones(60), [BOX] * 60)
    matches = {n: match_lvis(truth, each) for n, each in {**found, "best": perfect}.items()}
    choice = choose(matches, "c0", divisions=5, resamples=20)
    assert choice.name == "best" and choice.share == {"best": 1.0}
    assert choice.best == pytest.approx(1) and choice.honest > 0.9
    assert choice.interval[0] > 0
    assert "best: AP 100.0" in str(choice) and "| best" in choice.table()


def test_bad_requests_are_refused(data):
    categories, truth, found = data
    matches = {name: match_lvis(truth, each) for name, each in found.items()}
    with pytest.raises(KeyError, match="Unknown baseline 'logn'. Known: c0, c1"):
        choose(matches, "logn")
    with pytest.raises(ValueError, match="Unknown metric 'APx'"):
        choose(matches, "c0", metric="APx")
    with pytest.raises(ValueError, match="at least two candidates"):
        choose({"c0": matches["c0"]}, "c0")
    few = truth_of(range(10), categories)
    kept = found["c1"].take(np.arange(10))
    with pytest.raises(ValueError, match="'c0' and 'c1' are of different images"):
        choose({"c0": matches["c0"], "c1": match_lvis(few, kept)}, "c0")
