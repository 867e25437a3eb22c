"""Data sets in LVIS and COCO format: registered without reading, read with clear errors."""

import json
import logging
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, DatasetMapper, MetadataCatalog
from detectron2.data.datasets.coco import load_coco_json
from detectron2.structures import BoxMode

from logn_d2.config import add_logn_config
from logn_d2.data import load_lvis_form, register_from_config, register_lvis_form

SQUARE = [2.0, 2.0, 12.0, 2.0, 12.0, 12.0, 2.0, 12.0]


def annotation(number, image_id, category_id, **more):
    return {
        "id": number,
        "image_id": image_id,
        "category_id": category_id,
        "bbox": [2.0, 2.0, 10.0, 10.0],
        "area": 100.0,
        "iscrowd": 0,
        **more,
    }


def coco_form():
    """Two classes with gaps between their ids and a polygon for each of three objects."""
    return {
        "images": [
            {"id": 9, "file_name": "b.png", "height": 32, "width": 40},
            {"id": 4, "file_name": "a.png", "height": 32, "width": 40},
        ],
        "annotations": [
            annotation(1, 9, 20, segmentation=[SQUARE]),
            annotation(2, 4, 7, segmentation=[SQUARE]),
            annotation(3, 4, 20, segmentation=[SQUARE]),
        ],
        "categories": [{"id": 20, "name": "jar"}, {"id": 7, "name": "lid"}],
    }


@pytest.fixture
def shop(tmp_path):
    """Writes an annotation file and its two images; returns (json file, image folder)."""

    def write(content, images=("a.png", "b.png")):
        (tmp_path / "images").mkdir(exist_ok=True)
        for name in images:
            (tmp_path / "images" / name).parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(tmp_path / "images" / name), np.zeros((32, 40, 3), np.uint8))
        path = tmp_path / "shop.json"
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return path, tmp_path / "images"

    return write


def load(paths, **more):
    register_lvis_form("shop", *paths, **more)
    return DatasetCatalog.get("shop")


def config_with(entries):
    cfg = get_cfg()
    add_logn_config(cfg)
    cfg.MODEL.LOGN.DATASETS = entries
    return cfg


def test_registering_reads_nothing(tmp_path):
    register_lvis_form("shop", tmp_path / "none.json", tmp_path)
    meta = MetadataCatalog.get("shop")
    assert meta.evaluator_type == "lvis"
    assert meta.json_file == str(tmp_path / "none.json")
    assert meta.image_root == str(tmp_path)


def test_coco_form_loads_as_by_detectron2(shop):
    paths = shop(coco_form())
    assert load(paths) == load_coco_json(str(paths[0]), str(paths[1]), "the_same_in_detectron2")
    assert MetadataCatalog.get("shop").federated is False


def test_classes_are_contiguous_in_the_order_of_category_ids(shop):
    records = load(shop(coco_form()))
    meta = MetadataCatalog.get("shop")
    assert meta.thing_classes == ["lid", "jar"]
    assert meta.thing_dataset_id_to_contiguous_id == {7: 0, 20: 1}
    assert [[a["category_id"] for a in r["annotations"]] for r in records] == [[0, 1], [1]]
    assert [r["image_id"] for r in records] == [4, 9]


def test_metadata_is_there_before_the_set_is_loaded(shop):
    content = coco_form()
    for number, category in enumerate(content["categories"], start=1):
        category.update(image_count=number, instance_count=2 * number)
    register_lvis_form("shop", *shop(content))
    meta = MetadataCatalog.get("shop")
    assert meta.class_image_count == [{"id": 7, "image_count": 2}, {"id": 20, "image_count": 1}]
    assert meta.get("class_instance_count")[0] == {"id": 7, "instance_count": 4}
    assert meta.get("no_such_key", 3) == 3


def test_object_counts_are_absent_if_the_json_has_none(shop):
    register_lvis_form("shop", *shop(coco_form()))
    assert MetadataCatalog.get("shop").get("class_instance_count") is None


def test_metadata_given_at_registration_wins(shop):
    given = {"thing_classes": ["top", "pot"], "evaluator_type": "coco", "thing_colors": [1, 2]}
    load(shop(coco_form()), metadata=given)
    meta = MetadataCatalog.get("shop")
    assert {key: meta.get(key) for key in given} == given


def test_box_only_set_loads_and_maps(shop):
    content = coco_form()
    for entry in content["annotations"]:
        del entry["segmentation"]
    records = load(shop(content))
    assert all("segmentation" not in a for r in records for a in r["annotations"])
    cfg = get_cfg()
    cfg.MODEL.MASK_ON = False
    assert len(DatasetMapper(cfg, is_train=True)(records[0])["instances"]) == 2


def test_federated_lists_and_the_address_of_lvis_are_used(shop):
    content = coco_form()
    for image in content["images"]:
        image["coco_url"] = f"http://images.example.org/train/{image['file_name']}"
        image["file_name"] = "COCO_" + image["file_name"]  # as in LVIS v0.5
        image.update(neg_category_ids=[7], not_exhaustive_category_ids=[])
    records = load(shop(content, images=("train/a.png", "train/b.png")))
    assert records[0]["file_name"].endswith("images/train/a.png")
    assert records[0]["neg_category_ids"] == [7]
    assert records[0]["not_exhaustive_category_ids"] == []
    assert MetadataCatalog.get("shop").federated is True


def test_file_name_wins_over_cocos_address(shop):
    content = coco_form()
    for image in content["images"]:
        image["coco_url"] = "http://images.example.org/val2017/elsewhere.png"
    assert load(shop(content))[0]["file_name"].endswith("images/a.png")


def test_run_length_masks_become_compressed(shop):
    content = coco_form()
    content["annotations"][0]["segmentation"] = {"size": [32, 40], "counts": [10, 20, 1250]}
    mask = load(shop(content))[1]["annotations"][0]["segmentation"]
    assert isinstance(mask["counts"], bytes)


def test_objects_without_a_valid_polygon_keep_their_box_with_a_warning(shop, caplog):
    content = coco_form()
    content["annotations"][1]["segmentation"] = [[1.0, 1.0, 2.0, 2.0]]
    content["annotations"][2]["segmentation"] = [[1.0, 1.0, 2.0, 2.0], SQUARE]
    with caplog.at_level(logging.WARNING, logger="logn_d2.data.registration"):
        records = load(shop(content))
    masks = [a["segmentation"] for a in records[0]["annotations"]]
    assert masks == [[], [SQUARE]]
    assert "1 of 3 objects have no mask, the first is annotation 2" in caplog.text


@pytest.mark.parametrize(("mask_on", "num_objects"), [(True, 1), (False, 2)])
def test_the_mapper_leaves_out_objects_without_a_mask_only_where_masks_are_trained(
    shop, mask_on, num_objects
):
    content = coco_form()
    content["annotations"][1]["segmentation"] = [[]]
    cfg = get_cfg()
    cfg.MODEL.MASK_ON = mask_on
    record = load(shop(content))[0]
    assert len(DatasetMapper(cfg, is_train=True)(record)["instances"]) == num_objects


def test_boxes_alone_written_as_empty_polygons_have_no_masks(shop):
    content = coco_form()
    for each in content["annotations"]:
        each["segmentation"] = [[]]
    assert not any("segmentation" in a for r in load(shop(content)) for a in r["annotations"])


def test_crowds_of_lvis_form_are_named_since_evaluation_counts_them(shop, caplog):
    content = coco_form()
    content["annotations"][0]["iscrowd"] = 1
    load(shop(content))
    assert "objects are crowds" not in caplog.text
    for image in content["images"]:
        image["neg_category_ids"] = []
    shop(content)
    DatasetCatalog.get("shop")
    assert "1 of 3 objects are crowds, the first is annotation 1" in caplog.text


def test_a_category_without_a_name_is_called_by_its_id(shop):
    content = coco_form()
    del content["categories"][1]["name"]
    load(shop(content))
    assert MetadataCatalog.get("shop").thing_classes == ["7", "jar"]


def test_key_points_are_those_of_detectron2(shop, tmp_path):
    content = coco_form()
    for category in content["categories"]:
        category["keypoints"] = ["top", "bottom"]
    for each in content["annotations"]:
        each.update(keypoints=[3, 4, 2, 5, 6, 1], num_keypoints=2)
    path, images = shop(content)
    load((path, images))
    expected = load_coco_json(str(path), str(images), "shop_by_detectron2")
    found = DatasetCatalog.get("shop")
    assert [a["keypoints"] for r in found for a in r["annotations"]] == [
        a["keypoints"] for r in expected for a in r["annotations"]
    ]
    assert MetadataCatalog.get("shop").keypoint_names == ["top", "bottom"]
    MetadataCatalog.pop("shop_by_detectron2")


def test_images_of_each_class_are_counted_where_the_json_does_not_tell(shop):
    content = coco_form()
    content["annotations"].append(annotation(4, 9, 20, segmentation=[SQUARE]))
    content["annotations"].append(annotation(5, 9, 7, segmentation=[SQUARE], iscrowd=1))
    load(shop(content))
    counts = MetadataCatalog.get("shop").class_image_count
    assert counts == [{"id": 7, "image_count": 1}, {"id": 20, "image_count": 2}]


def test_an_empty_address_is_none(shop):
    content = coco_form()
    for image in content["images"]:
        image.update(coco_url="", neg_category_ids=[])
    assert load(shop(content))[0]["file_name"].endswith("images/a.png")


def test_boxes_are_xywh_and_the_order_of_objects_is_kept(shop):
    (first, _), (third,) = (r["annotations"] for r in load(shop(coco_form())))
    assert first["bbox_mode"] == BoxMode.XYWH_ABS and third["bbox"] == [2.0, 2.0, 10.0, 10.0]


def test_loading_twice_gives_the_same(shop):
    assert load(shop(coco_form())) == DatasetCatalog.get("shop")


def test_registering_the_same_again_does_no_harm(shop):
    paths = shop(coco_form())
    load(paths)
    register_lvis_form("shop", *paths)
    assert MetadataCatalog.get("shop").thing_classes == ["lid", "jar"]


def test_registering_other_paths_under_a_name_is_refused(shop, tmp_path):
    paths = shop(coco_form())
    load(paths)
    with pytest.raises(ValueError, match=r"already registered with .*shop\.json.*replace=True"):
        register_lvis_form("shop", tmp_path / "other.json", paths[1])
    register_lvis_form("shop", tmp_path / "other.json", paths[1], replace=True)
    assert MetadataCatalog.get("shop").json_file.endswith("other.json")


def test_name_of_a_detectron2_set_is_refused(tmp_path):
    with pytest.raises(ValueError, match="'lvis_v1_train' is already registered"):
        register_lvis_form("lvis_v1_train", tmp_path / "mine.json", tmp_path)


def test_config_lists_data_sets(shop):
    entry = ["shop", *map(str, shop(coco_form()))]
    cfg = config_with([entry])
    assert register_from_config(cfg) == register_from_config(cfg) == ["shop"]
    assert len(DatasetCatalog.get("shop")) == 2
    with pytest.raises(ValueError, match="already registered"):
        register_from_config(config_with([["shop", entry[1], "elsewhere"]]))


def test_config_entries_survive_yaml_and_the_command_line(shop, tmp_path):
    entry = ["shop", *map(str, shop(coco_form()))]
    (tmp_path / "c.yaml").write_text(config_with([entry]).dump())
    cfg = config_with([])
    cfg.merge_from_file(str(tmp_path / "c.yaml"))
    assert register_from_config(cfg) == ["shop"]
    cfg = config_with([])
    cfg.merge_from_list(["MODEL.LOGN.DATASETS", str([entry])])
    assert register_from_config(cfg) == ["shop"]


@pytest.mark.parametrize("entries", [["shop", "a", "b"], [["shop", "a"]], [["shop", "a", 3]]])
def test_malformed_config_entry_is_shown(entries):
    with pytest.raises(ValueError, match=r"MODEL\.LOGN\.DATASETS holds .*expected a list"):
        register_from_config(config_with(entries))


def test_missing_json_is_named_by_data_and_by_metadata(tmp_path):
    register_lvis_form("shop", tmp_path / "none.json", tmp_path)
    with pytest.raises(FileNotFoundError, match=r"none\.json.*README"):
        DatasetCatalog.get("shop")
    with pytest.raises(AttributeError, match=r"none\.json"):
        _ = MetadataCatalog.get("shop").thing_classes


def test_missing_images_are_counted_and_the_first_is_named(shop):
    paths = shop(coco_form(), images=("a.png",))
    with pytest.raises(
        FileNotFoundError, match=r"1 of the first 2 images .*b\.png.*check_images=0"
    ):
        load(paths)
    register_lvis_form("labels_only", *paths, check_images=0)
    assert len(DatasetCatalog.get("labels_only")) == 2


def test_truncated_json_is_refused(shop):
    with pytest.raises(ValueError, match="not a complete JSON"):
        load(shop(json.dumps(coco_form())[:-30]))


@pytest.mark.parametrize("content", ["[]", '{"images": [], "categories": {}}'])
def test_json_of_another_form_is_refused(shop, content):
    with pytest.raises(ValueError, match=r"lacks the lists .*annotations, categories"):
        load(shop(content))


@pytest.mark.parametrize(
    "number, change, message",
    [
        (0, {"category_id": 8}, "category_id=8.*not among the json's 2 categories"),
        (0, {"image_id": 5}, "image 5, which the json does not list"),
        (0, {"id": 2}, r"annotations\[1\] has the id 2, which occurs more than once"),
    ],
)
def test_inconsistent_annotation_is_named(shop, number, change, message):
    content = coco_form()
    content["annotations"][number].update(change)
    with pytest.raises(ValueError, match=message):
        load(shop(content))


def test_image_without_a_name_is_named(shop):
    content = coco_form()
    del content["images"][1]["file_name"]
    with pytest.raises(ValueError, match="image 4 has neither"):
        load(shop(content))


def test_detectron2s_own_sets_can_be_loaded_by_name(shop):
    # load_lvis_form takes its paths from the metadata, whoever registered the name.
    json_file, image_root = shop(coco_form())
    meta = SimpleNamespace(json_file=str(json_file), image_root=str(image_root))
    MetadataCatalog.get("theirs").set(**vars(meta), thing_dataset_id_to_contiguous_id={7: 0, 20: 1})
    assert len(load_lvis_form("theirs")) == 2


def test_metadata_of_a_missing_json_answer_with_defaults_and_keep_their_own_affairs(tmp_path):
    register_lvis_form("far", tmp_path / "far.json", tmp_path, hint="Fetch it.")
    meta = MetadataCatalog.get("far")
    assert meta.get("thing_classes", None) is None and not hasattr(meta, "thing_classes")
    with pytest.raises(AttributeError, match="annotations of 'far' are missing.*Fetch it"):
        meta.thing_classes  # noqa: B018
    with pytest.raises(FileNotFoundError, match="Fetch it"):
        DatasetCatalog.get("far")
    assert {"json_file", "image_root", "evaluator_type", "name"} == set(meta.as_dict())
