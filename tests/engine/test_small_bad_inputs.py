"""Data sets that pass the check train and evaluate; the check names those that training refuses."""

import copy
import json
import math

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from logn_d2.commands import data as tool
from logn_d2.data import check_dataset, register_lvis_form
from logn_d2.engine import Trainer, check_training
from logn_d2.engine.evaluation import evaluate_calibrations, make_calibrations
from logn_d2.modeling.build import TrainingClassCounts

SETS = ("small_train", "small_val")


def content():
    """Two images with three classes, in COCO's form, with polygons."""
    boxes = [[4, 4, 30, 30], [50, 8, 30, 40], [10, 50, 40, 30]]
    return {
        "images": [
            {"id": number, "file_name": f"{number}.png", "height": 96, "width": 96}
            for number in (1, 2)
        ],
        "annotations": [
            {
                "id": 10 * image + place,
                "image_id": image,
                "category_id": place,
                "bbox": box,
                "area": box[2] * box[3],
                "iscrowd": 0,
                "segmentation": [polygon(*box)],
            }
            for image in (1, 2)
            for place, box in enumerate(boxes, start=1)
        ],
        "categories": [{"id": i, "name": n} for i, n in enumerate(("square", "disc", "bar"), 1)],
    }


def polygon(left, top, width, height):
    right, bottom = left + width, top + height
    return [left, top, right, top, right, bottom, left, bottom]


def every(key, field, value, places=None):
    """A change of one field of some entries (all by default) of one list."""

    def change(data):
        for place, entry in enumerate(data[key]):
            if places is None or place in places:
                entry[field] = copy.deepcopy(value)

    return change


def without(key, field):
    return lambda data: data[key][0].pop(field)


def federated(data):
    for image in data["images"]:
        image.update(neg_category_ids=[], not_exhaustive_category_ids=[])


OBJECT = "annotations"
# Changes of the validation set alone: a training must not meet them at its end.
FINE = {
    "nothing": lambda data: None,
    "LVIS form": federated,
    "area 0": every(OBJECT, "area", 0),
    "area null": every(OBJECT, "area", None),
    "no area": without(OBJECT, "area"),
    "dollar names": every("categories", "name", "$ 5 $ <b> 屋根", [0]),
    "one object without a mask": every(OBJECT, "segmentation", [[]], [0]),
    "a polygon of two points": every(OBJECT, "segmentation", [[1, 1, 9, 9]], [0]),
    "no masks at all": every(OBJECT, "segmentation", []),
    "one crowd": every(OBJECT, "iscrowd", 1, [0]),
    "no objects": lambda data: data.update(annotations=[]) or federated(data),
    "an empty address": every("images", "coco_url", ""),
    "string ids of images": lambda data: (
        every("images", "id", "a", [0])(data),
        every("images", "id", "b", [1])(data),
        [a.update(image_id="ab"[a["image_id"] - 1]) for a in data[OBJECT]],
    ),
}
WRONG = {
    "neg_category_ids null": every("images", "neg_category_ids", None),
    "neg_category_ids of one image": every("images", "neg_category_ids", [], [0]),
    "two images with one id": every("images", "id", 1),
    "two categories with one id": every("categories", "id", 1),
    "two objects with one id": every(OBJECT, "id", 1),
    "image ids 1.0": every("images", "id", 1.0, [0]),
    "category ids of strings": every("categories", "id", "1", [0]),
    "a category more": lambda data: data["categories"].insert(0, {"id": 0, "name": "things"}),
    "a category less": lambda data: data["categories"].pop(),
    "other names": every("categories", "name", "ring", [1]),
    "another order": lambda data: [
        category.update(id=4 - category["id"]) for category in data["categories"]
    ],
    "a group with a taken name": every("categories", "frequency", "s"),
    "image_count null": every("categories", "image_count", None),
    "no id": without(OBJECT, "id"),
    "no bbox": without(OBJECT, "bbox"),
    "no height": without("images", "height"),
    "bbox of strings": every(OBJECT, "bbox", list("1234"), [0]),
    "bbox with NaN": every(OBJECT, "bbox", [1, 2, math.nan, 4], [0]),
    "bbox of five": every(OBJECT, "bbox", [1, 2, 3, 4, 5], [0]),
    "bbox of 10**400": every(OBJECT, "bbox", [1, 2, 3, 10**400], [0]),
    "a flat polygon": every(OBJECT, "segmentation", polygon(1, 1, 9, 9), [0]),
    "an endless polygon": every(OBJECT, "segmentation", [[1, 1, 1e12, 9, 9, 9]], [0]),
    "a mask of another size": every(OBJECT, "segmentation", {"size": [9, 9], "counts": [81]}, [0]),
    "run lengths of another image": every(
        OBJECT, "segmentation", {"size": [96, 96], "counts": "zz"}, [0]
    ),
    "iscrowd null": every(OBJECT, "iscrowd", None),
    "an unknown image": every(OBJECT, "image_id", 77, [0]),
    "an unknown category": every(OBJECT, "category_id", 77, [0]),
    "a missing image": every("images", "file_name", "nowhere.png", [0]),
    "an image of another size": every("images", "width", 97, [0]),
}
# Changes of the training set.
WRONG_TO_TRAIN = {
    "all crowds": every(OBJECT, "iscrowd", 1),
    "no masks at all": every(OBJECT, "segmentation", []),
    "run lengths among polygons": every(
        OBJECT, "segmentation", {"size": [96, 96], "counts": [4000, 200, 5016]}, [0]
    ),
}
FINE_TO_TRAIN = {
    "one object without a mask": every(OBJECT, "segmentation", [[]], [0]),
    "an image of which no object has a mask": every(OBJECT, "segmentation", [[]], [0, 1, 2]),
    "one crowd": every(OBJECT, "iscrowd", 1, [0]),
}


@pytest.fixture
def run(cfg, tmp_path, monkeypatch):
    """Writes both sets; returns the config and the problems that the data check finds."""

    def write(train, val):
        for name, change in zip(SETS, (train, val), strict=True):
            data = content()
            change(data)
            (tmp_path / f"{name}.json").write_text(json.dumps(data))
            register_lvis_form(name, tmp_path / f"{name}.json", tmp_path)
        noise = np.random.default_rng(0).integers(0, 255, (96, 96, 3), dtype=np.uint8)
        for number in (1, 2):
            Image.fromarray(noise).save(tmp_path / f"{number}.png")
        cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = SETS[:1], SETS[1:]
        cfg.MODEL.ROI_HEADS.NUM_CLASSES = 3
        cfg.SOLVER.MAX_ITER, cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.STEPS = 1, 2, ()
        cfg.OUTPUT_DIR = str(tmp_path / "out")
        problems = [problem for name in SETS for problem in check_dataset(name).problems]
        return problems or tool.config_problems(cfg)

    yield write
    for name in SETS:
        DatasetCatalog.remove(name)
        MetadataCatalog.pop(name)


@pytest.mark.parametrize("name", FINE)
def test_what_is_fine_to_evaluate_is_called_ok_and_evaluated(run, cfg, name):
    change = FINE[name]
    both = name == "dollar names"  # classes are those of the training set
    problems = run(change if both else FINE["nothing"], change)
    if name == "no objects":
        problems = [each for each in problems if each != "no object is annotated"]
    assert not problems
    check_training(cfg, 1)
    cfg.MODEL.LOGN.CALIBRATION = "norcal(gamma=0.6)"
    model = Trainer.build_model(cfg)
    calibrations = make_calibrations(cfg, model, None, TrainingClassCounts(cfg))
    options = {"build_evaluator": Trainer.build_evaluator}
    assert evaluate_calibrations(cfg, model, calibrations, **options)


@pytest.mark.parametrize("name", FINE_TO_TRAIN)
def test_what_is_fine_to_train_on_is_called_ok_and_trained(run, cfg, name):
    assert not run(FINE_TO_TRAIN[name], FINE["nothing"])
    train_whole(cfg)


def train_whole(cfg):
    check_training(cfg, 1)
    cfg.MODEL.LOGN.VIS_IMAGES = 0
    torch.manual_seed(0)
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=False)
    assert trainer.train()  # statistics and evaluation too


@pytest.mark.parametrize("name", WRONG)
def test_what_the_evaluation_would_refuse_is_named_before_training(run, cfg, name):
    assert run(FINE["nothing"], WRONG[name])
    with pytest.raises((ValueError, OSError, KeyError)):
        check_training(cfg, 1)


@pytest.mark.parametrize("name", WRONG_TO_TRAIN)
def test_what_can_not_be_trained_on_is_named_before_training(run, cfg, name):
    assert run(WRONG_TO_TRAIN[name], FINE["nothing"])
    with pytest.raises((ValueError, OSError, KeyError)):
        check_training(cfg, 1)
