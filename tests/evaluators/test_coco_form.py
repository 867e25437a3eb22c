"""COCO's metrics with groups of classes, against pycocotools."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import Boxes, Instances

from logn_d2.evaluators.coco_form import COCOFormEvaluator, training_groups
from logn_d2.lvis.detections import Detections
from logn_d2.lvis.evaluate import evaluate_lvis
from logn_d2.lvis.ground_truth import LvisGroundTruth

from ..lvis.lvis_reference import random_detections, random_lvis, write_json

NAME, TRAIN = "coco_form_test", "coco_form_test_train"


@pytest.fixture
def dataset(tmp_path: Path) -> Iterator[dict[str, Any]]:
    """A registered COCO-form data set, and a training set with many and few images of a class."""
    content = random_lvis(np.random.default_rng(0), with_masks=False)
    # COCO's own evaluation does not drop what has no area.
    content["annotations"] = [a for a in content["annotations"] if a["area"] > 0]
    for image in content["images"]:
        del image["neg_category_ids"], image["not_exhaustive_category_ids"]
    for annotation in content["annotations"]:
        annotation["iscrowd"] = 0
    ids = [category["id"] for category in content["categories"]]
    names = [category["name"] for category in content["categories"]]
    MetadataCatalog.get(NAME).set(
        json_file=str(write_json(tmp_path / "truth.json", content)),
        thing_dataset_id_to_contiguous_id={category: k for k, category in enumerate(ids)},
        thing_classes=names,
    )
    counts = [101, 100, 11, 10, 1, 1, 0]
    records = [
        {"annotations": [{"category_id": k}]} for k, n in enumerate(counts) for _ in range(n)
    ]
    DatasetCatalog.register(TRAIN, lambda: records)
    MetadataCatalog.get(TRAIN).thing_classes = names
    yield content
    MetadataCatalog.pop(NAME)
    DatasetCatalog.remove(TRAIN)
    MetadataCatalog.pop(TRAIN)


def _run(
    evaluator: COCOFormEvaluator,
    content: dict[str, Any],
    seed: int | None = None,
    reverse: bool = False,
) -> tuple[dict, Detections]:
    """Results on drawn detections, which are sorted or, with a seed, in random order.

    With `reverse` the model numbers its classes from the last category to the first.
    """
    results = random_detections(np.random.default_rng(1), content, with_masks=False)
    ids = [category["id"] for category in content["categories"]]
    results = [result for result in results if result["bbox"][2] * result["bbox"][3] > 0]
    detections = Detections.from_json_list(results, ids).canonical()
    if seed is not None:
        detections = detections.take(np.random.default_rng(seed).permutation(len(detections)))
    evaluator.reset()
    for image in content["images"]:
        mine = detections.take(detections.image_id == image["id"])
        instances = Instances((image["height"], image["width"]))
        corners = mine.box.copy()
        corners[:, 2:] += corners[:, :2]
        instances.pred_boxes = Boxes(torch.from_numpy(corners))
        instances.scores = torch.from_numpy(mine.score)
        classes = torch.from_numpy(mine.category.astype(np.int64))
        instances.pred_classes = len(ids) - 1 - classes if reverse else classes
        evaluator.process([{"image_id": image["id"]}], [{"instances": instances}])
    return evaluator.evaluate()["bbox"], detections


def test_groups_are_by_training_images_and_the_rest_is_cocos(dataset: dict[str, Any]) -> None:
    from detectron2.evaluation import COCOEvaluator

    assert training_groups(TRAIN).tolist() == ["f", "c", "c", "r", "r", "r", "r"]
    ours, detections = _run(COCOFormEvaluator(NAME, train_datasets=TRAIN), dataset)
    theirs, _ = _run(COCOEvaluator(NAME), dataset)
    np.testing.assert_equal({name: ours[name] for name in theirs}, dict(theirs))
    assert set(ours) - set(theirs) == {"APr", "APc", "APf"}
    # An independent way to the same: our kernel follows COCO's rule for such a json.
    truth = LvisGroundTruth.from_dict(dataset)
    expected = evaluate_lvis(truth, detections, frequency_groups=training_groups(TRAIN)).as_dict()
    for name in ("AP", "APr", "APc", "APf"):
        np.testing.assert_allclose(ours[name], expected[name], atol=1e-6)
    assert ours["APf"] > 0


def test_the_order_of_an_images_detections_does_not_matter(dataset: dict[str, Any]) -> None:
    expected, _ = _run(COCOFormEvaluator(NAME), dataset)
    for seed in range(3):
        np.testing.assert_equal(_run(COCOFormEvaluator(NAME), dataset, seed)[0], expected)


def test_any_groups_and_a_file_of_all_classes(dataset: dict[str, Any], tmp_path: Path) -> None:
    names = [category["name"] for category in dataset["categories"]]
    evaluator = COCOFormEvaluator(
        NAME,
        class_groups={"pair": [names[0], dataset["categories"][2]["id"]]},
        output_dir=str(tmp_path / "out"),
    )
    results, _ = _run(evaluator, dataset)
    assert results["APpair"] == pytest.approx(
        np.nanmean([results[f"AP-{names[0]}"], results[f"AP-{names[2]}"]])
    )
    assert "APr" not in results
    with open(tmp_path / "out" / "per_class_bbox.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["class"] for row in rows] == names
    assert float(rows[0]["AP"]) == results[f"AP-{names[0]}"]


def test_classes_may_be_numbered_in_another_order_than_their_ids(dataset: dict[str, Any]) -> None:
    metadata = MetadataCatalog.get(NAME)
    json_file, names = metadata.json_file, list(metadata.thing_classes)
    ids = list(metadata.thing_dataset_id_to_contiguous_id)
    expected, _ = _run(COCOFormEvaluator(NAME), dataset)
    ap = [expected[f"AP-{name}"] for name in names]
    best = int(np.nanargmax(ap))
    assert ap[best] != ap[-1 - best]  # each has the number of the other one
    MetadataCatalog.pop(NAME)
    MetadataCatalog.get(NAME).set(
        json_file=json_file,
        thing_dataset_id_to_contiguous_id={c: len(ids) - 1 - k for k, c in enumerate(ids)},
        thing_classes=names[::-1],
    )
    evaluator = COCOFormEvaluator(NAME, class_groups={"best": [ids[best]]})
    found, _ = _run(evaluator, dataset, reverse=True)
    assert found.pop("APbest") == found[f"AP-{names[best]}"] == ap[best]
    np.testing.assert_equal(dict(found), dict(expected))


def test_without_groups_there_is_nothing_new(dataset: dict[str, Any]) -> None:
    results, _ = _run(COCOFormEvaluator(NAME), dataset)
    assert "APr" not in results and "AP" in results


def test_classes_with_one_name_and_other_classes_are_refused(dataset: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"shape \(2,\), expected \(7,\)"):
        COCOFormEvaluator(NAME, frequency_groups=["r", "c"])
    with pytest.raises(ValueError, match="the first is 'unicorn'"):
        COCOFormEvaluator(NAME, class_groups={"odd": ["unicorn"]})
    MetadataCatalog.get(NAME).thing_classes[1] = MetadataCatalog.get(NAME).thing_classes[0]
    with pytest.raises(ValueError, match="1 class names that several classes share"):
        COCOFormEvaluator(NAME)
