"""Detections that stream to disk: a killed pass resumes, and ends as if it had not been killed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import MetadataCatalog
from detectron2.evaluation import inference_on_dataset
from detectron2.structures import Boxes, Instances
from detectron2.utils import comm
from torch import nn

from logn_d2.evaluators.detection_store import MemoryStore, ShardStore
from logn_d2.evaluators.lvis_form import LVISFormEvaluator
from logn_d2.evaluators.resumable_inference import resumable_inference
from logn_d2.lvis.detections import Detections

from ..lvis.lvis_reference import random_lvis, write_json

NAME = "resumable_inference_test"


class _Killed(BaseException):
    """What no code catches."""


class _Detector(nn.Module):
    """Finds objects that follow from the image id; dies at one image if told to."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.seed = nn.Parameter(torch.tensor(float(seed)))
        self.dies_at: int | None = None
        self.seen: list[int] = []

    def forward(self, inputs: list[dict]) -> list[dict]:
        if self.dies_at in [image["image_id"] for image in inputs]:
            raise _Killed
        self.seen += [image["image_id"] for image in inputs]
        return [{"instances": self._find(image)} for image in inputs]

    def _find(self, image: dict) -> Instances:
        generator = torch.Generator().manual_seed(image["image_id"] + int(self.seed))
        number = int(torch.randint(0, 6, (), generator=generator))
        instances = Instances((image["height"], image["width"]))
        corners = torch.rand(number, 4, generator=generator) * 60
        instances.pred_boxes = Boxes(corners + torch.tensor([0.0, 0, 60, 60]))
        instances.scores = torch.rand(number, generator=generator)
        instances.pred_classes = torch.randint(0, 7, (number,), generator=generator)
        return instances


@pytest.fixture
def images(tmp_path: Path) -> Iterator[list[dict]]:
    """The images of a registered data set."""
    dataset = random_lvis(np.random.default_rng(0), num_images=20, with_masks=False)
    json_file = write_json(tmp_path / "truth.json", dataset)
    MetadataCatalog.get(NAME).json_file = str(json_file)
    yield [{"image_id": i["id"], "height": 200, "width": 200} for i in dataset["images"]]
    MetadataCatalog.pop(NAME)


def _evaluator(folder: Path, resume: bool = False) -> LVISFormEvaluator:
    return LVISFormEvaluator(NAME, output_dir=folder, resume=resume, shard_size=4)


def _batches(images: list[dict], size: int = 2) -> list[list[dict]]:
    return [images[start : start + size] for start in range(0, len(images), size)]


def _kill(folder: Path, images: list[dict], seed: int = 0) -> None:
    model = _Detector(seed)
    model.dies_at = images[13]["image_id"]
    with pytest.raises(_Killed):
        resumable_inference(model, _batches(images), _evaluator(folder))


def test_a_killed_pass_resumes_from_its_last_file(images: list[dict], tmp_path: Path) -> None:
    whole = resumable_inference(_Detector(), _batches(images), _evaluator(tmp_path / "whole"))
    _kill(tmp_path / "killed", images)
    shards = sorted((tmp_path / "killed" / "shards").iterdir())
    assert len(shards) == 3
    model = _Detector()
    again = resumable_inference(model, _batches(images), _evaluator(tmp_path / "killed", True))
    assert model.seen == [image["image_id"] for image in images[12:]]
    np.testing.assert_equal(dict(again["bbox"]), dict(whole["bbox"]))
    one, other = (Detections.load(tmp_path / n / "detections.npz") for n in ("whole", "killed"))
    for name, column in one.to_arrays().items():
        np.testing.assert_array_equal(column, other.to_arrays()[name])
    assert not shards[0].parent.exists()


def test_memory_and_disk_give_the_same(images: list[dict], tmp_path: Path) -> None:
    on_disk = resumable_inference(_Detector(), _batches(images), _evaluator(tmp_path / "out"))
    in_memory = resumable_inference(_Detector(), _batches(images), LVISFormEvaluator(NAME))
    np.testing.assert_equal(dict(on_disk["bbox"]), dict(in_memory["bbox"]))


def test_a_loader_may_skip_finished_batches(images: list[dict], tmp_path: Path) -> None:
    _kill(tmp_path, images)
    skipped = []

    def loader(skip: int) -> list[list[dict]]:
        skipped.append(skip)
        return _batches(images)[skip:]

    resumable_inference(_Detector(), loader, _evaluator(tmp_path, resume=True))
    assert skipped == [0, 6]


@pytest.mark.parametrize(("seed", "resume", "warns"), [(0, False, False), (1, True, True)])
def test_other_weights_or_no_resume_start_from_the_beginning(
    images: list[dict],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    seed: int,
    resume: bool,
    warns: bool,
) -> None:
    _kill(tmp_path, images)
    model = _Detector(seed)
    resumable_inference(model, _batches(images), _evaluator(tmp_path, resume))
    assert len(model.seen) == 20
    assert ("The evaluation starts from the beginning" in caplog.text) == warns


def test_other_settings_start_from_the_beginning(images: list[dict], tmp_path: Path) -> None:
    _kill(tmp_path, images)
    model = _Detector()
    evaluator = _evaluator(tmp_path, resume=True)
    resumable_inference(model, _batches(images), evaluator, settings={"threshold": 0.1})
    assert len(model.seen) == 20


def test_an_image_that_comes_again_after_a_resumption_counts_once(tmp_path: Path) -> None:
    ShardStore(tmp_path, shard_size=1).add([7], Detections([7], [0], [0.5], [[0, 0, 1, 1]]))
    store = ShardStore(tmp_path, resume=True)
    store.add([7, 8], Detections([7, 8], [0, 0], [0.5, 0.5], [[0, 0, 1, 1]] * 2))
    detections, seen = store.load()
    assert detections.image_id.tolist() == seen.tolist() == [7, 8]


def test_a_killed_evaluation_needs_no_image_again(
    images: list[dict], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(
            "logn_d2.evaluators.lvis_form.evaluate_lvis",
            lambda *_, **__: (_ for _ in ()).throw(_Killed),
        )
        with pytest.raises(_Killed):
            resumable_inference(_Detector(), _batches(images), _evaluator(tmp_path))
    model = _Detector()
    results = resumable_inference(model, _batches(images), _evaluator(tmp_path, resume=True))
    assert model.seen == [] and results["bbox"]["AP"] >= 0


def test_memory_does_not_grow_with_the_images(tmp_path: Path) -> None:
    store = ShardStore(tmp_path, shard_size=5)
    for image_id in range(23):
        store.add([image_id], Detections([image_id], [0], [0.5], [[0, 0, 1, 1]]))
        assert len(store._pending) < 5
    assert store.num_batches == 20
    detections, seen = store.load()
    assert detections.image_id.tolist() == seen.tolist() == list(range(23))


@pytest.mark.parametrize("kind", ["memory", "disk"])
def test_image_ids_may_be_large_or_strings(tmp_path: Path, kind: str) -> None:
    for ids in ([2**40, 3], ["000b", "a"]):
        store = MemoryStore() if kind == "memory" else ShardStore(tmp_path)
        for image_id in [*ids, ids[0]]:
            store.add([image_id], Detections([image_id], [0], [0.5], [[0, 0, 1, 1]]))
        detections, seen = store.load()
        assert detections.image_id.tolist() == seen.tolist() == ids
        store.clear()


def test_a_broken_file_is_named(tmp_path: Path) -> None:
    store = ShardStore(tmp_path, shard_size=1)
    store.add([7], Detections([7], [0], [0.5], [[0, 0, 1, 1]]))
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:90])
    with pytest.raises(ValueError, match=f"{path.name}' is not a complete file of the evaluation"):
        ShardStore(tmp_path, resume=True)


def test_nothing_to_resume_from_is_refused(images: list[dict], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="resume=True needs output_dir"):
        LVISFormEvaluator(NAME, resume=True)
    with pytest.raises(ValueError, match="excludes max_dets_per_class"):
        LVISFormEvaluator(NAME, resume=True, output_dir=tmp_path, max_dets_per_class=5)


def test_fixed_ap_by_the_evaluator(images: list[dict], tmp_path: Path) -> None:
    evaluator = LVISFormEvaluator(NAME, max_dets_per_class=3, output_dir=tmp_path)
    results = resumable_inference(_Detector(), _batches(images), evaluator)
    saved = Detections.load(tmp_path / "detections.npz")
    assert np.bincount(saved.category).max() == 3
    assert {"AP", "APr", "AP-pooled", "AP-pooled-f"} <= set(results["bbox"])


def test_without_a_digest_the_detections_of_other_weights_are_not_resumed(
    images: list[dict], tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="resumable_inference"):
        inference_on_dataset(_Detector(1), _batches(images), _evaluator(tmp_path, resume=True))


def test_processes_that_evaluate_by_themselves_keep_their_files_apart(
    images: list[dict], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(comm, "get_world_size", lambda: 2)
    parts = []
    for rank in range(2):
        monkeypatch.setattr(comm, "get_rank", lambda rank=rank: rank)
        parts.append(LVISFormEvaluator(NAME, output_dir=tmp_path, distributed=False, shard_size=1))
        parts[rank].reset()
        mine = images[rank::2]
        parts[rank].process(mine, _Detector()(mine))
    for rank, part in enumerate(parts):
        assert "bbox" in part.evaluate()
        saved = Detections.load(tmp_path / f"process{rank}of2" / "detections.npz")
        assert set(saved.image_id.tolist()) <= {image["image_id"] for image in images[rank::2]}
