"""One set of rules for the annotations of training and evaluation; errors name the place."""

import copy
import json
import math

import numpy as np
import pycocotools.mask as mask_util
import pytest

from logn_d2.analysis import calibration_quality
from logn_d2.annotations import _read_json, check_annotations, mask_of, read_annotations
from logn_d2.lvis import Detections, LvisGroundTruth, RleMasks, evaluate_lvis

from .load_script import load_script

SQUARE = [2.0, 2.0, 12.0, 2.0, 12.0, 12.0, 2.0, 12.0]


def content():
    """Two images, two classes, one object of each in each image; COCO's form."""
    objects = [(1, 4, 7), (2, 4, 20), (3, 9, 7), (4, 9, 20)]
    return {
        "images": [
            {"id": number, "file_name": f"{number}.png", "height": 32, "width": 40}
            for number in (4, 9)
        ],
        "annotations": [
            {
                "id": number,
                "image_id": image,
                "category_id": category,
                "bbox": [2.0, 2.0, 10.0, 10.0],
                "area": 100.0,
                "iscrowd": 0,
                "segmentation": [SQUARE],
            }
            for number, image, category in objects
        ],
        "categories": [{"id": 7, "name": "lid"}, {"id": 20, "name": "jar"}],
    }


# What is wrong: (list, position, field, value) and what the message says beside file and entry.
BROKEN = [
    ("images", 1, "id", 4, "more than once"),
    ("images", 1, "id", 1.0, "type float"),
    ("images", 1, "id", "9", "type str"),
    ("annotations", 2, "image_id", "4", "type str"),
    ("annotations", 2, "image_id", 2**64, "64 bits"),
    ("images", 0, "height", "32", "positive number of pixels"),
    ("images", 0, "width", math.nan, "positive number of pixels"),
    ("images", 0, "neg_category_ids", None, "list of category ids"),
    ("categories", 1, "id", 7, "more than once"),
    ("categories", 1, "id", "7", "type str"),
    ("categories", 1, "name", 0, "string that is not empty"),
    ("categories", 1, "image_count", None, "whole number of 0 or more"),
    ("annotations", 2, "id", 1, "more than once"),
    ("annotations", 2, "category_id", 7.0, "ids of the file"),
    ("annotations", 2, "bbox", None, "four finite numbers"),
    ("annotations", 2, "bbox", [], "four finite numbers"),
    ("annotations", 2, "bbox", [1, 2, 3, 4, 5], "four finite numbers"),
    ("annotations", 2, "bbox", ["1", "2", "3", "4"], "four finite numbers"),
    ("annotations", 2, "bbox", [1.0, math.nan, 3.0, 4.0], "four finite numbers"),
    ("annotations", 2, "area", "100", "a number"),
    ("annotations", 2, "iscrowd", None, "0 or 1"),
    ("annotations", 2, "iscrowd", "0", "0 or 1"),
    ("annotations", 2, "segmentation", SQUARE, "list of polygons"),
    ("annotations", 2, "segmentation", [[[2, 2], [12, 2], [12, 12]]], "finite pixel"),
    ("annotations", 2, "segmentation", [[2.0, math.nan, *SQUARE]], "finite pixel"),
    ("annotations", 2, "segmentation", [[2.0, math.inf, *SQUARE]], "finite pixel"),
    ("annotations", 2, "segmentation", [[2.0, 1e12, *SQUARE]], "finite pixel"),
    ("annotations", 2, "segmentation", {"size": [40, 32], "counts": [1280]}, "resized image"),
    ("annotations", 2, "segmentation", {"size": [32, 40], "counts": [7]}, "32 x 40 pixels"),
    ("annotations", 2, "segmentation", {"size": [32, 40], "counts": "zzzz"}, "32 x 40 pixels"),
    ("annotations", 2, "segmentation", {"size": [32, 40], "counts": "1"}, "32 x 40 pixels"),
    ("annotations", 2, "segmentation", {"size": [32, 40], "counts": "é"}, "32 x 40 pixels"),
    ("annotations", 2, "area", 10**400, "a number"),
    ("annotations", 2, "bbox", [0, 0, 10**400, 1], "four finite numbers"),
    ("annotations", 2, "ignore", [], "0 or 1"),
    ("categories", 1, "synonyms", "jar", "list of strings"),
]


@pytest.mark.parametrize(("section", "position", "field", "value", "said"), BROKEN)
def test_a_wrong_value_is_named_by_file_list_and_entry(section, position, field, value, said):
    broken = content()
    broken[section][position][field] = value
    with pytest.raises(ValueError) as error:
        check_annotations(broken, "val.json")
    assert f"val.json: {section}[{position}]" in str(error.value) and said in str(error.value)


@pytest.mark.parametrize(
    ("section", "field"),
    [
        ("images", "id"),
        ("categories", "id"),
        ("annotations", "id"),
        ("annotations", "bbox"),
        ("annotations", "image_id"),
        ("annotations", "category_id"),
    ],
)
def test_a_missing_field_is_named(section, field):
    broken = content()
    del broken[section][1][field]
    with pytest.raises(ValueError, match=rf"val.json: {section}\[1\].* has no '{field}'"):
        check_annotations(broken, "val.json")


def test_what_is_right_passes():
    check_annotations(content(), "val.json")
    check_annotations({"images": [], "annotations": [], "categories": []}, "empty.json")


def test_names_are_utf8_in_any_locale_and_a_mark_at_the_start_is_fine(tmp_path):
    named = content()
    named["categories"][0]["name"] = "Dächer $ 屋根"
    text = json.dumps(named, ensure_ascii=False)
    for encoding in ("utf-8", "utf-8-sig"):
        (tmp_path / "a.json").write_text(text, encoding=encoding)
        assert read_annotations(tmp_path / "a.json") == named
    (tmp_path / "b.json").write_text(text, encoding="utf-16")
    with pytest.raises(ValueError, match="b.json is not encoded in UTF-8"):
        read_annotations(tmp_path / "b.json")


def test_short_polygons_are_no_mask():
    assert mask_of({"segmentation": [[], [1, 2], SQUARE]}) == [SQUARE]
    for none in (None, [], [[]], [[1, 2, 3, 4]], [[1, 2, 3, 4, 5, 6, 7]]):
        assert mask_of({"segmentation": none}) is None


@pytest.mark.parametrize("seed", range(20))
def test_compressed_run_lengths_of_pycocotools_are_read(seed):
    draw = np.random.default_rng(seed)
    height, width = draw.integers(1, 400, 2)
    pixels = np.cumsum(draw.random((height, width)) < draw.choice([0.0, 0.01, 0.5]), axis=0) % 2
    rle = mask_util.encode(np.asfortranarray(pixels.astype(np.uint8)))
    described = content()
    described["images"][0].update(height=int(height), width=int(width))
    for counts in (rle["counts"], rle["counts"].decode()):
        described["annotations"][0]["segmentation"] = {"size": rle["size"], "counts": counts}
        check_annotations(described, "val.json")


def test_negative_lists_are_given_for_all_images_or_none():
    some = content()
    some["images"][0]["neg_category_ids"] = []
    with pytest.raises(ValueError, match="val.json gives neg_category_ids for 1 of 2 images"):
        check_annotations(some, "val.json")


def test_a_json_that_is_nested_without_end_is_named(tmp_path):
    (tmp_path / "deep.json").write_text("[" * 200_000)
    with pytest.raises(ValueError, match="deep.json"):
        read_annotations(tmp_path / "deep.json")


def perfect_ap(truth):
    """Box AP of detections that are the objects of `content()`, whatever `truth` says."""
    whole = LvisGroundTruth.from_dict(content(), masks=False)
    found = Detections(
        image_id=whole.image_ids[whole.image],
        category=whole.category,
        score=np.ones(len(whole.box)),
        box=whole.box,
    )
    return evaluate_lvis(truth, found).metrics["AP"]


@pytest.mark.parametrize("area", [0, None, math.nan])
def test_in_coco_form_an_object_counts_whatever_its_area(area):
    without = content()
    without["annotations"][0]["area"] = area
    truth = LvisGroundTruth.from_dict(without, masks=False)
    assert len(truth.box) == 4 and perfect_ap(truth) == pytest.approx(1.0)


@pytest.mark.parametrize("area", [0, math.nan])
def test_in_lvis_form_an_object_without_area_is_left_out_and_named(caplog, area):
    without = content()
    without["annotations"][0]["area"] = area
    for image in without["images"]:
        image["neg_category_ids"] = []
    assert len(LvisGroundTruth.from_dict(without).box) == 3
    assert "1 of 4 annotations have no area above 0" in caplog.text and "first is 1" in caplog.text


def test_objects_without_a_mask_are_counted_and_named(caplog):
    without = content()
    without["annotations"][2]["segmentation"] = [[0, 0, 4, 4]]
    truth = LvisGroundTruth.from_dict(without)
    assert truth.without_mask.tolist() == [False, False, True, False]
    assert "1 of 4 objects have no mask, the first is annotation 3" in caplog.text
    for each in without["annotations"]:
        each["segmentation"] = []
    assert LvisGroundTruth.from_dict(without).masks is None


@pytest.mark.parametrize("seed", range(5))
def test_mask_ap_leaves_an_object_without_a_mask_to_nobody(seed):
    """It is that of a set without the object whose image is not exhaustive for its class."""
    draw = np.random.default_rng(seed)
    without = content()
    for image in without["images"]:
        image.update(neg_category_ids=[7, 20], not_exhaustive_category_ids=[])
    removed = copy.deepcopy(without)
    without["annotations"][2]["segmentation"] = [[]]
    del removed["annotations"][2]
    removed["images"][1]["not_exhaustive_category_ids"] = [7]
    pixels = np.zeros((32, 40), dtype=np.uint8)
    pixels[2:12, 2:12] = 1
    mask = mask_util.encode(np.asfortranarray(pixels))
    found = Detections(
        image_id=draw.choice([4, 9], 12),
        category=draw.integers(0, 2, 12),
        score=draw.random(12),
        box=np.tile([2.0, 2.0, 10.0, 10.0], (12, 1)),
        masks=RleMasks.from_dicts([mask] * 12),
    )
    truths = [LvisGroundTruth.from_dict(each) for each in (without, removed)]
    results = [evaluate_lvis(truth, found, iou_type="segm").per_class_ap for truth in truths]
    np.testing.assert_array_equal(*results)
    counts = [calibration_quality(truth, found, iou_type="segm").count for truth in truths]
    np.testing.assert_array_equal(*counts)
    assert len(truths[0]) == 4 and len(truths[1]) == 3  # boxes count in both tasks' own way


@pytest.mark.parametrize("reader", ["evaluation", "training"])
def test_any_changed_field_is_read_as_it_was_or_named(reader, tmp_path):
    fuzz = load_script("benchmarks/fuzz_annotations.py")
    fine = ("same", "named", "refused", "another valid value")
    found = {seed: fuzz.outcome(fuzz.READERS[reader], seed, tmp_path) for seed in range(300)}
    assert not {seed: how for seed, how in found.items() if how not in fine}
    assert {"same", "named", "refused"} <= set(found.values())


VALUES = (
    *(
        None,
        True,
        False,
        0,
        1,
        -1,
        2,
        0.5,
        -(2**70),
        10**6,
        10**6 + 1,
        10**30,
        2**63,
        math.nan,
        math.inf,
    ),
    *("", "1", b"1", [], {}, (), [[]], [1], [[1, 2]], [(1, 2, 3, 4)], {"size": [4, 4]}),
    *([0, 0, 4], [0, 0, 4, 4], (0, 0, 4, 4), [0, 0, -1, 4], [0, 0, "4", 4], [0, 0, True, 4]),
    *([0, 0, math.nan, 4], [0, 0, 4, 10**7], [[0, 0, 4, 0, 4, 4]], [[0, 0, 4, math.inf, 4, 4]]),
    *([[0, 0, 4, 0, 4, -1e6]], [[0, 0, 4, 0, 4, "4"]], [[0, 0, True, 0, 4, 4]], 10**16),
)


def test_a_look_at_many_objects_lets_nothing_pass_that_a_look_at_each_refuses(monkeypatch):
    fields = ("id", "image_id", "category_id", "bbox", "area", "segmentation", "iscrowd", "ignore")

    def refusals():
        found = {}
        for field in fields:
            for place, value in enumerate(VALUES):
                data = content()
                data["annotations"][1][field] = value
                try:
                    check_annotations(data, "file.json")
                except ValueError as error:
                    found[field, place] = str(error)
        return found

    quick = refusals()
    monkeypatch.setattr("logn_d2.annotations._are_plain", lambda objects, kind: False)
    monkeypatch.setattr("logn_d2.annotations._are_ids", lambda ids, kind: False)
    assert refusals() == quick
    assert 100 < len(quick) < len(fields) * len(VALUES)


def test_every_object_is_looked_at_wherever_it_lies(monkeypatch):
    monkeypatch.setattr("logn_d2.annotations._BLOCK", 2)
    data = content()
    data["annotations"] = [{**data["annotations"][0], "id": number} for number in range(7)]
    check_annotations(data, "file.json")
    data["annotations"][6]["bbox"] = [0, 0, -1, 4]
    with pytest.raises(ValueError, match=r"annotations\[6\] \(id 6\) has bbox"):
        check_annotations(data, "file.json")


@pytest.mark.parametrize("text", ['{"a": NaN}', '{"a": -Infinity}', '{"a": 0.1, "a": 2}'])
def test_both_parsers_read_the_same(text, tmp_path, monkeypatch):
    """Also what is no json, but what Python's parser reads."""
    path = tmp_path / "some.json"
    path.write_text(text)
    quick = _read_json(path)
    monkeypatch.setattr("logn_d2.annotations.orjson", None)
    np.testing.assert_equal(_read_json(path), quick)
