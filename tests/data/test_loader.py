"""The statistics loader yields every image exactly once, for any workers and processes."""

from __future__ import annotations

import copy
import functools
import itertools
import random
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.data import (
    DatasetCatalog,
    DatasetMapper,
    MetadataCatalog,
    build_detection_train_loader,
)
from detectron2.data.samplers import RepeatFactorTrainingSampler
from detectron2.utils import comm
from PIL import Image

from logn_d2.config import add_logn_config
from logn_d2.data.loader import (
    build_class_aware_loader,
    build_evaluation_loader,
    build_statistics_loader,
    map_record,
    training_images,
)
from logn_d2.data.rng import preserved_rng, seed_rng
from logn_d2.data.samplers import repeat_factors
from logn_d2.passes.resume import loader_from

from ..small_detectors import annotation

NAME = "loader_test_set"
NUM_CLASSES = 4
COMMON, RARE = 0, 3


def draw_records(folder: Path, count: int = 12) -> list[dict]:
    """Images of noise: the common class everywhere, others in turn, the rare one in image 2."""
    rng = np.random.default_rng(0)
    records = []
    for index in range(count):
        path = folder / f"{index}.png"
        Image.fromarray(rng.integers(0, 256, (40, 60, 3), dtype=np.uint8)).save(path)
        objects = [annotation(COMMON, [5.0, 5.0, 30.0, 35.0])]
        objects.append(annotation(RARE if index == 2 else 1 + index % 2, [20.0, 10.0, 55.0, 30.0]))
        record = {"file_name": str(path), "image_id": 100 + index, "height": 40, "width": 60}
        records.append({**record, "annotations": objects})
    return records


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    return draw_records(tmp_path_factory.mktemp("images"))


@pytest.fixture
def cfg(records: list[dict]) -> CfgNode:
    return registered(records)


@pytest.fixture(autouse=True)
def unregister():
    yield
    if NAME in DatasetCatalog.list():
        DatasetCatalog.remove(NAME)
        MetadataCatalog.remove(NAME)


def registered(records: list[dict]) -> CfgNode:
    DatasetCatalog.register(NAME, lambda: copy.deepcopy(records))
    MetadataCatalog.get(NAME).thing_classes = [f"class{c}" for c in range(NUM_CLASSES)]
    cfg = get_cfg()
    add_logn_config(cfg)
    cfg.MODEL.MASK_ON = True
    cfg.DATASETS.TRAIN = cfg.DATASETS.TEST = (NAME,)
    cfg.INPUT.MIN_SIZE_TRAIN = (32, 48, 64, 80)
    cfg.INPUT.MIN_SIZE_TEST = 40
    cfg.DATALOADER.NUM_WORKERS = 0
    return cfg


def passed(loader) -> list[dict]:
    return [image for batch in loader for image in batch]


def ids(loader) -> list[int]:
    return [image["image_id"] for image in passed(loader)]


def same(left: dict, right: dict) -> bool:
    return (
        left["image_id"] == right["image_id"]
        and torch.equal(left["image"], right["image"])
        and torch.equal(left["instances"].gt_boxes.tensor, right["instances"].gt_boxes.tensor)
        and torch.equal(left["instances"].gt_classes, right["instances"].gt_classes)
    )


def as_processes(
    monkeypatch: pytest.MonkeyPatch,
    cfg: CfgNode,
    world_size: int,
    build=build_statistics_loader,
    **options,
) -> list:
    """What each of several processes loads."""
    shares = []
    monkeypatch.setattr(comm, "get_world_size", lambda: world_size)
    for rank in range(world_size):
        monkeypatch.setattr(comm, "get_rank", lambda rank=rank: rank)
        shares.append(passed(build(cfg, **options)))
    return shares


def test_every_image_comes_once_with_its_ground_truth(cfg: CfgNode, records: list[dict]) -> None:
    loader = build_statistics_loader(cfg)
    images = passed(loader)
    assert len(loader) == len(images) == len(records)
    assert sorted(image["image_id"] for image in images) == [r["image_id"] for r in records]
    assert [image["statistics_index"] for image in images] == list(range(len(records)))
    assert all(len(image["instances"]) == 2 for image in images)


def test_both_loaders_are_functions_of_the_batches_to_skip(cfg: CfgNode) -> None:
    for build in (
        functools.partial(build_statistics_loader, cfg),
        functools.partial(build_evaluation_loader, cfg, cfg.DATASETS.TRAIN[0]),
    ):
        assert ids(loader_from(build, 2)) == ids(build())[2:]


def test_order_is_random_and_fixed_by_the_seed(cfg: CfgNode, records: list[dict]) -> None:
    first = ids(build_statistics_loader(cfg))
    assert first != [r["image_id"] for r in records]
    assert first == ids(build_statistics_loader(cfg))
    cfg.MODEL.LOGN.COLLECT.SEED = 1
    assert first != ids(build_statistics_loader(cfg))


@pytest.mark.parametrize("world_size", [2, 5, 13])
def test_processes_share_the_images_without_overlap(
    cfg: CfgNode, monkeypatch: pytest.MonkeyPatch, world_size: int
) -> None:
    cfg.MODEL.LOGN.COLLECT.AUGMENT = True
    alone = passed(build_statistics_loader(cfg))
    shares = as_processes(monkeypatch, cfg, world_size)
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
    together = sorted(itertools.chain(*shares), key=lambda image: image["statistics_index"])
    assert len(together) == len(alone)
    assert all(map(same, together, alone))


@pytest.mark.parametrize("world_size", [1, 3])
def test_skipping_continues_where_it_stopped(
    cfg: CfgNode, monkeypatch: pytest.MonkeyPatch, world_size: int
) -> None:
    cfg.MODEL.LOGN.COLLECT.AUGMENT = True
    whole = as_processes(monkeypatch, cfg, world_size)
    for skip in (0, 1, 4, 99):
        rest = as_processes(monkeypatch, cfg, world_size, skip=skip)
        assert [len(share) for share in rest] == [len(share[skip:]) for share in whole]
        for share, expected in zip(rest, whole):
            assert all(map(same, share, expected[skip:]))


def test_augmentation_of_an_image_does_not_depend_on_workers(cfg: CfgNode) -> None:
    cfg.MODEL.LOGN.COLLECT.AUGMENT = True
    alone = passed(build_statistics_loader(cfg))
    assert len({image["image"].shape for image in alone}) > 1
    cfg.DATALOADER.NUM_WORKERS = 2
    assert all(map(same, alone, passed(build_statistics_loader(cfg))))


def test_augmentation_is_that_of_training(cfg: CfgNode, records: list[dict]) -> None:
    cfg.MODEL.LOGN.COLLECT.AUGMENT = True
    mapper = DatasetMapper(cfg, is_train=True)
    for image in passed(build_statistics_loader(cfg)):
        record = next(r for r in records if r["image_id"] == image["image_id"])
        with preserved_rng():
            seed_rng(cfg.MODEL.LOGN.COLLECT.SEED, image["statistics_index"])
            assert same(image, mapper(record))


def test_without_augmentation_images_are_as_at_test(cfg: CfgNode) -> None:
    test_mapper = DatasetMapper(cfg, is_train=False)
    for image in passed(build_statistics_loader(cfg)):
        assert torch.equal(image["image"], test_mapper({"file_name": image["file_name"]})["image"])


def test_loading_leaves_random_generators_alone(cfg: CfgNode) -> None:
    cfg.MODEL.LOGN.COLLECT.AUGMENT = True
    images = build_statistics_loader(cfg).dataset
    seed_rng(3)
    expected = random.random(), np.random.rand(), torch.rand(1).item()
    seed_rng(3)
    assert len(images[0]) > 0
    assert (random.random(), np.random.rand(), torch.rand(1).item()) == expected


@pytest.mark.parametrize("threshold", [0.1, 1.0])
def test_repeated_images_come_once_with_their_factor(cfg: CfgNode, threshold: float) -> None:
    cfg.DATALOADER.SAMPLER_TRAIN = "RepeatFactorTrainingSampler"
    cfg.DATALOADER.REPEAT_THRESHOLD = threshold
    factors = repeat_factors(cfg, training_images(cfg))
    expected = {100 + index: float(factor) for index, factor in enumerate(factors)}
    images = [image for (image,) in build_statistics_loader(cfg)]
    found = {image["image_id"]: image.get("statistics_weight", 1.0) for image in images}
    assert len(images) == 12 and found == expected
    assert (max(found.values()) > 3) == (threshold == 1.0)  # one image in twelve: sqrt(12)


def test_augmented_images_and_moving_averages_come_again(cfg: CfgNode) -> None:
    cfg.DATALOADER.SAMPLER_TRAIN = "RepeatFactorTrainingSampler"
    cfg.DATALOADER.REPEAT_THRESHOLD = 1.0
    for key, value in (("AUGMENT", True), ("ESTIMATOR", "ema")):
        other = cfg.clone()
        other.MODEL.LOGN.COLLECT[key] = value
        images = [image for (image,) in build_statistics_loader(other)]
        assert len(images) > 12 and not any("statistics_weight" in image for image in images)


def test_other_weights_of_images_are_another_pass(cfg: CfgNode) -> None:
    cfg.DATALOADER.SAMPLER_TRAIN = "RepeatFactorTrainingSampler"
    digests = set()
    for threshold in (0.1, 0.9, 1.0):
        cfg.DATALOADER.REPEAT_THRESHOLD = threshold
        digests.add(build_statistics_loader(cfg).dataset.digest())
    assert len(digests) == 3


def test_images_repeat_as_the_training_sampler_repeats_them(cfg: CfgNode) -> None:
    cfg.MODEL.LOGN.COLLECT.AUGMENT = True  # each time another view
    cfg.DATALOADER.SAMPLER_TRAIN = "RepeatFactorTrainingSampler"
    cfg.DATALOADER.REPEAT_THRESHOLD = 1.0
    factors = RepeatFactorTrainingSampler.repeat_factors_from_category_frequency(
        training_images(cfg), 1.0
    )
    expected = {100 + index: float(factor) for index, factor in enumerate(factors)}
    counts = Counter()
    seeds = 40
    for seed in range(seeds):
        cfg.MODEL.LOGN.COLLECT.SEED = seed
        drawn = Counter(ids(build_statistics_loader(cfg)))
        for image_id, factor in expected.items():
            assert int(factor) <= drawn[image_id] <= int(factor) + 1
        counts += drawn
    assert expected[102] > 3  # one image in twelve has the rare class: sqrt(12)
    for image_id, factor in expected.items():
        # Four standard errors of a share of `seeds` draws.
        assert abs(counts[image_id] / seeds - factor) < 4 * 0.5 / seeds**0.5
    cfg.MODEL.LOGN.COLLECT.REPEAT = False
    assert set(Counter(ids(build_statistics_loader(cfg))).values()) == {1}


def test_unknown_sampler_passes_each_image_once_with_a_warning(
    cfg: CfgNode, caplog: pytest.LogCaptureFixture
) -> None:
    cfg.DATALOADER.SAMPLER_TRAIN = "RandomSubsetTrainingSampler"
    assert len(build_statistics_loader(cfg)) == 12
    assert "RandomSubsetTrainingSampler" in caplog.text


def test_a_random_subset_is_the_beginning_of_the_pass(cfg: CfgNode) -> None:
    whole = ids(build_statistics_loader(cfg))
    cfg.MODEL.LOGN.COLLECT.MAX_IMAGES = 5
    assert ids(build_statistics_loader(cfg)) == whole[:5]
    cfg.MODEL.LOGN.COLLECT.MAX_IMAGES = 500
    assert ids(build_statistics_loader(cfg)) == whole


def awkward_records(records: list[dict], mask_format: str) -> list[dict]:
    """Images that training drops, and objects that it drops."""
    records = copy.deepcopy(records)
    records[0]["annotations"] = []
    for obj in records[1]["annotations"]:
        obj["iscrowd"] = 1
    if mask_format == "polygon":  # Detectron2 can't make a bitmap of no polygons
        records[2]["annotations"][0]["segmentation"] = []
    records[3]["annotations"][0]["iscrowd"] = 1
    records[4]["annotations"][1]["bbox"] = [7.0, 7.0, 7.0, 20.0]
    return records


@pytest.mark.parametrize("mask_on", [True, False])
@pytest.mark.parametrize("filter_empty", [True, False])
@pytest.mark.parametrize("mask_format", ["polygon", "bitmask"])
def test_images_and_objects_are_those_of_training(
    records: list[dict], mask_on: bool, filter_empty: bool, mask_format: str
) -> None:
    cfg = registered(awkward_records(records, mask_format))
    cfg.MODEL.MASK_ON = mask_on
    cfg.INPUT.MASK_FORMAT = mask_format
    cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS = filter_empty
    cfg.SOLVER.IMS_PER_BATCH = 1
    cfg.DATALOADER.ASPECT_RATIO_GROUPING = False
    ours = {image["image_id"]: image["instances"] for image in passed(build_statistics_loader(cfg))}
    assert len(ours) == (10 if filter_empty else 12)
    training = itertools.islice(build_detection_train_loader(cfg), len(ours))
    for (image,) in training:
        assert ours[image["image_id"]].gt_classes.tolist() == image["instances"].gt_classes.tolist()
    assert len(ours[102]) == (1 if mask_on and mask_format == "polygon" else 2)
    assert len(ours[104]) == 1


def test_cropped_objects_are_those_of_training(cfg: CfgNode, records: list[dict]) -> None:
    cfg.INPUT.CROP.ENABLED = True
    cfg.INPUT.CROP.SIZE = [0.3, 0.3]
    cfg.MODEL.LOGN.COLLECT.AUGMENT = True
    test_augmentation_is_that_of_training(cfg, records)


def test_crops_of_training_leave_images_at_test_size_alone(cfg: CfgNode) -> None:
    cfg.MODEL.MASK_ON = True
    plain = passed(build_statistics_loader(cfg))
    cfg.INPUT.CROP.ENABLED = True  # Detectron2 then computes boxes from masks, not loaded here
    cropped = passed(build_statistics_loader(cfg))
    assert len(cropped) == len(plain) and all(map(same, cropped, plain))


def test_masks_are_not_loaded_and_the_data_set_is_not_changed(cfg: CfgNode) -> None:
    dataset = training_images(cfg)
    before = copy.deepcopy(dataset)
    images = passed(build_statistics_loader(cfg, dataset=dataset))
    assert not any(image["instances"].has("gt_masks") for image in images)
    assert dataset == before


def test_a_set_without_images_is_an_error(records: list[dict]) -> None:
    cfg = registered([{**records[0], "annotations": []}])
    with pytest.raises(ValueError, match="FILTER_EMPTY_ANNOTATIONS"):
        build_statistics_loader(cfg)
    cfg.DATASETS.TRAIN = ()
    with pytest.raises(ValueError, match="DATASETS.TRAIN is empty"):
        build_statistics_loader(cfg)
    with pytest.raises(ValueError, match="no images"):
        build_statistics_loader(cfg, dataset=[])


def test_sampled_rois_need_annotations(records: list[dict]) -> None:
    bare = [{k: v for k, v in record.items() if k != "annotations"} for record in records]
    cfg = registered(bare)
    with pytest.raises(ValueError, match="has no annotations"):
        passed(build_statistics_loader(cfg))
    cfg.MODEL.LOGN.COLLECT.POPULATION = "proposals"
    assert len(passed(build_statistics_loader(cfg))) == len(records)


def test_digest_distinguishes_images_and_orders(cfg: CfgNode) -> None:
    def digest() -> str:
        return build_statistics_loader(cfg).dataset.digest()

    first = digest()
    assert digest() == first
    cfg.MODEL.LOGN.COLLECT.SEED = 5
    assert digest() != first


@pytest.mark.parametrize("world_size", [1, 3])
def test_class_aware_images_are_as_many_of_each_class_on_each_process(
    cfg: CfgNode, monkeypatch: pytest.MonkeyPatch, world_size: int
) -> None:
    cfg.SEED = 0
    options = {"build": build_class_aware_loader, "images_per_class": 2}
    shares = as_processes(monkeypatch, cfg, world_size, **options)
    for share in shares:
        drawn = Counter(image["image_id"] for image in share)
        # Four classes, each twice; the rare one has a single image, which is of the common one too.
        assert len(share) == 2 * NUM_CLASSES and 2 <= drawn[102] <= 4
        assert all(len(image["instances"]) for image in share)
        for first in (0, NUM_CLASSES):  # one image of each class, then another
            found = [set(i["instances"].gt_classes.tolist()) for i in share[first:][:NUM_CLASSES]]
            assert any(
                all(label in classes for label, classes in zip(labels, found))
                for labels in itertools.permutations(range(NUM_CLASSES))
            )
    positions = [[image["statistics_index"] for image in share] for share in shares]
    assert positions == [list(range(r, 8 * world_size, world_size)) for r in range(world_size)]


def test_evaluation_images_come_in_order_and_as_at_test(
    cfg: CfgNode, records: list[dict], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert ids(build_evaluation_loader(cfg, NAME)) == [r["image_id"] for r in records]
    assert ids(build_evaluation_loader(cfg, NAME, skip=3)) == [r["image_id"] for r in records[3:]]
    mapper = DatasetMapper(cfg, is_train=False)
    for image, record in zip(passed(build_evaluation_loader(cfg, NAME)), records):
        expected = mapper(record)
        assert torch.equal(image["image"], expected["image"])
        assert (image["height"], image["width"]) == (record["height"], record["width"])
        assert "annotations" not in image


def test_an_image_that_breaks_off_is_named(records: list[dict], tmp_path: Path) -> None:
    path = tmp_path / "short.png"
    path.write_bytes(Path(records[0]["file_name"]).read_bytes()[:-200])
    cfg = get_cfg()
    with pytest.raises(ValueError, match=r"image .*short\.png can't be read .*truncated"):
        map_record(DatasetMapper(cfg, is_train=False), {**records[0], "file_name": str(path)})
    with pytest.raises(FileNotFoundError, match="none.png"):
        map_record(DatasetMapper(cfg, is_train=False), {**records[0], "file_name": "none.png"})
