"""Unknown objects: boxes, scores and figures equal those counted one by one."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from logn_d2.analysis import best_f1_threshold
from logn_d2.core import AffineCalibration
from logn_d2.data.loader import build_evaluation_loader
from logn_d2.errors import UserError
from logn_d2.lvis import LvisGroundTruth, match_lvis
from logn_d2.sweeps import (
    StoredOutputs,
    evaluate_sweep,
    evaluate_unknown_objects,
    find_known_objects,
    sweep,
    sweep_stored,
)
from logn_d2.sweeps.unknown_objects import sure_boxes

from ..small_detectors import CASCADE, NUM_CLASSES, STANDARD, TRAIN, small_config
from .small_sweeps import calibrations, ground_truth

NUM_IMAGES = 6


@pytest.fixture(scope="module")
def stores(data_set, models, tmp_path_factory):
    """Head -> store of the first three images, and of the others."""
    batches = list(build_evaluation_loader(small_config(INPUT__MIN_SIZE_TEST=56), TRAIN))
    found = {}
    for head in (STANDARD, CASCADE):
        folders = [tmp_path_factory.mktemp(f"{head}{side}") for side in range(2)]
        stages = 1 if head == STANDARD else len(models[head].roi_heads.box_predictor)
        identity = {"uncalibrated": calibrations(stages)["uncalibrated"]}
        for folder, part in zip(folders, (batches[:3], batches[3:]), strict=True):
            sweep(models[head], part, identity, store=folder)
        found[head] = [StoredOutputs.load(folder) for folder in folders]
    return found


@pytest.fixture(scope="module")
def truths(data_set):
    return ground_truth(data_set[:3], masks=False), ground_truth(data_set[3:], masks=False)


def drawn(stored):
    return calibrations(stored.num_stages)["drawn 0"]


def middle(stored):
    """A threshold that half of the sure detections reach."""
    return float(np.median(sure_boxes(stored, drawn(stored), 0.0).detections.score))


def truth_where_found(stored):
    """An object where the model is surest in each image, which it has not learnt to find."""
    identity = calibrations(stored.num_stages)["uncalibrated"]
    best = sweep_stored(stored, {"c": identity}).detections("c").top_per_image(1)
    objects = zip(best.image_id.tolist(), best.category.tolist(), best.box.tolist(), strict=True)
    return LvisGroundTruth.from_dict(
        {
            "images": [{"id": int(i), "height": 48, "width": 64} for i in stored.image_ids],
            "categories": [{"id": k + 1, "name": str(k)} for k in range(NUM_CLASSES)],
            "annotations": [
                {
                    "id": n + 1,
                    "image_id": image,
                    "category_id": category + 1,
                    "bbox": box,
                    "area": box[2] * box[3],
                }
                for n, (image, category, box) in enumerate(objects)
            ],
        }
    )


@pytest.mark.parametrize("head", [STANDARD, CASCADE])
def test_boxes_are_the_sure_detections_with_the_logits_of_their_regions(stores, head):
    stored, _ = stores[head]
    chosen = drawn(stored)
    threshold = middle(stored)
    boxes = sure_boxes(stored, chosen, threshold)
    swept = sweep_stored(stored, {"c": chosen}).detections("c")
    everything = sure_boxes(stored, chosen, 0.0)
    assert 0 < len(boxes.logits) < len(everything.logits) <= len(swept)
    keys = {(i, c, s) for i, c, s in zip(swept.image_id, swept.category, swept.score, strict=True)}
    found = boxes.detections
    for i, c, s, z in zip(found.image_id, found.category, found.score, boxes.logits, strict=True):
        assert (i, c, s) in keys and s >= threshold
        assert z.argmax() == c or head == CASCADE  # which averages probabilities
    regions = {
        image.image_id: sum(c(z.double()) for c, z in zip(chosen, image.logits, strict=True))
        / stored.num_stages
        for shard in stored.shards()
        for image in shard.images
    }
    for image_id, z in zip(found.image_id.tolist(), boxes.logits, strict=True):
        rows = regions[image_id][:, :-1].numpy()
        assert np.abs(rows - z).max(axis=1).min() < 1e-12
    assert boxes.num_images == 3 and boxes.image_share == len(set(found.image_id.tolist())) / 3


def test_figures_are_those_of_the_boxes(stores, truths):
    known, unknown = stores[STANDARD]
    chosen, threshold = drawn(known), middle(known)
    result = evaluate_unknown_objects(
        known, unknown, *truths, calibrations=chosen, threshold=threshold
    )
    sides = [sure_boxes(each, chosen, threshold) for each in (known, unknown)]
    z = torch.from_numpy(np.concatenate([each.logits for each in sides]))
    is_known = np.repeat([1, 0], [len(each.logits) for each in sides])
    scores = {"msp": z.softmax(1).amax(1), "max_logit": z.amax(1), "energy": z.logsumexp(1)}
    for name, values in scores.items():
        assert result.scores[name].auroc == pytest.approx(roc_auc_score(is_known, values))
    assert (result.known_boxes, result.unknown_boxes) == tuple(len(s.logits) for s in sides)
    swept = sweep_stored(known, {"c": chosen}, ground_truth=truths[0])
    ap = evaluate_sweep(swept, truths[0], ("bbox",))["c"]["bbox"]["AP"]
    assert 100 * result.known_ap == pytest.approx(ap)
    assert result.as_dict()["scores"]["energy"]["num_id"] == result.known_boxes


def test_unknown_objects_are_found_whatever_their_class(stores, truths):
    """One object an image lies where the model finds something, and one where it can't."""
    known, unknown = stores[STANDARD]
    found = truth_where_found(unknown)
    far = replace(found, box=found.box + 1000, annotation_id=found.annotation_id + 100)
    pairs = ("image", "category", "box", "area", "ignore", "crowd", "annotation_id")
    order = np.argsort(np.concatenate([found.image, far.image]), kind="stable")
    truth = replace(
        found, **{n: np.concatenate([getattr(t, n) for t in (found, far)])[order] for n in pairs}
    )
    result = evaluate_unknown_objects(known, unknown, truths[0], truth, threshold=0.0)
    assert result.unknown_recall == 0.5 and result.unknown_images == 1
    boxes = sure_boxes(unknown, calibrations()["uncalibrated"], 0.0)
    ranking = np.argsort(boxes.logits.max(1))  # the boxes that look unknown first
    objects = {(i, *box) for i, box in zip(unknown.image_ids[found.image], found.box.tolist())}
    right = []
    for at in ranking:
        image, mine = boxes.detections.image_id[at], boxes.detections.box[at].astype(float)
        hit = next((o for o in objects if o[0] == image and iou(mine, o[1:]) >= 0.5), None)
        objects.discard(hit)
        right.append(hit is not None)
    precision = np.cumsum(right) / np.arange(1, len(right) + 1)
    # The largest precision at or beyond each of 101 recalls; only 3 of 6 objects are reached.
    reached = np.cumsum(right) / (2 * len(found))
    recalls = np.linspace(0, 1, 101)
    expected = np.mean([max(precision[reached >= r], default=0.0) for r in recalls])
    assert result.unknown_ap["max_logit"] == pytest.approx(expected)
    without = evaluate_unknown_objects(known, unknown, truths[0], threshold=0.0)
    assert np.isnan(without.unknown_recall) and not without.unknown_ap


def iou(one, other):
    (x, y, w, h), (left, top, width, height) = one, other
    across = max(min(x + w, left + width) - max(x, left), 0)
    down = max(min(y + h, top + height) - max(y, top), 0)
    return across * down / (w * h + width * height - across * down)


def test_the_threshold_is_the_one_of_the_best_f1(stores, truths):
    known, unknown = stores[STANDARD]
    identity = calibrations()["uncalibrated"]
    truth = truth_where_found(known)
    found = sweep_stored(known, {"c": identity}).detections("c")
    result = evaluate_unknown_objects(known, unknown, truth)
    expected = best_f1_threshold(match_lvis(truth, found))
    assert result.threshold == expected
    kept = sure_boxes(known, identity, expected)
    assert result.known_boxes == len(kept.logits)


def test_known_images_are_swept_once_for_any_number_of_unknown_ones(stores, truths, monkeypatch):
    known, unknown = stores[STANDARD]
    chosen, threshold = drawn(known), middle(known)
    options = {"calibrations": chosen, "threshold": threshold}
    expected = evaluate_unknown_objects(known, unknown, *truths, **options).as_dict()
    swept = sweep_stored(known, {"c": chosen}, ground_truth=truths[0])
    monkeypatch.delattr("logn_d2.sweeps.unknown_objects.sweep_stored")
    found = find_known_objects(known, truths[0], detections=swept.detections("c"), **options)
    for _ in range(2):
        again = evaluate_unknown_objects(
            known, unknown, *truths, calibrations=chosen, known_objects=found
        )
        np.testing.assert_equal(again.as_dict(), expected)


def test_what_can_not_be_compared_is_refused(stores, truths, models, tmp_path):
    known, unknown = stores[STANDARD]
    with pytest.raises(UserError, match="are of different models"):
        evaluate_unknown_objects(known, stores[CASCADE][1], truths[0])
    with pytest.raises(UserError, match="are of the same pass over 3 images"):
        evaluate_unknown_objects(known, known, truths[0])
    with pytest.raises(UserError, match="None of the 3 known images has a box with a score of 1"):
        evaluate_unknown_objects(known, unknown, truths[0], threshold=1.0)
    with pytest.raises(UserError, match="expected a probability"):
        evaluate_unknown_objects(known, unknown, truths[0], threshold=2.0)
    with pytest.raises(UserError, match="are of another data set"):
        evaluate_unknown_objects(known, unknown, truths[1])
    with pytest.raises(UserError, match="has 3 classes|of 4 classes"):
        other = replace(truths[0], category_ids=truths[0].category_ids[:3])
        evaluate_unknown_objects(known, unknown, other)
    (batch, *_) = build_evaluation_loader(small_config(), TRAIN)
    identity = {"c": [AffineCalibration.identity(NUM_CLASSES)]}
    sweep(models[STANDARD], [batch], identity, store=tmp_path / "few", max_boxes=5)
    with pytest.raises(UserError, match="without --max-boxes"):
        sure_boxes(StoredOutputs.load(tmp_path / "few"), identity["c"], 0.0)
