"""TensorBoard's histograms and pictures, which do not change the training."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from detectron2.utils.events import EventStorage
from torch import nn

from logn_d2.core import LogitStatistics, StageStatistics, stage_calibrations
from logn_d2.engine import Trainer
from logn_d2.engine.events import ComparedImages, put_statistics
from logn_d2.engine.statistics import periodic_collection

NUM_CLASSES = 12


def statistics(num_stages: int = 2) -> LogitStatistics:
    """Class 3 was never seen; the background's logit is far from all others."""
    stages = []
    for stage in range(num_stages):
        mean = torch.arange(NUM_CLASSES + 1, dtype=torch.float64) + 100 * stage
        mean[-1] = -1000
        count = torch.full((NUM_CLASSES + 1,), 9)
        count[3] = 0
        stages.append(StageStatistics(mean, (mean / 2) ** 2 + 1, count))
    return LogitStatistics(tuple(stages), tuple(map(str, range(NUM_CLASSES))))


def test_histograms_are_of_usable_foreground_classes_of_each_stage() -> None:
    storage = EventStorage(7)
    put_statistics(storage, statistics())
    found = {each["tag"]: each for each in storage._histograms}
    assert list(found) == [
        f"logn_stats/stage{i}/{name}" for i in (0, 1) for name in ("mean", "std")
    ]
    for stage, start in enumerate((0, 100)):
        mean, std = (found[f"logn_stats/stage{stage}/{name}"] for name in ("mean", "std"))
        assert (mean["min"], mean["max"], mean["num"]) == (start, start + 11, 11)
        assert mean["sum"] == 11 * start + 66 - 3
        assert std["max"] == pytest.approx(np.hypot((start + 11) / 2, 1), rel=1e-6)
        assert mean["global_step"] == 7


def test_statistics_of_nothing_have_no_histogram() -> None:
    storage, some = EventStorage(), statistics(1)
    (stage,) = some.stages
    unseen = replace(stage, count=torch.zeros_like(stage.count))
    put_statistics(storage, replace(some, stages=(unseen,)))
    assert storage._histograms == []


def pictures(cfg: CfgNode, model: nn.Module) -> list[tuple]:
    calibrations = stage_calibrations("logn", num_classes=NUM_CLASSES, statistics=statistics(1))
    storage, images = EventStorage(5), ComparedImages(cfg)
    images.put(storage, model, "logn", calibrations)
    images.put(storage, model, "logn", calibrations)
    return storage._vis_data


def test_pictures_are_of_the_same_images_each_time(cfg: CfgNode) -> None:
    cfg.MODEL.MASK_ON, cfg.TEST.DETECTIONS_PER_IMAGE = False, 6
    cfg.MODEL.LOGN.VIS_IMAGES = 2
    model = Trainer.build_model(cfg)
    first = pictures(cfg, model)
    names = [name for name, *_ in first]
    assert len(set(names)) == 2 and names[:2] == names[2:]
    assert all(name.startswith("before_after/") and step == 5 for name, _, step in first)
    for (_, one, _), (_, other, _) in zip(first[:2], first[2:], strict=True):
        np.testing.assert_array_equal(one, other)
        assert one.dtype == np.uint8 and one.shape[0] == 3
        side = (one.shape[2] - 8) // 2
        assert not np.array_equal(one[:, 28:, :side], one[:, 28:, -side:])
    cfg.MODEL.LOGN.COLLECT.SEED = 1
    assert [name for name, *_ in pictures(cfg, model)] != names


@pytest.mark.parametrize(("whole", "periodic", "used"), [(0, 7, 7), (5, 7, 5), (9, 7, 7)])
def test_periodic_passes_have_no_more_images_than_the_last(
    cfg: CfgNode, whole: int, periodic: int, used: int
) -> None:
    cfg.MODEL.LOGN.COLLECT.MAX_IMAGES = whole
    cfg.MODEL.LOGN.COLLECT.PERIODIC_IMAGES = periodic
    cfg.freeze()
    assert periodic_collection(cfg).MODEL.LOGN.COLLECT.MAX_IMAGES == used


def trained(
    cfg: CfgNode, folder: Path, images: int
) -> tuple[dict[str, torch.Tensor], EventStorage]:
    """State and events of a training of two iterations."""
    cfg = cfg.clone()
    folder.mkdir()
    cfg.OUTPUT_DIR = str(folder)
    cfg.MODEL.LOGN.COLLECT.PERIODIC_IMAGES = images
    torch.manual_seed(0)
    np.random.seed(0)
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=False)
    trainer.train()
    return trainer.model.state_dict(), trainer.storage


def test_calibrated_evaluations_leave_the_training_as_it_is(cfg: CfgNode, tmp_path: Path) -> None:
    cfg.MODEL.MASK_ON, cfg.TEST.DETECTIONS_PER_IMAGE = False, 6
    cfg.TEST.EVAL_PERIOD, cfg.SOLVER.MAX_ITER, cfg.SOLVER.STEPS = 1, 2, ()
    cfg.MODEL.LOGN.COLLECT.MAX_IMAGES = 4
    cfg.MODEL.LOGN.VIS_IMAGES = 1
    with_them, storage = trained(cfg, tmp_path / "with", 2)
    without, other_storage = trained(cfg, tmp_path / "without", 0)
    for name in with_them:
        assert torch.equal(with_them[name], without[name]), name
    assert len(storage.history("logn/bbox/AP").values()) == 2
    assert len(other_storage.history("logn/bbox/AP").values()) == 1
    periodic, last = "inference/logn_stats.safetensors", "logn_stats.safetensors"
    assert LogitStatistics.load(tmp_path / "with" / periodic).num_images == 2
    assert LogitStatistics.load(tmp_path / "with" / last).num_images == 4
    assert not (tmp_path / "without" / periodic).exists()
