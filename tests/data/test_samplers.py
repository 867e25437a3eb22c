"""Our training samplers draw as documented, and are one stream for any number of processes."""

from __future__ import annotations

import itertools
from collections import Counter

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import build_detection_train_loader
from detectron2.data.samplers import RepeatFactorTrainingSampler
from detectron2.utils import comm

from logn_d2.data.samplers import (
    TRAINING_SAMPLERS,
    CeilRepeatFactorTrainingSampler,
    ClassAwareTrainingSampler,
    build_training_sampler,
    repeat_factors,
    repetitions,
)

IMAGES = ([0], [0, 1], [0], [])  # classes of each image
CEIL, AWARE = "CeilRepeatFactorTrainingSampler", "ClassAwareTrainingSampler"


def records(images=IMAGES):
    return [{"annotations": [{"category_id": c} for c in classes]} for classes in images]


def config(sampler, threshold=0.5, seed=3):
    cfg = get_cfg()
    cfg.DATALOADER.SAMPLER_TRAIN = sampler
    cfg.DATALOADER.REPEAT_THRESHOLD = threshold
    cfg.SEED = seed
    cfg.DATALOADER.NUM_WORKERS = 0
    return cfg


def first(sampler, count):
    return list(itertools.islice(sampler, count))


def test_repeat_factors_are_those_of_the_paper():
    # f = 3/4 and 1/4, so that r = 1 and sqrt(0.5 / 0.25)
    expected = torch.tensor([1.0, 2**0.5, 1.0, 1.0])
    torch.testing.assert_close(repeat_factors(config(CEIL), records()), expected)


def test_records_without_annotations_are_of_no_class():
    found = repetitions(config(AWARE), [*records(), {"file_name": "a.png"}])
    assert found[-1] == 0


def test_ceil_copies_are_those_of_mmdetection():
    drawn = first(build_training_sampler(config(CEIL), records()), 10)
    assert Counter(drawn[:5]) == Counter(drawn[5:]) == {0: 1, 1: 2, 2: 1, 3: 1}


def test_ceil_oversamples_more_than_detectron2():
    factors = torch.tensor([1.0, 1.01])
    rounded_up = first(CeilRepeatFactorTrainingSampler(factors, seed=0), 3000)
    at_random = first(RepeatFactorTrainingSampler(factors, seed=0), 3000)
    assert rounded_up.count(1) == 2000
    assert 1480 < at_random.count(1) < 1560


def test_whole_factors_give_detectron2s_stream():
    factors = torch.tensor([1.0, 3.0, 2.0])
    ours, theirs = (
        kind(factors, seed=5)
        for kind in (CeilRepeatFactorTrainingSampler, RepeatFactorTrainingSampler)
    )
    assert first(ours, 30) == first(theirs, 30)


def test_every_class_is_drawn_equally_often():
    sampler = ClassAwareTrainingSampler([list(range(50)), [50], [], [51, 52]], seed=1)
    counts = Counter(min(index, 51) // 50 + (index > 50) for index in first(sampler, 300))
    assert counts == {0: 100, 1: 100, 2: 100}


def test_images_of_a_class_take_turns():
    drawn = first(ClassAwareTrainingSampler([[4, 5, 6]], seed=1), 9)
    assert [sorted(drawn[i : i + 3]) for i in (0, 3, 6)] == [[4, 5, 6]] * 3
    assert drawn[:3] != drawn[3:6] or drawn[3:6] != drawn[6:]


def test_image_of_several_classes_is_drawn_for_each():
    sampler = ClassAwareTrainingSampler.from_records(records([[0], [0, 1]]), seed=0)
    assert Counter(first(sampler, 40)) == {0: 10, 1: 30}


def test_crowds_are_no_reason_to_draw_an_image():
    crowd = {"annotations": [{"category_id": 1, "iscrowd": 1}]}
    sampler = ClassAwareTrainingSampler.from_records([*records([[0]]), crowd], seed=0)
    assert set(first(sampler, 10)) == {0}


def test_one_class_with_one_image_is_drawn_forever():
    assert first(ClassAwareTrainingSampler([[7]], seed=0), 4) == [7] * 4


def test_no_annotated_image_is_an_error():
    with pytest.raises(ValueError, match="No class has an image"):
        ClassAwareTrainingSampler.from_records(records([[], []]))


@pytest.mark.parametrize("name", TRAINING_SAMPLERS)
def test_processes_share_one_stream(name, monkeypatch):
    whole = first(build_training_sampler(config(name), records()), 12)
    shares = []
    monkeypatch.setattr(comm, "get_world_size", lambda: 2)
    for rank in range(2):
        monkeypatch.setattr(comm, "get_rank", lambda rank=rank: rank)
        shares.append(first(build_training_sampler(config(name), records()), 6))
    assert [index for pair in zip(*shares) for index in pair] == whole


@pytest.mark.parametrize("name", TRAINING_SAMPLERS)
def test_seed_decides(name):
    many = records([[index % 3] for index in range(40)])
    streams = [
        first(build_training_sampler(config(name, seed=seed), many), 60) for seed in (1, 1, 2)
    ]
    assert streams[0] == streams[1] != streams[2]


@pytest.mark.parametrize("name", ["TrainingSampler", "RepeatFactorTrainingSampler", "Other"])
def test_other_samplers_are_left_to_detectron2(name):
    assert build_training_sampler(config(name), records()) is None


@pytest.mark.parametrize("name", ["TrainingSampler", "RepeatFactorTrainingSampler", CEIL, AWARE])
def test_repetitions_equal_the_draws_of_the_sampler(name):
    data = records([[0], [0, 1], [0], [1, 2], [2]])
    cfg = config(name, threshold=0.9)
    data = [{**each, "index": index, "width": 2, "height": 1} for index, each in enumerate(data)]
    cfg.SOLVER.IMS_PER_BATCH = 100
    loader = build_detection_train_loader(
        cfg, dataset=data, mapper=dict, sampler=build_training_sampler(cfg, data)
    )
    drawn = Counter(record["index"] for batch in first(loader, 200) for record in batch)
    expected = repetitions(cfg, data)
    share = torch.tensor([drawn[index] / 20_000 for index in range(len(data))])
    torch.testing.assert_close(share, expected / expected.sum(), atol=0.01, rtol=0)
    # How long a pass is: at least each image once, or for class-aware sampling as many draws.
    assert expected.min() >= 1 if name != AWARE else expected.sum() == pytest.approx(len(data))


def test_repetitions_of_an_unknown_sampler_are_unknown():
    assert repetitions(config("Other"), records()) is None


def test_training_loader_takes_our_sampler():
    data = [{**each, "width": 2, "height": 1} for each in records([[0]] * 30 + [[1]])]
    cfg = config(AWARE)
    cfg.SOLVER.IMS_PER_BATCH = 4
    loader = build_detection_train_loader(
        cfg, dataset=data, mapper=dict, sampler=build_training_sampler(cfg, data)
    )
    batches = first(loader, 10)
    rare = sum(image["annotations"] == [{"category_id": 1}] for batch in batches for image in batch)
    assert rare == 20
