"""Detections as arrays: order, ties, masks and files."""

from __future__ import annotations

import json

import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch
from detectron2.structures import Boxes, Instances
from hypothesis import given, settings
from hypothesis import strategies as st

from logn_d2.lvis.detections import Detections, RleMasks, image_id_array
from logn_d2.lvis.order import best_of_each


def _some(number: int, seed: int = 0, with_masks: bool = False) -> Detections:
    rng = np.random.default_rng(seed)
    masks = None
    if with_masks:
        masks = RleMasks.from_bitmasks(torch.from_numpy(rng.random((number, 20, 30)) < 0.4))
    return Detections(
        image_id=rng.integers(0, 5, number),
        category=rng.integers(0, 3, number),
        score=rng.random(number).round(1),
        box=rng.random((number, 4)) * 10,
        masks=masks,
    )


def _instances(number: int, height: int, width: int, seed: int = 0) -> Instances:
    generator = torch.Generator().manual_seed(seed)
    instances = Instances((height, width))
    corners = torch.rand(number, 4, generator=generator) * 10
    instances.pred_boxes = Boxes(corners + torch.tensor([0.0, 0, 10, 10]))
    instances.scores = torch.rand(number, generator=generator)
    instances.pred_classes = torch.randint(0, 3, (number,), generator=generator)
    instances.pred_masks = torch.rand(number, height, width, generator=generator) < 0.3
    return instances


def _same(one: Detections, other: Detections) -> bool:
    ours, theirs = one.to_arrays(), other.to_arrays()
    return ours.keys() == theirs.keys() and all(
        np.array_equal(ours[name], theirs[name]) and ours[name].dtype == theirs[name].dtype
        for name in ours
    )


def test_boxes_keep_their_precision() -> None:
    assert Detections([1], [0], [0.5], np.ones((1, 4), np.float32)).box.dtype == np.float32
    assert Detections([1], [0], [0.5], [[1, 1, 2, 2]]).box.dtype == np.float64


def test_columns_of_different_length_are_refused() -> None:
    with pytest.raises(ValueError, match=r"different lengths.*'score': 1"):
        Detections([1, 2], [0, 0], [0.5], np.ones((2, 4)))


def test_instances_give_the_numbers_of_detectron2s_own_result_format() -> None:
    from detectron2.evaluation.coco_evaluation import instances_to_coco_json

    instances = _instances(9, 24, 31)
    expected = instances_to_coco_json(instances, 7)
    ours = Detections.from_instances([instances], [7]).to_json_list(range(3))
    assert json.loads(json.dumps(ours)) == json.loads(json.dumps(expected))


@pytest.mark.parametrize("number", [0, 1, 63, 64, 65, 300])
def test_bitmasks_are_encoded_exactly(number: int) -> None:
    bitmasks = torch.rand(number, 17, 23, generator=torch.Generator().manual_seed(1)) < 0.5
    masks = RleMasks.from_bitmasks(bitmasks)
    assert len(masks) == number
    for bitmask, rle in zip(bitmasks, masks.to_dicts(), strict=True):
        assert np.array_equal(mask_util.decode(rle), bitmask.numpy())


def test_images_without_detections_join_with_images_with_masks() -> None:
    empty = Instances((24, 31))
    empty.pred_boxes, empty.scores = Boxes(torch.zeros(0, 4)), torch.zeros(0)
    empty.pred_classes = torch.zeros(0, dtype=torch.int64)
    joined = Detections.from_instances([empty, _instances(4, 24, 31), empty], [1, 2, 3])
    assert len(joined) == 4 and len(joined.masks) == 4 and set(joined.image_id) == {2}
    assert len(Detections.from_instances([empty, empty], [1, 2])) == 0


def test_predictions_and_image_ids_must_be_as_many() -> None:
    with pytest.raises(ValueError, match="1 predictions for 2 image ids"):
        Detections.from_instances([_instances(1, 4, 4)], [1, 2])


def test_instances_are_not_changed() -> None:
    instances = _instances(5, 24, 31)
    before = instances.pred_boxes.tensor.clone(), instances.pred_masks.clone()
    Detections.from_instances([instances], [1])
    assert torch.equal(instances.pred_boxes.tensor, before[0])
    assert torch.equal(instances.pred_masks, before[1])


def test_detections_with_and_without_masks_do_not_join() -> None:
    with pytest.raises(ValueError, match="1 of 2 sets of detections have no masks"):
        Detections.concatenate([_some(3, with_masks=True), _some(3)])


@pytest.mark.parametrize("with_masks", [False, True])
def test_joined_parts_are_the_whole(with_masks: bool) -> None:
    whole = _some(20, with_masks=with_masks)
    parts = [whole.take(np.arange(20) < 7), whole.take(np.arange(7, 20))]
    assert _same(Detections.concatenate([parts[0], Detections.empty(), parts[1]]), whole)


def test_masks_follow_their_detections() -> None:
    whole = _some(20, with_masks=True)
    index = np.array([4, 4, 19, 0])
    taken = whole.take(index).masks.to_dicts()
    assert taken == [whole.masks.to_dicts()[i] for i in index]


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 4)), max_size=40), st.integers(-1, 8))
@settings(max_examples=200, deadline=None)
def test_the_best_of_each_image_are_kept_and_earlier_wins_ties(
    entries: list[tuple[int, int]], max_dets: int
) -> None:
    detections = Detections(
        image_id=[image for image, _ in entries],
        category=[0] * len(entries),
        score=[score for _, score in entries],
        box=np.zeros((len(entries), 4)),
    )
    expected = set()
    for image in {image for image, _ in entries}:
        mine = [i for i, entry in enumerate(entries) if entry[0] == image]
        mine = sorted(mine, key=lambda i: entries[i][1], reverse=True)  # stable
        expected |= set(mine if max_dets < 0 else mine[:max_dets])
    kept = np.flatnonzero(detections.top_per_image_mask(max_dets))
    assert set(kept.tolist()) == expected
    assert len(detections.top_per_image(max_dets)) == len(expected)


def test_nothing_is_copied_where_no_image_is_over_the_limit() -> None:
    detections = _some(20)
    assert detections.top_per_image(20) is detections


@pytest.mark.parametrize("number", [0, 12])
@pytest.mark.parametrize("with_masks", [False, True])
def test_a_file_returns_the_saved_content(tmp_path, number: int, with_masks: bool) -> None:
    detections = _some(number, with_masks=with_masks)
    path = tmp_path / "sub" / "detections.npz"
    detections.save(path)
    assert _same(Detections.load(path), detections)
    assert [p.name for p in path.parent.iterdir()] == ["detections.npz"]


def test_a_failed_save_leaves_the_old_file(tmp_path, monkeypatch) -> None:
    path = tmp_path / "detections.npz"
    _some(3).save(path)
    monkeypatch.setattr(np, "savez", lambda *_, **__: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        _some(5).save(path)
    assert len(Detections.load(path)) == 3
    assert [p.name for p in tmp_path.iterdir()] == ["detections.npz"]


def test_other_files_are_refused(tmp_path) -> None:
    np.savez(tmp_path / "other.npz", weights=np.zeros(3))
    with pytest.raises(ValueError, match=r"other\.npz.*\['weights'\].*Detections\.save"):
        Detections.load(tmp_path / "other.npz")
    with pytest.raises(FileNotFoundError):
        Detections.load(tmp_path / "absent.npz")


@pytest.mark.parametrize("with_masks", [False, True])
def test_result_json_gives_back_the_detections(with_masks: bool) -> None:
    detections = _some(12, with_masks=with_masks)
    text = json.dumps(detections.to_json_list([5, 7, 11]))
    assert _same(Detections.from_json_list(json.loads(text), [5, 7, 11]), detections)
    assert len(Detections.from_json_list([], [5])) == 0


def test_result_json_of_other_categories_is_refused() -> None:
    results = _some(12).to_json_list([5, 7, 11])
    with pytest.raises(ValueError, match="of 12 results have a category id .* the first is"):
        Detections.from_json_list(results, [5, 7])


@pytest.mark.parametrize(
    ("results", "message"),
    [
        ({"images": [], "annotations": []}, r"found \['annotations', 'images'\]"),
        ([[1, 2]], "found list"),
        ([{"image_id": 1, "category_id": 5, "score": 1.0}], r"lacks \['bbox'\]"),
        (
            [
                {"image_id": 1, "category_id": 5, "score": 1.0, "bbox": [0, 0, 1, 1]},
                {"image_id": 1, "category_id": 5, "bbox": [0, 0, 1, 1]},
            ],
            r"Result number 1 of 2 .* lacks \['score'\]",
        ),
    ],
)
def test_what_is_no_list_of_results_is_refused(results, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Detections.from_json_list(results, [5])


def test_results_of_masks_alone_get_the_boxes_of_their_masks() -> None:
    whole = _some(6, with_masks=True)
    results = whole.to_json_list([5, 7, 11])
    for result in results:
        del result["bbox"]
    detections = Detections.from_json_list(results, [5, 7, 11])
    np.testing.assert_array_equal(detections.box, mask_util.toBbox(whole.masks.to_dicts()))


def test_image_ids_of_different_kinds_are_refused(tmp_path) -> None:
    for ids in ([7, "7"], [7.5, 8.0]):
        with pytest.raises(ValueError, match="expected integers for all or strings"):
            Detections(ids, [0, 0], [0.5, 0.5], np.zeros((2, 4)))
    strings = Detections(["b", "a"], [0, 0], [0.5, 0.5], np.zeros((2, 4)))
    strings.save(tmp_path / "strings.npz")
    assert _same(Detections.load(tmp_path / "strings.npz"), strings)


@given(
    st.lists(st.tuples(st.integers(0, 2), st.integers(0, 3), st.integers(0, 4)), max_size=40),
    st.integers(-1, 6),
)
@settings(max_examples=100, deadline=None)
def test_the_best_of_each_class_are_kept(
    entries: list[tuple[int, int, int]], max_dets: int
) -> None:
    category, image, score = np.array(entries, dtype=np.int64).reshape(-1, 3).T
    detections = Detections(image, category, score, np.zeros((len(entries), 4)))
    expected = set()
    for k in set(category.tolist()):
        mine = [i for i in range(len(entries)) if category[i] == k]
        mine.sort(key=lambda i: (-score[i], image[i], i))
        expected |= set(mine if max_dets < 0 else mine[:max_dets])
    kept = best_of_each(detections, "category", max_dets)
    assert kept.tolist() == sorted(expected)
    assert len(detections.top_per_class(max_dets)) == len(expected)


def test_image_ids_beyond_int64_are_refused() -> None:
    large = np.array([7, 2**63], dtype=np.uint64)
    with pytest.raises(ValueError, match=f"An image id is {2**63}, expected at most {2**63 - 1}"):
        image_id_array(large)
    assert image_id_array(large - 1).tolist() == [6, 2**63 - 1]
