"""Class counts and checks of registered sets."""

import json
import logging
import os
import pickle
from collections import Counter

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from logn_d2.cli import main
from logn_d2.config import config_file
from logn_d2.data import (
    check_dataset,
    check_same_classes,
    class_counts,
    fractal_dimensions,
    register_lvis_form,
)
from logn_d2.glyphs import register_glyphs


@pytest.fixture
def register(tmp_path):
    """Registers a set of these (image id, category id, more) objects."""

    def write(name, objects, categories=("lid", "jar"), images=3, **category_fields):
        content = {
            "images": [
                {"id": i, "file_name": f"{i}.jpg", "height": 20, "width": 20}
                for i in range(1, images + 1)
            ],
            "annotations": [
                {"id": n, "image_id": i, "category_id": c, "bbox": [1, 1, 5, 5], **more}
                for n, (i, c, more) in enumerate(objects)
            ],
            "categories": [
                {"id": i, "name": n, **{k: v[i - 1] for k, v in category_fields.items()}}
                for i, n in enumerate(categories, start=1)
            ],
        }
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
        register_lvis_form(name, tmp_path / f"{name}.json", tmp_path, check_images=0)

    return write


OBJECTS = [(1, 1, {}), (1, 1, {}), (1, 2, {}), (2, 1, {}), (2, 2, {"iscrowd": 1})]


def test_images_and_objects_are_counted_apart_and_crowds_not_at_all(register):
    register("shop", [*OBJECTS, (3, 2, {"iscrowd": 1})], images=4)
    counts = class_counts("shop")
    assert counts.class_names == ("lid", "jar")
    assert counts.image_count.tolist() == [2, 1] and counts.instance_count.tolist() == [3, 1]
    assert counts.image_count.dtype == counts.instance_count.dtype == np.int64
    assert counts.num_images == 2  # the third has a crowd alone, the fourth nothing


def test_counts_equal_a_slow_recount(tiny_root):
    register_glyphs(tiny_root)
    counts = class_counts("lt_glyphs_tiny_train")
    objects, images = Counter(), Counter()
    for record in DatasetCatalog.get("lt_glyphs_tiny_train"):
        classes = [a["category_id"] for a in record["annotations"]]
        objects.update(classes)
        images.update(set(classes))
    assert dict(enumerate(counts.image_count)) == images
    assert dict(enumerate(counts.instance_count)) == objects
    told = MetadataCatalog.get("lt_glyphs_tiny_train").class_image_count
    assert [entry["image_count"] for entry in told] == counts.image_count.tolist()


def test_class_without_an_object_counts_zero(register):
    register("shop", OBJECTS[:2], categories=("lid", "jar", "cup"))
    assert class_counts("shop").instance_count.tolist() == [2, 0, 0]


def test_counts_of_several_sets_are_added(register):
    register("first", OBJECTS)
    register("second", OBJECTS[:2], images=1)
    counts = class_counts(("first", "second"))
    assert counts.instance_count.tolist() == [5, 1] and counts.num_images == 3


@pytest.mark.parametrize("told, warns", [([2, 1], False), ([2, 9], True)])
def test_warns_if_the_json_has_other_counts(register, caplog, told, warns):
    register("shop", OBJECTS, image_count=told)
    with caplog.at_level(logging.WARNING, logger="logn_d2.data.counts"):
        assert class_counts("shop").image_count.tolist() == [2, 1]
    assert ("image_count differs" in caplog.text) is warns
    assert ("class 'jar': 9 in the json, 1 counted" in caplog.text) is warns


def test_empty_training_set_is_refused(register):
    register("shop", [])
    with pytest.raises(ValueError, match=r"shop has 3 images but no annotated object"):
        class_counts("shop")
    with pytest.raises(ValueError, match=r"DATASETS\.TRAIN"):
        class_counts(())


@pytest.mark.parametrize(
    "other, message",
    [(("lid", "cup"), "class 1 is 'jar' versus 'cup'"), (("lid",), "2 classes versus 1")],
)
def test_different_classes_are_refused(register, other, message):
    register("train", OBJECTS)
    register("val", OBJECTS[:2], categories=other)
    for check in (
        lambda: check_same_classes("train", "val"),
        lambda: class_counts(["train", "val"]),
    ):
        with pytest.raises(ValueError, match=message):
            check()


def test_same_classes_pass(tiny_root):
    register_glyphs(tiny_root)
    check_same_classes("lt_glyphs_tiny_train", "lt_glyphs_tiny_val")


def test_check_finds_nothing_wrong_with_a_drawn_set(tiny_root):
    register_glyphs(tiny_root)
    report = check_dataset("lt_glyphs_tiny_val")
    assert report.problems == ()
    assert (report.num_images, report.num_classes, report.num_without_mask) == (16, 12, 0)


def test_check_reports_images_boxes_and_absence(register):
    register("shop", [(1, 1, {"bbox": [1, 1, 0, 5]}), (2, 2, {"bbox": [9, 9, 30, 5]})])
    images, boxes = check_dataset("shop").problems
    assert images.startswith("3 of 3 images are missing, the first is ")
    assert boxes.startswith("1 boxes are empty and 1 boxes leave their image (first: image 1")
    register("empty", [], images=0)
    assert check_dataset("empty").problems == ("no object is annotated",)
    assert "registered" in check_dataset("nobody").problems[0]
    register_lvis_form("gone", "nowhere/gone.json", "nowhere")
    assert check_dataset("gone").problems == ("the annotations are missing: nowhere/gone.json",)


def check(*arguments):
    return main(["data", "check", *arguments])


def test_tool_prints_a_table_and_returns_success(tiny_root, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tiny_root))
    assert check() == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:3]] == [
        "lt_glyphs_tiny_train",
        "lt_glyphs_tiny_val",
    ]
    assert lines[1].split()[1:] == ["40", "141", "12", "0", "ok"]
    assert check("lvis_v1_train") == 1
    assert "annotations are missing" in capsys.readouterr().out


def test_tool_refuses_the_data_that_a_training_refuses(tiny_root, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tiny_root))
    base = config_file("glyphs_tiny_mask_rcnn_R_18_FPN.yaml")
    for num_classes, status in ((12, 0), (5, 1)):
        (tmp_path / "c.yaml").write_text(
            f"_BASE_: {base}\nMODEL: {{ROI_HEADS: {{NUM_CLASSES: {num_classes}}}}}\n"
        )
        assert check("--config-file", "c.yaml") == status
        out = capsys.readouterr().out
        assert ("has 12 classes, MODEL.ROI_HEADS.NUM_CLASSES is 5" in out) == bool(status)


def test_tool_names_the_searched_folder_if_nothing_is_found(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("DETECTRON2_DATASETS", os.fspath(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert check() == 1
    assert str(tmp_path) in capsys.readouterr().err


def test_fractal_dimensions_are_of_the_centres_of_objects_that_count(register):
    """Of 20 x 20 pixels: four quarters, three and a crowd, four at one place."""
    corners = [[1, 1, 4, 4], [15, 1, 4, 4], [1, 15, 4, 4], [12, 12, 8, 8]]
    register(
        "places",
        [
            *((n + 1, 1, {"bbox": box}) for n, box in enumerate(corners)),
            *((1, 2, {"bbox": box, "iscrowd": int(n == 0)}) for n, box in enumerate(corners)),
            *((2, 3, {}) for _ in corners),
        ],
        categories=("quarters", "three", "place", "none"),
        images=5,
    )
    assert fractal_dimensions("places").tolist() == [2, 1, 1, 1]
    counts = class_counts("places")
    assert counts.fractal_dimensions().tolist() == [2, 1, 1, 1]
    assert (counts.num_images, counts.num_records) == (4, 5)
    assert pickle.loads(pickle.dumps(counts)).fractal_dimensions().tolist() == [2, 1, 1, 1]


def test_fractal_dimensions_of_several_sets_are_of_all_their_objects(register):
    corners = [[1, 1, 4, 4], [15, 1, 4, 4], [1, 15, 4, 4], [12, 12, 8, 8]]
    for name, half in (("left", corners[:2]), ("right", corners[2:])):
        register(name, [(1, 1, {"bbox": box}) for box in half])
    assert fractal_dimensions("left").tolist() == [1, 1]
    assert fractal_dimensions(["left", "right"]).tolist() == [2, 1]
    assert class_counts(["left", "right"]).fractal_dimensions().tolist() == [2, 1]
