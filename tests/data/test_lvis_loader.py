"""Files that Detectron2's loader of LVIS can't use are refused with their first mistake."""

import copy
import json

import pytest
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets.lvis import get_lvis_instances_meta, register_lvis_instances

from logn_d2.config import add_logn_config
from logn_d2.data import check_dataset, class_counts, records_kept
from logn_d2.data.loader import build_evaluation_loader, training_images
from logn_d2.errors import UserError

ADDRESS = "http://images.cocodataset.org/train2017/000000000009.jpg"
LIKE_V0_5 = "COCO_val2014_000000000009.jpg"
CONTENT = {
    "images": [
        {"id": 4, "height": 8, "width": 9, "coco_url": ADDRESS},
        {"id": 9, "height": 8, "width": 9, "coco_url": ADDRESS, "file_name": LIKE_V0_5},
    ],
    "annotations": [
        {
            "id": each,
            "image_id": each,
            "category_id": 1,
            "bbox": [0, 0, 4, 4],
            "area": 8,
            "segmentation": [[0, 0, 4, 0, 4, 4]],
        }
        for each in (4, 9)
    ],
    "categories": [{"id": 1, "name": "cup", "frequency": "r"}],
}


@pytest.fixture(params=["lvis_v1_own", "lvis_v0.5_own"])
def lvis(tmp_path, request):
    """Registers a changed file as Detectron2 does, under a name of v1 and of v0.5."""

    def register(change):
        content = copy.deepcopy(CONTENT)
        change(content)
        path = tmp_path / "lvis.json"
        path.write_text(json.dumps(content))
        register_lvis_instances(
            request.param, get_lvis_instances_meta(request.param), str(path), str(tmp_path) + "/"
        )
        return request.param

    return register


def second_image(**fields):
    def change(content):
        image = content["images"][1]
        image.update(fields)
        for key in [key for key, value in fields.items() if value is ...]:
            del image[key]

    return change


def second_object(segmentation):
    return lambda content: content["annotations"][1].update(segmentation=segmentation)


def config(name):
    cfg = get_cfg()
    add_logn_config(cfg)
    cfg.DATASETS.TRAIN = (name,)
    return cfg


def kept(name):
    with records_kept([name]):
        DatasetCatalog.get(name)


# Whatever a command asks for first.
READERS = {
    "training images": lambda name: training_images(config(name)),
    "evaluation images": lambda name: build_evaluation_loader(config(name), name),
    "class counts": class_counts,
    "start of a training": kept,
}
MISTAKES = {
    "no address": (second_image(coco_url=...), "has no coco_url (file_name 'COCO_val2014_"),
    "neither": (second_image(coco_url=..., file_name=...), "has no coco_url;"),
    "an address null": (second_image(coco_url=None), "has no coco_url (file_name"),
    "an address without a folder": (second_image(coco_url="9.jpg"), "has the coco_url '9.jpg'"),
    "a number as address": (second_image(coco_url=9), "has coco_url 9; expected a string"),
    "no height": (second_image(height=...), "height"),
    "no polygon": (second_object([]), "annotations[1] (id 9) has no polygon"),
    "two points": (second_object([[0, 0, 4, 4]]), "of fewer than three points"),
    "a point and a half": (second_object([[0, 0, 4, 4, 1, 1, 2]]), "annotations[1] (id 9)"),
    "run lengths": (second_object({"size": [8, 9], "counts": [72]}), "annotations[1] (id 9)"),
}


@pytest.mark.parametrize("reader", READERS)
def test_every_reader_names_the_file_the_image_and_the_remedy(lvis, reader):
    with pytest.raises(UserError) as caught:
        READERS[reader](lvis(second_image(coco_url=...)))
    message = str(caught.value)
    assert "lvis.json: images[1] (id 9) has no coco_url" in message
    assert "train2017" in message and "MODEL.LOGN.DATASETS" in message


@pytest.mark.parametrize("mistake", MISTAKES)
def test_the_check_tells_what_is_wrong(lvis, mistake):
    change, expected = MISTAKES[mistake]
    (problem,) = check_dataset(lvis(change)).problems
    assert expected in problem and "lvis.json" in problem


def test_a_good_file_is_read_by_the_last_two_parts_of_its_address(lvis, tmp_path):
    name = lvis(lambda content: None)
    expected = str(tmp_path / "train2017" / "000000000009.jpg")
    assert [record["file_name"] for record in training_images(config(name))] == [expected] * 2


def test_another_error_passes_through(lvis):
    name = lvis(lambda content: None)
    DatasetCatalog.pop(name)
    DatasetCatalog.register(name, lambda: {}["of another loader"])
    with pytest.raises(KeyError, match="of another loader"):
        kept(name)


def test_sets_of_our_own_form_are_not_held_to_these_rules(tmp_path):
    from logn_d2.data import register_lvis_form

    content = copy.deepcopy(CONTENT)
    for image in content["images"]:
        del image["coco_url"]
        image["file_name"] = "a.jpg"
    for each in content["annotations"]:
        each.update(iscrowd=1, segmentation=[])
    (tmp_path / "own.json").write_text(json.dumps(content))
    register_lvis_form("own", tmp_path / "own.json", tmp_path, check_images=0)
    with pytest.raises(UserError, match="2 of 2 objects are crowds"):
        training_images(config("own"))
    assert MetadataCatalog.get("own").thing_classes == ["cup"]
