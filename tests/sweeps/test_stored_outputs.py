"""A sweep over stored outputs equals one with the network, or is refused."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch
from torch import nn

from logn_d2.core import AffineCalibration, stage_calibrations
from logn_d2.data.loader import build_evaluation_loader
from logn_d2.lvis.detections import Detections, RleMasks
from logn_d2.modeling.box_predictors import (
    classifier_reader,
    find_box_predictors,
    predictor_fingerprint,
)
from logn_d2.sweeps import (
    StoredOutputs,
    SweepDetections,
    evaluate_sweep,
    sweep,
    sweep_stored,
)
from logn_d2.sweeps.output_store import StoreWriter
from logn_d2.sweeps.stored_outputs import _KnownMasks
from logn_d2.sweeps.union import RawOutputs, best_candidates, find_unions

from ..small_detectors import CASCADE, NUM_CLASSES, STANDARD, TRAIN, small_config, small_model
from .small_sweeps import (
    NUM_IMAGES,
    assert_equal,
    calibrations,
    count_passes,
    ground_truth,
    interrupted_after,
)

pytestmark = pytest.mark.usefixtures("data_set")


@pytest.fixture(scope="module")
def loader(data_set: list[dict]) -> list[list[dict]]:
    # Another size than the files', so that boxes and masks are scaled.
    loader = build_evaluation_loader(small_config(INPUT__MIN_SIZE_TEST=56), TRAIN)
    return list(loader)


@pytest.fixture(scope="module")
def folder(
    models: dict[str, nn.Module], loader: list, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The store of the standard model, whose masks are those of one calibration."""
    folder = tmp_path_factory.mktemp("store")
    some = {"drawn 0": calibrations()["drawn 0"]}
    sweep(models[STANDARD], loader, some, store=folder, store_info={"data set": "noise"})
    return folder


def assert_same_boxes(left: SweepDetections, right: SweepDetections) -> None:
    assert left.names == right.names
    for name in left.names:
        one, other = left.detections(name), right.detections(name)
        for column in ("image_id", "category", "score", "box"):
            np.testing.assert_array_equal(getattr(one, column), getattr(other, column))
    np.testing.assert_array_equal(left.image_ids, right.image_ids)


@pytest.mark.parametrize(
    ("head", "average"), [(STANDARD, "probs"), (CASCADE, "probs"), (CASCADE, "logits")]
)
def test_boxes_equal_those_of_the_network_for_calibrations_that_came_later(
    models: dict[str, nn.Module], loader: list, tmp_path: Path, head: str, average: str
) -> None:
    model = models[head]
    stages = len(find_box_predictors(model))
    batches = [loader[0] + loader[1], *loader[2:]]
    sweep(model, batches, {"uncalibrated": calibrations(stages)["uncalibrated"]}, store=tmp_path)
    named = calibrations(stages)
    expected = sweep(model, batches, named, average=average)
    found = sweep_stored(StoredOutputs.load(tmp_path), named, average=average)
    assert_same_boxes(found, expected)
    assert len(expected.detections("drawn 0")) > NUM_IMAGES


@pytest.mark.parametrize("head", [STANDARD, CASCADE])
def test_few_boxes_are_enough_for_the_calibrations_of_the_sweep_that_stored(
    models: dict[str, nn.Module], loader: list, tmp_path: Path, head: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    # As where candidates are many: the boxes of those that are left out have no say.
    monkeypatch.setattr("logn_d2.sweeps.union.moving_limit", lambda device: 0)
    model = models[head]
    named = calibrations(len(find_box_predictors(model)))
    expected = sweep(model, loader, named, store=tmp_path, max_boxes=100)
    stored = StoredOutputs.load(tmp_path)
    images = [image for shard in stored.shards() for image in shard.images]
    few = [image.box_index is not None for image in images]
    assert few == [head == STANDARD] * NUM_IMAGES  # class-agnostic boxes are few anyway
    if head == STANDARD:
        assert all(100 <= len(image.boxes) < 40 * NUM_CLASSES for image in images)
    assert_same_boxes(sweep_stored(stored, named), expected)


def test_the_best_candidates_of_every_calibration_are_kept() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = [torch.randn(number, 4, generator=generator) for number in (6, 9)]
    counts = [len(each) for each in logits]
    softmax = [lambda together: together.softmax(dim=1).split(counts)]
    boxes = [torch.zeros(number, 12) for number in counts]
    raw = RawOutputs([torch.cat(logits)], softmax, boxes, [(9, 9)] * 2)
    shifts = torch.eye(3) * 5
    named = [[AffineCalibration(torch.ones(3), shift)] for shift in shifts]
    best = best_candidates(raw, named, "probs", 4)
    for found, of_image in zip(best, logits, strict=True):
        expected = torch.zeros_like(found)
        for (calibration,) in named:
            scores = calibration(of_image).softmax(dim=1)[:, :-1]
            expected |= scores >= scores.flatten().sort().values[-4]
        assert torch.equal(found, expected) and 4 < found.sum() <= 12


def test_a_box_that_is_needed_and_not_stored_is_an_error(
    models: dict[str, nn.Module], loader: list, tmp_path: Path
) -> None:
    some = {"drawn 0": calibrations()["drawn 0"]}
    sweep(models[STANDARD], loader, some, store=tmp_path, max_boxes=20)
    with pytest.raises(ValueError, match="without stored boxes.*--max-boxes"):
        sweep_stored(StoredOutputs.load(tmp_path), calibrations())


def test_no_box_that_could_matter_is_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the check passes, nothing that unknown boxes could be changes what is found."""
    monkeypatch.setattr("logn_d2.sweeps.union.moving_limit", lambda device: 0)
    generator = torch.Generator().manual_seed(0)
    identity = [[AffineCalibration.identity(3)]]
    accepted = 0
    for _ in range(60):
        logits = torch.randn(12, 4, generator=generator) * 2
        corner = torch.rand(12, 3, 2, generator=generator) * 30
        boxes = torch.cat([corner, corner + 20], dim=2).flatten(1)
        known = torch.rand(12, 3, generator=generator) < 0.7
        known |= logits.softmax(dim=1)[:, :3] > 0.4
        found = set()
        for fill in (0.0, 5.0, 25.0, None):
            other = boxes.view(12, 3, 4).clone()
            if fill is not None:
                other[~known] = torch.tensor([fill, fill, fill + 20, fill + 20])
            softmax = [lambda logits: [logits.softmax(dim=1)]]
            raw = RawOutputs([logits], softmax, [other.flatten(1)], [(60, 60)])
            (union,) = find_unions(raw, identity, "probs", (0.01, 0.5, 6))
            found.add((str(union.boxes.tolist()), str(union.scores)))
            checked = replace(raw, known=[known])
            try:
                find_unions(checked, identity, "probs", (0.01, 0.5, 6))
            except ValueError:
                break
        else:
            accepted += 1
            assert len(found) == 1
    assert 0 < accepted < 60


def test_masks_are_those_of_the_network_where_the_storing_sweep_found_them(
    models: dict[str, nn.Module], loader: list, folder: Path
) -> None:
    expected = sweep(models[STANDARD], loader, calibrations())
    found = sweep_stored(StoredOutputs.load(folder), calibrations())
    assert found.missing_masks("drawn 0") == 0
    assert_equal(found.detections("drawn 0"), expected.detections("drawn 0"))
    for name in ("uncalibrated", "drawn 1"):
        one, other = found.detections(name).masks, expected.detections(name).masks
        differ = [a != b for a, b in zip(one.to_dicts(), other.to_dicts(), strict=True)]
        # One that is missing may be empty in truth.
        assert 0 < sum(differ) <= found.missing_masks(name) < len(differ)


@pytest.mark.parametrize("rename", [lambda image_id: f"a/{image_id}é", lambda i: 2**40 + i])
def test_image_ids_may_be_strings_or_large(
    models: dict[str, nn.Module], loader: list, tmp_path: Path, rename: Callable
) -> None:
    renamed = [[{**image, "image_id": rename(image["image_id"])} for image in b] for b in loader]
    named = calibrations()
    expected = sweep(models[STANDARD], loader, named)
    places = {"output_dir": tmp_path / "sweep", "store": tmp_path / "store"}
    on_disk = sweep(models[STANDARD], renamed, named, **places)
    stored = StoredOutputs.load(tmp_path / "store")
    ids = [rename(image_id) for image_id in expected.image_ids.tolist()]
    assert on_disk.image_ids.tolist() == stored.image_ids.tolist() == ids
    for found in (on_disk, sweep_stored(stored, named)):
        for name in named:
            same, mine = expected.detections(name), found.detections(name)
            assert mine.image_id.tolist() == [rename(i) for i in same.image_id.tolist()]
            assert_equal(replace(mine, image_id=same.image_id), same)


def test_a_mask_belongs_to_its_image_and_class() -> None:
    """A box that fills its image is the same in many images, and in both classes of a region."""
    bitmaps = [np.asfortranarray(np.eye(4, k=k, dtype=np.uint8)) for k in range(4)]
    masks = RleMasks.from_dicts([mask_util.encode(bitmap) for bitmap in bitmaps])
    box = np.tile(np.array([[0.0, 0.0, 4.0, 4.0]], dtype=np.float32), (4, 1))
    found = Detections([1, 1, 2, 2], [0, 1, 0, 1], [0.5] * 4, box, masks)
    given, known = _KnownMasks(found).given_to(replace(found, masks=None), (4, 4))
    assert known.all() and given.masks.to_dicts() == masks.to_dicts()


def test_masks_are_evaluated_only_where_all_are_known(
    models: dict[str, nn.Module],
    loader: list,
    folder: Path,
    data_set: list[dict],
    caplog: pytest.LogCaptureFixture,
) -> None:
    truth = ground_truth(data_set)
    expected = evaluate_sweep(sweep(models[STANDARD], loader, calibrations()), truth)
    stored = StoredOutputs.load(folder)
    with caplog.at_level(logging.WARNING):
        results = evaluate_sweep(sweep_stored(stored, calibrations(), ground_truth=truth), truth)
    np.testing.assert_equal(results["drawn 0"], expected["drawn 0"])
    for name in ("uncalibrated", "drawn 1", "drawn 2"):
        assert list(results[name]) == ["bbox"]
        np.testing.assert_equal(results[name]["bbox"], expected[name]["bbox"])
        assert f"The masks of {name} are not evaluated" in caplog.text


def test_unused_masks_are_neither_stored_nor_missing(
    models: dict[str, nn.Module], loader: list, data_set: list[dict], tmp_path: Path
) -> None:
    federated = ground_truth(data_set, negatives=[[1, 3], [2], [], [1], [4]])
    sweep(models[STANDARD], loader, calibrations(), ground_truth=federated, store=tmp_path)
    stored = StoredOutputs.load(tmp_path)
    found = sweep_stored(stored, calibrations(), ground_truth=federated)
    assert all(found.missing_masks(name) == 0 for name in found.names)
    with_network = sweep(models[STANDARD], loader, calibrations())
    np.testing.assert_equal(
        evaluate_sweep(found, federated), evaluate_sweep(with_network, federated)
    )
    # Where every class counts, the others are missed, and not taken for empty.
    everything = sweep_stored(stored, calibrations(), ground_truth=ground_truth(data_set))
    assert everything.missing_masks("uncalibrated") > 0


def test_models_without_masks_and_images_without_detections(loader: list, tmp_path: Path) -> None:
    thresholds = {"MODEL__ROI_HEADS__SCORE_THRESH_TEST": 1.0}
    model = small_model(small_config(MODEL__MASK_ON=False, **thresholds))
    expected = sweep(model, loader, calibrations(), store=tmp_path)
    found = sweep_stored(StoredOutputs.load(tmp_path), calibrations())
    assert len(found.detections("uncalibrated")) == 0
    assert not found.has_masks and len(found.image_ids) == NUM_IMAGES
    assert_same_boxes(found, expected)


def test_stored_values_equal_the_outputs_of_the_model(folder: Path, loader: list) -> None:
    """No rounding, in the model's own type: 40 RoIs, logits of 5 columns and boxes of 4 classes."""
    stored = StoredOutputs.load(folder)
    images = [image for shard in stored.shards() for image in shard.images]
    assert [image.image_id for image in images] == stored.image_ids.tolist()
    for image, (inputs,) in zip(images, loader, strict=True):
        assert image.logits[0].shape == (len(image.boxes), NUM_CLASSES + 1)
        assert image.boxes.shape[1] == 4 * NUM_CLASSES
        assert image.logits[0].dtype == image.boxes.dtype == torch.float32
        assert image.image_size == tuple(inputs["image"].shape[1:]) != image.output_size
        assert image.output_size == (48, 64)
    assert stored.info == {"data set": "noise"}
    assert stored.calibrations == ["drawn 0"]


def test_calibrations_from_weights_need_no_model(
    models: dict[str, nn.Module], loader: list, tmp_path: Path
) -> None:
    predictors = find_box_predictors(models[CASCADE])
    sweep(models[CASCADE], loader[:1], calibrations(3, count=0), store=tmp_path)
    stored = StoredOutputs.load(tmp_path)
    options = {"num_classes": NUM_CLASSES, "num_stages": 3}
    readers = [classifier_reader(predictor) for predictor in predictors]
    expected = stage_calibrations("tau_norm", classifiers=readers, **options)
    found = stage_calibrations("tau_norm", classifiers=stored.classifiers(), **options)
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one.scale, other.scale) and torch.equal(one.shift, other.shift)
    for predictor, fingerprint in zip(predictors, stored.fingerprints, strict=True):
        assert torch.equal(predictor_fingerprint(predictor), fingerprint)


def test_scores_that_are_no_function_of_the_logits_are_refused(
    loader: list, tmp_path: Path
) -> None:
    model = small_model(small_config())
    (predictor,) = find_box_predictors(model)
    own = type(predictor).predict_probs
    sigmoid = lambda p, proposals: p[0].sigmoid().split([len(each) for each in proposals])  # noqa: E731
    predictor.predict_probs = sigmoid
    sweep(model, loader[:1], calibrations(), store=tmp_path / "sigmoid")
    expected = sweep(model, loader[:1], calibrations())
    stored = StoredOutputs.load(tmp_path / "sigmoid")
    assert_same_boxes(sweep_stored(stored, calibrations()), expected)
    predictor.predict_probs = lambda p, proposals: [
        each**2 for each in own(predictor, p, proposals)
    ]
    with pytest.raises(ValueError, match="not the softmax or sigmoid of its logits"):
        sweep(model, loader[:1], calibrations(), store=tmp_path / "square")


# Interruptions


def contents(folder: Path) -> list[tuple]:
    stored = StoredOutputs.load(folder)
    return [
        (image.image_id, image.boxes.tolist(), [each.tolist() for each in image.logits])
        for shard in stored.shards()
        for image in shard.images
    ]


def test_a_killed_sweep_resumes_its_store(
    models: dict[str, nn.Module], loader: list, folder: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    model = models[STANDARD]
    monkeypatch.setattr(
        StoreWriter.__init__, "__defaults__", (None, 0, 1)
    )  # a shard for each image
    some = {"drawn 0": calibrations()["drawn 0"]}
    options = {"output_dir": tmp_path / "sweep", "store": tmp_path / "store", "chunk_size": 2}
    with interrupted_after(3):
        sweep(model, loader, some, **options)
    with pytest.raises(ValueError, match="are incomplete.*--resume"):
        StoredOutputs.load(tmp_path / "store")
    # Two images are done; the third one's shard is there, but no chunk says so.
    assert len(list((tmp_path / "store").glob("*-*.safetensors"))) == 3
    with count_passes(model) as passes:
        sweep(model, loader, some, resume=True, **options)
    assert len(passes) == NUM_IMAGES - 2
    assert contents(tmp_path / "store") == contents(folder)
    with count_passes(model) as passes:
        sweep(model, loader, some, resume=True, **options)
    assert not passes
    assert contents(tmp_path / "store") == contents(folder)


def test_no_image_counts_as_done_before_its_outputs_are_stored(
    models: dict[str, nn.Module], loader: list, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def disk_is_full(self: StoreWriter) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(StoreWriter, "flush", disk_is_full)
    options = {"output_dir": tmp_path / "sweep", "store": tmp_path / "store", "chunk_size": 1}
    with pytest.raises(OSError, match="No space left"):
        sweep(models[STANDARD], loader[:1], calibrations(count=0), **options)
    assert not list((tmp_path / "sweep").glob("*.npz"))


def test_resuming_a_sweep_without_its_store_is_an_error(
    models: dict[str, nn.Module], loader: list, tmp_path: Path
) -> None:
    options = {"output_dir": tmp_path / "sweep", "store": tmp_path / "store", "chunk_size": 2}
    with interrupted_after(3):
        sweep(models[STANDARD], loader, calibrations(), **options)
    shutil.rmtree(tmp_path / "store")
    with pytest.raises(ValueError, match="2 batches are done, but .* of 0. Start again"):
        sweep(models[STANDARD], loader, calibrations(), resume=True, **options)


def test_a_store_replaces_the_one_that_was_there(
    models: dict[str, nn.Module], loader: list, tmp_path: Path
) -> None:
    (tmp_path / "mine.safetensors").write_text("precious")
    for number, images in enumerate((loader, loader[:2])):
        named = {"drawn 0": calibrations()[f"drawn {number}"]}
        sweep(models[STANDARD], images, named, store=tmp_path)
        names = {path.name for path in tmp_path.glob("*.safetensors")}
        assert len(names) == 3 and {"mine.safetensors", "classifiers.safetensors"} < names
    assert len(StoredOutputs.load(tmp_path).image_ids) == 2


def test_another_average_of_a_cascade_is_another_sweep(
    models: dict[str, nn.Module], loader: list, tmp_path: Path
) -> None:
    named = calibrations(3, count=0)
    sweep(models[CASCADE], loader[:1], named, store=tmp_path / "store")
    stored, folder = StoredOutputs.load(tmp_path / "store"), tmp_path / "sweep"
    for _ in range(2):  # the same once more
        sweep_stored(stored, named, average="probs", output_dir=folder, overwrite=False)
    with pytest.raises(ValueError, match="contains a finished sweep .*--overwrite"):
        sweep_stored(stored, named, average="logits", output_dir=folder, overwrite=False)


# Mistakes


def test_files_that_are_cut_off_or_gone_are_named(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "cut")
    (shard,) = (tmp_path / "cut").glob("*-*.safetensors")
    shard.write_bytes(shard.read_bytes()[:-100])
    with pytest.raises(ValueError, match=f"{shard.name}' is not a complete file"):
        sweep_stored(StoredOutputs.load(tmp_path / "cut"), calibrations())
    shard.unlink()
    with pytest.raises(ValueError, match=f"1 of 2 files .* missing, the first is {shard.name}"):
        StoredOutputs.load(tmp_path / "cut")
    with pytest.raises(FileNotFoundError, match="--save-outputs"):
        StoredOutputs.load(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"version": 99}, "format version 99"),
        ({"shards": None}, "are incomplete"),
        ({"num_stages": None, "selection": [1]}, "is damaged"),
        ({"num_stages": 2}, "is damaged"),
        ({"num_classes": 9}, "is damaged"),
    ],
)
def test_other_manifests_are_errors(
    folder: Path, tmp_path: Path, changes: dict, message: str
) -> None:
    shutil.copytree(folder, tmp_path / "changed")
    path = tmp_path / "changed" / "predictions.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    with pytest.raises(ValueError, match=message):
        list(StoredOutputs.load(tmp_path / "changed").shards())


def test_another_data_set_and_other_calibrations_are_refused(
    folder: Path, data_set: list[dict]
) -> None:
    stored = StoredOutputs.load(folder)
    stored.check(ground_truth(data_set))
    others = [{**record, "image_id": record["image_id"] + 2} for record in data_set]
    with pytest.raises(ValueError, match="2 of their 5 images .* 2 of its 5 .* made for noise"):
        sweep_stored(stored, calibrations(), ground_truth=ground_truth(others))
    with pytest.raises(ValueError, match="0 of their 5 images .* 2 of its 7"):
        stored.check(ground_truth([*data_set, *others[-2:]]))
    other_classes = {"other": [AffineCalibration.identity(7)]}
    with pytest.raises(ValueError, match="has 7 classes, this model has 4"):
        sweep_stored(stored, other_classes)
    with pytest.raises(ValueError, match="expected 'probs' or 'logits'"):
        sweep_stored(stored, calibrations(), average="scores")
