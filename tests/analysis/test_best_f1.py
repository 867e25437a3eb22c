"""The threshold of the best F1 equals the one that VOS reads from pycocotools' curves."""

from __future__ import annotations

import contextlib
import io

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from logn_d2.analysis import best_f1_threshold
from logn_d2.errors import UserError
from logn_d2.lvis import Detections, LvisGroundTruth, match_lvis

from ..lvis.lvis_reference import random_detections, random_lvis


def _coco_form(seed: int) -> tuple[dict, list[dict]]:
    """A set whose last class has no objects, and whose detections all have different scores."""
    rng = np.random.default_rng(seed)
    dataset = random_lvis(rng, num_images=8, with_masks=False)
    for image in dataset["images"]:
        image.pop("neg_category_ids", None)
        image.pop("not_exhaustive_category_ids", None)
    empty = dataset["categories"][-1]["id"]
    kept = [a for a in dataset["annotations"] if a["category_id"] != empty]
    dataset["annotations"] = [{**a, "id": i + 1, "iscrowd": 0} for i, a in enumerate(kept)]
    results = random_detections(rng, dataset, with_masks=False)
    for result, score in zip(results, rng.permutation(len(results)), strict=True):
        result["score"] = (float(score) + 1) / (len(results) + 1)
    return dataset, results


def _by_vos(dataset: dict, results: list[dict]) -> float:
    """The released rule on COCOeval's arrays, with its two 0 / 0 left out."""
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = dataset
        coco.createIndex()
        evaluation = COCOeval(coco, coco.loadRes(results), "bbox")
        evaluation.params.maxDets = [1, 10, 10_000]
        evaluation.evaluate()
        evaluation.accumulate()
    precision = evaluation.eval["precision"][:, :, :, 0, -1].mean(axis=0)  # (R, K)
    scores = evaluation.eval["scores"][:, :, :, 0, -1].mean(axis=0)
    recall = evaluation.params.recThrs[:, None]
    with np.errstate(all="ignore"):
        f1 = np.nan_to_num(2 * precision * recall / (precision + recall))
    f1[:, (precision < 0).all(axis=0)] = 0
    best = scores[f1.argmax(axis=0), np.arange(f1.shape[1])]
    return float(best[(f1 > 0).any(axis=0)].mean())


@pytest.mark.parametrize("seed", range(4))
def test_it_is_vos_rule_on_the_curves_of_pycocotools(seed: int) -> None:
    dataset, results = _coco_form(seed)
    truth = LvisGroundTruth.from_dict(dataset)
    found = Detections.from_json_list(results, truth.category_ids)
    threshold = best_f1_threshold(match_lvis(truth, found, max_dets=-1))
    assert 0 < threshold < 1
    assert threshold == pytest.approx(_by_vos(dataset, results), rel=1e-12)


def test_detections_that_are_all_wrong_have_no_best_threshold() -> None:
    dataset, _ = _coco_form(0)
    truth = LvisGroundTruth.from_dict(dataset)
    far = Detections([truth.image_ids[0]], [0], [0.9], [[9000.0, 9000.0, 1.0, 1.0]])
    for found in (far, Detections.empty()):
        with pytest.raises(UserError, match=rf"None of the {len(found)} detections"):
            best_f1_threshold(match_lvis(truth, found))
