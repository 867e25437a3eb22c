"""A sweep equals one inference for each calibration, survives being killed, and leaves no trace."""

from __future__ import annotations

import copy
import json
import logging
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch
from detectron2.evaluation import inference_on_dataset
from detectron2.utils import comm
from torch import nn

from logn_d2.analysis import format_table
from logn_d2.core import AffineCalibration
from logn_d2.data.loader import build_evaluation_loader
from logn_d2.lvis import Detections, evaluate_lvis
from logn_d2.modeling import attach
from logn_d2.modeling.box_predictors import find_box_predictors
from logn_d2.sweeps import SweepDetections, evaluate_sweep, sweep
from logn_d2.sweeps.network import SweepRunner

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
    return list(build_evaluation_loader(small_config(), TRAIN))


@contextmanager
def attached(model: nn.Module, stages: list[AffineCalibration], average: str) -> Iterator[None]:
    """The obvious way: calibrate what each predictor's probabilities are made from."""
    predictors = find_box_predictors(model)
    logits: list = []

    def attach(predictor: nn.Module, calibration: AffineCalibration) -> None:
        def predict_probs(predictions: tuple, proposals: list) -> tuple:
            logits.append(calibration(predictions[0]))
            if average == "logits" and len(logits) == len(predictors):
                # Detectron2 averages what the stages return: let them all return the same.
                mean = sum(logits) * (1.0 / len(logits))
                probs = type(predictor).predict_probs(predictor, (mean, predictions[1]), proposals)
                logits.clear()
                return tuple(each * len(predictors) for each in probs)
            if average == "logits":
                return tuple(torch.zeros(len(p), NUM_CLASSES + 1) for p in proposals)
            calibrated = (calibration(predictions[0]), predictions[1])
            return type(predictor).predict_probs(predictor, calibrated, proposals)

        predictor.predict_probs = predict_probs

    for predictor, calibration in zip(predictors, stages, strict=True):
        attach(predictor, calibration)
    try:
        yield
    finally:
        for predictor in predictors:
            del predictor.predict_probs


def detectron2_detections(
    model: nn.Module, loader: list, stages: list[AffineCalibration], average: str = "probs"
) -> Detections:
    """What the calibrated model itself finds, image by image."""
    parts = []
    with attached(model, stages, average), torch.no_grad():
        for batch in loader:
            instances = [output["instances"] for output in model(batch)]
            parts.append(Detections.from_instances(instances, [x["image_id"] for x in batch]))
    return Detections.concatenate(parts)


# Equality


@pytest.mark.parametrize(
    ("head", "average"), [(STANDARD, "probs"), (STANDARD, "logits"), (CASCADE, "probs")]
)
def test_each_calibration_equals_the_calibrated_model(
    models: dict[str, nn.Module], loader: list, head: str, average: str
) -> None:
    model = models[head]
    named = calibrations(stages=len(find_box_predictors(model)))
    swept = sweep(model, loader, named, average=average)
    assert swept.names == tuple(named)
    found = {name: swept.detections(name) for name in named}
    for name, stages in named.items():
        assert len(found[name]) > NUM_IMAGES
        assert found[name].masks is not None
        assert_equal(found[name], detectron2_detections(model, loader, stages))
    assert not np.array_equal(found["uncalibrated"].score, found["drawn 0"].score)


def test_cascades_can_average_logits(models: dict[str, nn.Module], loader: list) -> None:
    named = calibrations(stages=3)
    swept = sweep(models[CASCADE], loader, named, average="logits")
    for name, stages in named.items():
        expected = detectron2_detections(models[CASCADE], loader, stages, average="logits")
        found = swept.detections(name)
        np.testing.assert_array_equal(found.category, expected.category)
        np.testing.assert_array_equal(found.box, expected.box)
        # Times 3 and over 3 again in the reference.
        np.testing.assert_allclose(found.score, expected.score, rtol=1e-6)


def test_images_of_a_batch_are_told_apart(model: nn.Module, loader: list) -> None:
    batches = [loader[0] + loader[1], loader[2] + loader[3] + loader[4]]
    named = calibrations()
    swept = sweep(model, batches, named)
    for name, stages in named.items():
        assert_equal(swept.detections(name), detectron2_detections(model, batches, stages))
    assert swept.image_ids.tolist() == [100 + index for index in range(NUM_IMAGES)]


def test_masks_in_parts_equal_masks_at_once(
    model: nn.Module, loader: list, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches = [loader[0] + loader[1], *loader[2:]]
    whole = sweep(model, batches, calibrations())
    monkeypatch.setattr("logn_d2.sweeps.network._MASKS_AT_A_TIME", {"cpu": 7})
    parts = sweep(model, batches, calibrations())
    for name in whole.names:
        assert_equal(whole.detections(name), parts.detections(name))


@pytest.mark.parametrize("head", ["LogNROIHeads", STANDARD, CASCADE])
def test_a_calibration_that_the_model_has_is_left_out_of_account(loader: list, head: str) -> None:
    model = small_model(small_config(head))
    named = calibrations(stages=len(find_box_predictors(model)))
    raw = sweep(model, loader, named)
    with attach(model, named["drawn 1"]):
        again = sweep(model, loader, named)
        same_detections(raw, again)
        with torch.no_grad():
            own = [model(batch)[0]["instances"] for batch in loader]
    expected = Detections.from_instances(own, [batch[0]["image_id"] for batch in loader])
    assert_equal(raw.detections("drawn 1"), expected)


def test_models_without_masks_work(loader: list) -> None:
    model = small_model(small_config(MODEL__MASK_ON=False))
    swept = sweep(model, loader, calibrations())
    assert not swept.has_masks
    for name, stages in calibrations().items():
        assert_equal(swept.detections(name), detectron2_detections(model, loader, stages))


def test_images_without_detections_count_as_seen(model: nn.Module, loader: list) -> None:
    nothing = AffineCalibration(torch.ones(NUM_CLASSES), torch.full((NUM_CLASSES,), -99.0))
    swept = sweep(model, loader, {"nothing": [nothing]})
    assert len(swept.detections("nothing")) == 0
    assert len(swept.image_ids) == NUM_IMAGES
    both = sweep(model, loader, {"nothing": [nothing], **calibrations(count=0)})
    assert len(both.detections("nothing")) == 0 < len(both.detections("uncalibrated"))


# Work


def test_network_runs_once_and_masks_once_for_each_different_detection(
    model: nn.Module, loader: list
) -> None:
    passes, masks = [], []
    mask_head = model.roi_heads.mask_head
    handles = [
        model.backbone.register_forward_hook(lambda *_: passes.append(1)),
        mask_head.register_forward_hook(lambda m, args, out: masks.append(len(args[0]))),
    ]
    try:
        swept = sweep(model, loader, calibrations(count=6))
    finally:
        for handle in handles:
            handle.remove()
    assert len(passes) == NUM_IMAGES
    found = [swept.detections(name) for name in swept.names]
    different = {
        (i, c, *box)
        for each in found
        for i, c, box in zip(each.image_id, each.category, each.box.tolist())
    }
    assert sum(masks) == swept.num_union == len(different) < sum(map(len, found)) / 2


# Files


def same_detections(left: SweepDetections, right: SweepDetections) -> None:
    assert left.names == right.names
    for name in left.names:
        assert_equal(left.detections(name), right.detections(name))
    np.testing.assert_array_equal(left.image_ids, right.image_ids)


def test_detections_on_disk_equal_those_in_memory(
    model: nn.Module, loader: list, tmp_path: Path
) -> None:
    in_memory = sweep(model, loader, calibrations())
    on_disk = sweep(model, loader, calibrations(), output_dir=tmp_path / "new" / "x", chunk_size=2)
    same_detections(in_memory, on_disk)
    same_detections(in_memory, SweepDetections.load(tmp_path / "new" / "x"))
    assert len(list((tmp_path / "new" / "x").glob("*.npz"))) == 3


@pytest.mark.parametrize("factory", [False, True])
def test_an_interrupted_sweep_resumes_from_its_last_chunk(
    model: nn.Module, loader: list, tmp_path: Path, caplog: pytest.LogCaptureFixture, factory: bool
) -> None:
    def build(skip: int) -> object:
        return build_evaluation_loader(small_config(), TRAIN, skip=skip)

    images = build if factory else loader
    options = {"output_dir": tmp_path, "chunk_size": 2}
    with interrupted_after(3):
        sweep(model, images, calibrations(), **options)
    with caplog.at_level(logging.WARNING):
        part = SweepDetections.load(tmp_path)
    assert len(part.image_ids) == 2 and not part.finished
    assert "interrupted" in caplog.text
    with count_passes(model) as passes:
        resumed = sweep(model, images, calibrations(), resume=True, **options)
    assert len(passes) == NUM_IMAGES - 2
    assert resumed.finished
    same_detections(resumed, sweep(model, loader, calibrations()))


def test_a_finished_sweep_needs_no_network(model: nn.Module, loader: list, tmp_path: Path) -> None:
    first = sweep(model, loader, calibrations(), output_dir=tmp_path)
    with count_passes(model) as passes:
        again = sweep(model, loader, calibrations(), output_dir=tmp_path, resume=True)
    assert not passes
    same_detections(first, again)


def test_resuming_with_other_calibrations_or_weights_starts_from_the_beginning(
    model: nn.Module, loader: list, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    changed = copy.deepcopy(model)
    with torch.no_grad():
        next(changed.backbone.parameters())[0, 0, 0, 0] += 1e-3
    renamed = {f"{name}!": stages for name, stages in calibrations().items()}
    others = [(model, renamed), (model, {**calibrations(), "drawn 0": calibrations()["drawn 1"]})]
    for other, named in [*others, (changed, calibrations())]:
        sweep(model, loader, calibrations(), output_dir=tmp_path, chunk_size=1)
        caplog.clear()
        with caplog.at_level(logging.WARNING), count_passes(other) as passes:
            found = sweep(other, loader, named, output_dir=tmp_path, resume=True)
        assert len(passes) == NUM_IMAGES
        assert "starts from the beginning" in caplog.text
        same_detections(found, sweep(other, loader, named))
        assert len(list(tmp_path.glob("*.npz"))) == 1


def test_another_selection_average_or_annotations_start_from_the_beginning(
    models: dict[str, nn.Module],
    loader: list,
    data_set: list[dict],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = models[CASCADE]

    def passes(**options: object) -> int:
        named = calibrations(stages=3, count=0)
        with count_passes(model) as seen:
            sweep(model, loader[:1], named, output_dir=tmp_path, resume=True, **options)
        return len(seen)

    truth, federated = ground_truth(data_set), ground_truth(data_set, negatives=[[]] * NUM_IMAGES)
    different = [{}, {"average": "logits"}, {"ground_truth": truth}, {"ground_truth": federated}]
    different += [{"store": tmp_path / "store", "max_boxes": number} for number in (0, 9)]
    for options in different:
        assert [passes(**options), passes(**options)] == [1, 0], options
    for name in ("test_score_thresh", "test_nms_thresh", "test_topk_per_image"):
        last = find_box_predictors(model)[-1]
        monkeypatch.setattr(last, name, type(getattr(last, name))(getattr(last, name) * 0.7))
        assert passes() == 1, name


def test_another_number_of_processes_starts_from_the_beginning(
    model: nn.Module, loader: list, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = sweep(model, loader, calibrations())
    sweep(model, loader, calibrations(), output_dir=tmp_path)
    monkeypatch.setattr(comm, "get_world_size", lambda: 2)
    monkeypatch.setattr(comm, "synchronize", lambda: None)
    monkeypatch.setattr(comm, "all_gather", lambda data: [data])
    chunks: dict[int, list[str]] = {}
    monkeypatch.setattr(
        comm, "gather", lambda mine: chunks.update({comm.get_rank(): mine}) or list(chunks.values())
    )
    # The first one once more: what it lists at the end is there when all have finished.
    for rank in (0, 1, 0):
        monkeypatch.setattr(comm, "get_rank", lambda rank=rank: rank)
        monkeypatch.setattr(comm, "is_main_process", lambda rank=rank: rank == 0)
        both = sweep(model, loader[rank::2], calibrations(), output_dir=tmp_path, resume=True)
        assert len(list(tmp_path.glob(f"*-{rank}of2-*.npz"))) == 1
    assert not list(tmp_path.glob("*of1*"))
    for name in whole.names:
        order = np.argsort(both.detections(name).image_id, kind="stable")
        assert_equal(both.detections(name).take(order), whole.detections(name))


def test_without_asking_nothing_is_resumed(model: nn.Module, loader: list, tmp_path: Path) -> None:
    sweep(model, loader, calibrations(), output_dir=tmp_path)
    (tmp_path / "sweep.json").unlink()
    with count_passes(model) as passes:
        sweep(model, loader, calibrations(), output_dir=tmp_path)
    assert len(passes) == NUM_IMAGES


def test_other_files_in_the_folder_stay(model: nn.Module, loader: list, tmp_path: Path) -> None:
    (tmp_path / "sweep.json").write_text('{"mine": 1}')
    (tmp_path / "mine.npz").write_text("precious")
    for _ in range(2):
        sweep(model, loader[:1], calibrations(), output_dir=tmp_path)
    assert (tmp_path / "mine.npz").read_text() == "precious"


def test_a_folder_without_sweep_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="logn sweep"):
        SweepDetections.load(tmp_path)


# No trace, mistakes


@pytest.mark.parametrize("fails", [False, True])
def test_model_and_random_state_are_as_before(model: nn.Module, loader: list, fails: bool) -> None:
    model.train()
    model.backbone.eval()
    modes = [module.training for module in model.modules()]
    attributes = [sorted(module.__dict__) for module in model.modules()]
    hooks = [len(module._forward_hooks) for module in model.modules()]
    weights = copy.deepcopy(model.state_dict())
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    if fails:
        with interrupted_after(1):
            sweep(model, loader, calibrations())
    else:
        sweep(model, loader, calibrations())
    assert modes == [module.training for module in model.modules()]
    assert attributes == [sorted(module.__dict__) for module in model.modules()]
    assert hooks == [len(module._forward_hooks) for module in model.modules()]
    assert all(torch.equal(weights[name], t) for name, t in model.state_dict().items())
    assert states == (
        random.getstate(),
        np.random.get_state()[1].tolist(),
        torch.get_rng_state().tolist(),
    )
    model.eval()


def test_calibrations_must_fit_the_model(models: dict[str, nn.Module], loader: list) -> None:
    with pytest.raises(ValueError, match="has 1 calibrations, but this model has 3"):
        sweep(models[CASCADE], loader, calibrations(stages=1))
    with pytest.raises(ValueError, match="has 7 classes, this model has 4"):
        sweep(models[STANDARD], loader, {"other": [AffineCalibration.identity(7)]})
    with pytest.raises(ValueError, match="no calibrations"):
        sweep(models[STANDARD], loader, {})
    with pytest.raises(ValueError, match="expected 'probs' or 'logits'"):
        sweep(models[STANDARD], loader, calibrations(), average="scores")


def test_unknown_names_list_the_known_ones(model: nn.Module, loader: list) -> None:
    swept = sweep(model, loader[:1], calibrations())
    with pytest.raises(KeyError, match="uncalibrated, drawn 0"):
        swept.detections("norcal")


# Evaluation


def test_results_equal_those_of_each_calibrated_model(
    model: nn.Module, loader: list, data_set: list[dict]
) -> None:
    truth, named = ground_truth(data_set), calibrations()
    results = evaluate_sweep(sweep(model, loader, named), truth)
    assert list(results) == list(named)
    for name, stages in named.items():
        detections = detectron2_detections(model, loader, stages)
        for task in ("bbox", "segm"):
            expected = evaluate_lvis(truth, detections, task).as_dict()
            np.testing.assert_equal(results[name][task], dict(expected))


@pytest.mark.parametrize("batch_size", [1, 2])
def test_unused_masks_are_left_out(
    model: nn.Module, loader: list, data_set: list[dict], batch_size: int
) -> None:
    federated = [[1, 3], [2], [], [1], [4]]  # classes known to be absent
    truth = ground_truth(data_set, negatives=federated)
    batches = loader if batch_size == 1 else [loader[0] + loader[1], *loader[2:]]
    whole = sweep(model, batches, calibrations())
    masks: list[int] = []
    handle = model.roi_heads.mask_head.register_forward_hook(
        lambda module, args, output: masks.append(len(args[0]))
    )
    part = sweep(model, batches, calibrations(), ground_truth=truth)
    handle.remove()
    assert 0 < sum(masks) < 0.8 * whole.num_union
    for name in whole.names:
        left, right = whole.detections(name), part.detections(name)
        for column in ("image_id", "category", "score", "box"):
            np.testing.assert_array_equal(getattr(left, column), getattr(right, column))
        image = np.searchsorted(truth.image_ids, left.image_id)
        listed = truth.is_listed(image * NUM_CLASSES + left.category)
        assert listed.any() and not listed.all()
        assert_equal(left.take(listed), right.take(listed))
        assert mask_util.area(left.take(~listed).masks.to_dicts()).any()
        assert not mask_util.area(right.take(~listed).masks.to_dicts()).any()
    np.testing.assert_equal(evaluate_sweep(part, truth), evaluate_sweep(whole, truth))


def test_masks_are_evaluated_where_both_sides_have_them(
    model: nn.Module, loader: list, data_set: list[dict], caplog: pytest.LogCaptureFixture
) -> None:
    swept = sweep(model, loader, calibrations(count=1))
    with caplog.at_level(logging.INFO):
        results = evaluate_sweep(swept, ground_truth(data_set, masks=False))
    assert all(list(by_task) == ["bbox"] for by_task in results.values())
    assert "only boxes are evaluated" in caplog.text


def test_table_has_a_line_for_each_calibration_in_order() -> None:
    metrics = {"AP": 20.04, "APr": float("nan"), "APc": 9.96, "APf": 0.0, "AP50": 50.0}
    table = format_table({"zeta": {"bbox": metrics, "segm": metrics}, "alpha": {"bbox": metrics}})
    header, _, zeta, alpha = table.splitlines()
    assert (
        header.split()
        == "| calibration | box AP | APr | APc | APf | mask AP | APr | APc | APf |".split()
    )
    assert zeta.split() == "| zeta | 20.0 | - | 10.0 | 0.0 | 20.0 | - | 10.0 | 0.0 |".split()
    assert alpha.split() == "| alpha | 20.0 | - | 10.0 | 0.0 | - | - | - | - |".split()
    assert len({len(line) for line in (header, zeta, alpha)}) == 1


def test_the_runner_stands_in_for_the_model(model: nn.Module, loader: list) -> None:
    """So that progress and ETA come from Detectron2's own loop."""
    runner = SweepRunner(model, calibrations(), "probs")
    assert inference_on_dataset(runner, loader, None) == {}


def test_a_sweep_that_lost_a_chunk_or_has_a_damaged_one_is_refused_by_name(
    model: nn.Module, loader: list, tmp_path: Path
) -> None:
    whole = sweep(model, loader, calibrations(count=1), output_dir=tmp_path, chunk_size=2)
    first, *_, last = sorted(tmp_path.glob("*.npz"))
    content = last.read_bytes()
    last.unlink()
    with pytest.raises(ValueError, match=f"1 of 3 files .* missing, the first is {last.name}"):
        SweepDetections.load(tmp_path)
    for damaged in (b"", content[:200], content[:-50], b"no zip"):
        last.write_bytes(damaged)
        with pytest.raises(ValueError, match=f"{last.name}' is not a complete file of the sweep"):
            SweepDetections.load(tmp_path).detections("uncalibrated")
    last.write_bytes(content)
    (tmp_path / first.name.replace("00000", "00009")).write_bytes(b"of nobody")
    same_detections(SweepDetections.load(tmp_path), whole)


def test_manifests_of_earlier_versions_stay_readable(
    model: nn.Module, loader: list, tmp_path: Path
) -> None:
    whole = sweep(model, loader, calibrations(count=1), output_dir=tmp_path, chunk_size=2)
    manifest = json.loads((tmp_path / "sweep.json").read_text())
    shards = manifest.pop("shards")
    assert len(shards) == 3
    for listed in ({"chunks": shards}, {}):
        earlier = {**manifest, "finished": True, **listed}
        (tmp_path / "sweep.json").write_text(json.dumps(earlier))
        same_detections(SweepDetections.load(tmp_path), whole)


def test_finished_results_of_other_weights_are_kept_unless_they_are_to_be_replaced(
    loader: list, tmp_path: Path
) -> None:
    model = small_model(small_config())
    folders = {"output_dir": tmp_path / "sweep", "store": tmp_path / "store"}
    sweep(model, loader, calibrations(), **folders)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with torch.no_grad():
        next(model.parameters()).mul_(1.5)
    for kept, free in (("output_dir", "store"), ("store", "output_dir")):
        mixed = {kept: folders[kept], free: tmp_path / "new"}
        for resume in (False, True):
            with pytest.raises(ValueError, match=f"'{folders[kept]}' contains .*--overwrite"):
                sweep(model, loader, calibrations(), **mixed, overwrite=False, resume=resume)
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before
    sweep(model, loader, calibrations(), **folders)
    sweep(model, loader, calibrations(), **folders, overwrite=False)  # the same once more
