"""Data sets, masks and model that do not belong together are refused before any work."""

import json
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from logn_d2.config import add_logn_config
from logn_d2.core import (
    CalibrationInputs,
    ClassCounts,
    LogitStatistics,
    PosteriorMoments,
    StageStatistics,
    build_calibration,
)
from logn_d2.data import class_counts, register_lvis_form
from logn_d2.data.loader import training_images
from logn_d2.engine.checks import (
    check_calibration,
    check_classes,
    check_ground_truth,
    check_images,
    check_masks,
)
from logn_d2.engine.evaluation import read_ground_truth
from logn_d2.engine.statistics import warn_of_unused_classes
from logn_d2.lvis import Detections, evaluate_lvis

SQUARE = [2.0, 2.0, 12.0, 2.0, 12.0, 12.0]
RUNS = {"size": [32, 40], "counts": [10, 20, 1250]}


@pytest.fixture
def register(tmp_path):
    """Registers a set with one object a class in one image; forgets it afterwards."""
    names = []

    def write(name, categories, masks=(), **fields):
        masks = [*masks, *[SQUARE] * (len(categories) - len(masks))]
        content = {
            "images": [{"id": 1, "file_name": "a.png", "height": 32, "width": 40}],
            "annotations": [
                {
                    "id": number,
                    "image_id": 1,
                    "category_id": category,
                    "bbox": [2, 2, 10, 10],
                    "segmentation": [mask] if isinstance(mask, list) else mask,
                    **fields,
                }
                for number, (category, mask) in enumerate(zip(categories, masks, strict=True))
            ],
            "categories": [{"id": i, "name": n} for i, n in categories.items()],
        }
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
        Image.new("RGB", (40, 32)).save(tmp_path / "a.png")
        register_lvis_form(name, tmp_path / f"{name}.json", tmp_path)
        names.append(name)

    yield write
    for name in names:
        DatasetCatalog.remove(name)
        MetadataCatalog.pop(name)


TRAIN = {1: "square", 2: "disc", 3: "bar"}


@pytest.mark.parametrize(
    ("val", "num_classes", "message"),
    [
        ({0: "things", **TRAIN}, 3, "'other_val' has 4 classes, .*NUM_CLASSES is 3"),
        ({1: "square", 2: "bar", 3: "disc"}, 3, "class 1 is 'disc' versus 'bar'"),
        ({1: "square", 2: "disc", 3: "Bar"}, 3, "class 2 is 'bar' versus 'Bar'"),
        (TRAIN, 5, "'own_train' has 3 classes, .*NUM_CLASSES is 5"),
    ],
)
def test_sets_and_model_must_have_the_same_classes(register, cfg, val, num_classes, message):
    register("own_train", TRAIN)
    register("other_val", val)
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = num_classes
    cfg.DATASETS.TRAIN = ("own_train",)
    with pytest.raises(ValueError, match=message):
        check_classes(cfg, ["other_val"])  # as before an evaluation


def test_the_same_classes_with_other_ids_are_the_same(register, cfg):
    register("own_train", TRAIN)
    register("own_val", {10 * i: name for i, name in TRAIN.items()})
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 3
    cfg.DATASETS.TRAIN = ("own_train", "a_set_on_another_machine")
    check_classes(cfg, ["own_val"])


def test_masks_must_be_of_the_format_that_is_trained(register, cfg):
    register("mixed", TRAIN, masks=[RUNS])
    cfg.DATASETS.TRAIN = ("mixed",)
    with pytest.raises(ValueError, match="1 of the 3 masks of 'mixed' .*Set it to bitmask"):
        check_masks(cfg)
    cfg.INPUT.MASK_FORMAT = "bitmask"
    check_masks(cfg)


def test_a_bitmap_set_has_a_mask_for_every_object(register, cfg):
    register("some", TRAIN, masks=[None])
    cfg.DATASETS.TRAIN = ("some",)
    check_masks(cfg)
    cfg.INPUT.MASK_FORMAT = "bitmask"
    with pytest.raises(ValueError, match="1 of the 3 objects of 'some' have no mask"):
        check_masks(cfg)


def test_what_the_evaluation_refuses_is_refused_before_training(register, cfg):
    register("own_val", TRAIN, frequency="r")  # of objects, where it says nothing
    cfg.DATASETS.TEST = ("own_val",)
    check_ground_truth(cfg)
    path = MetadataCatalog.get("own_val").json_file
    with open(path) as file:
        content = json.load(file)
    for category in content["categories"]:
        category["frequency"] = "s"  # APs is the AP of small objects
    with open(path, "w") as file:
        json.dump(content, file)
    with pytest.raises(ValueError, match="A group is named 's'"):
        check_ground_truth(cfg)


def test_masks_are_needed_only_where_they_are_trained(register, cfg):
    register("boxes", TRAIN, masks=[None] * 3)
    cfg.DATASETS.TRAIN = ("boxes",)
    with pytest.raises(ValueError, match="None of the 3 objects of 'boxes' has a mask"):
        check_masks(cfg)
    cfg.MODEL.MASK_ON = False
    check_masks(cfg)


def test_a_set_of_crowds_is_reported(register, cfg):
    register("crowds", TRAIN, iscrowd=1)
    cfg.DATASETS.TRAIN = ("crowds",)
    with pytest.raises(ValueError, match="3 of 3 objects are crowds"):
        training_images(cfg)


def test_a_damaged_image_is_named_before_training(register, tmp_path):
    register("own_train", TRAIN)
    check_images(["own_train"], 10)
    (tmp_path / "a.png").write_bytes((tmp_path / "a.png").read_bytes()[:-20])
    check_images(["own_train"], 0)
    with pytest.raises(ValueError, match=r"An image of 'own_train' can't be used: .*a\.png"):
        check_images(["own_train"], 10)


def test_calibrated_groups_are_those_of_the_data_set(tiny_folder):
    counts = class_counts("lt_glyphs_tiny_train")
    with open(MetadataCatalog.get("lt_glyphs_tiny_train").json_file) as file:
        categories = sorted(json.load(file)["categories"], key=lambda c: c["id"])
    letters = np.array([category["frequency"] for category in categories])
    assert counts.groups.tolist() == letters.tolist() and set(letters) == {"r", "c", "f"}
    inputs = CalibrationInputs(num_classes=len(letters), counts=counts)
    scale = build_calibration("groups(frequent=temperature(temperature=2))", inputs).scale
    assert (scale.numpy() == np.where(letters == "f", 0.5, 1.0)).all()


@pytest.mark.parametrize(
    ("text", "settings", "message"),
    [
        ("auto", {}, None),
        ("p2p(source=labels)", {}, None),
        ("norcal(gamma=auto)", {}, None),
        ("p2p", {"POPULATION": "proposals"}, None),
        ("logn", {"ESTIMATOR": "ema"}, None),
        ("auto", {"ESTIMATOR": "ema"}, "needs mean posteriors"),
        ("p2p", {"POPULATION": "positives"}, "needs mean posteriors"),
        ("p2p(source=negatives)", {"POPULATION": "proposals"}, "needs the classes that RoIs"),
        ("logn(source=negatives)", {"POPULATION": "proposals"}, "needs the classes that RoIs"),
    ],
)
def test_what_a_pass_will_not_gather_is_missed_before_training(text, settings, message):
    cfg = get_cfg()
    add_logn_config(cfg)
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 3
    cfg.MODEL.LOGN.COLLECT.update(settings)
    with nullcontext() if message is None else pytest.raises(ValueError, match=message):
        check_calibration(cfg, text, True, collects=True)


@pytest.mark.parametrize(("lowest", "warned"), [(0, True), (1, False)])
def test_a_class_without_objects_that_sets_beta_is_named(caplog, lowest, warned):
    mean = torch.zeros(3, dtype=torch.float64)
    mean[lowest] = -9.0
    stage = StageStatistics(mean, torch.ones(3, dtype=torch.float64), torch.full((3,), 5))
    count = np.array([0, 4])
    counts = ClassCounts(("things", "disc"), count, count, 4)
    warn_of_unused_classes(LogitStatistics((stage,), ("things", "disc")), lambda: counts)
    assert ("class 'things' has no training object" in caplog.text) is warned


def test_the_training_set_is_not_counted_for_a_class_that_the_pass_has_seen():
    posteriors, logits = PosteriorMoments(3), torch.tensor([[-9.0, 1.0, 2.0], [-8.0, 1.0, 2.0]])
    posteriors.update(logits, logits.softmax(1), torch.tensor([0, 2]))
    mean, count = logits.double().mean(0), torch.full((3,), 2)
    stage = StageStatistics(mean, torch.ones(3, dtype=torch.float64), count, posteriors=posteriors)
    warn_of_unused_classes(LogitStatistics((stage,), ("things", "disc")), count=pytest.fail)


def test_classes_of_coco_form_have_the_groups_of_their_training_images(register):
    register("own_train", TRAIN)
    register("own_val", TRAIN)
    truth = read_ground_truth("own_val", ("own_train",))
    assert truth.groups.tolist() == ["r", "r", "r"]
    assert "APr" in evaluate_lvis(truth, Detections.empty()).metrics
    assert read_ground_truth("own_val").groups is None
    register("of_others", {1: "square"})
    assert read_ground_truth("own_val", ("of_others",)).groups is None
