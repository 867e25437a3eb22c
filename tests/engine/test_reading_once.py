"""The number of times a training reads its annotation files: LVIS takes a minute each time."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog

import logn_d2.data.registration as registration
from logn_d2.cli.main import main
from logn_d2.data.kept import is_kept
from logn_d2.engine import check_training, run_training
from logn_d2.engine.trainer import Trainer


class StopHere(Exception):
    """Ends a run where the training would begin; says whether its training set is kept."""


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], int]:
    """How often the annotations of a data set were read; trainings end when they would begin."""
    paths, read = [], registration.read_annotations
    monkeypatch.setattr(
        registration, "read_annotations", lambda path: paths.append(str(path)) or read(path)
    )

    def stop(self: Trainer, resume: bool) -> None:
        raise StopHere(is_kept(self.cfg.DATASETS.TRAIN[0]))

    monkeypatch.setattr(Trainer, "resume_or_load", stop)
    return lambda name: paths.count(str(MetadataCatalog.get(name).json_file))


@pytest.fixture
def config(cfg: CfgNode) -> CfgNode:
    """Data sets of a user, and parts that count their classes."""
    sets = []
    for name in (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST):
        metadata = MetadataCatalog.get(name)
        sets.append([f"own_{name}", str(metadata.json_file), str(metadata.image_root)])
    cfg.MODEL.LOGN.DATASETS = sets
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = (sets[0][0],), (sets[1][0],)
    cfg.MODEL.LOGN.LOSS = "seesaw"  # counts classes when the model is built
    cfg.MODEL.LOGN.COLLECT.ENABLED = False
    cfg.DATALOADER.SAMPLER_TRAIN = "RepeatFactorTrainingSampler"
    registration.register_from_config(cfg)
    for name, *_ in sets:
        vars(MetadataCatalog.get(name)).pop("_read", None)
    return cfg


def test_checks_read_each_set_once_and_the_start_the_training_set(config, reads):
    train, val = *config.DATASETS.TRAIN, *config.DATASETS.TEST
    check_training(config, 1)
    assert (reads(train), reads(val)) == (1, 1)
    with pytest.raises(StopHere):
        run_training(config, resume=False)
    assert (reads(train), reads(val)) == (2, 1)


def test_the_command_starts_with_what_its_checks_have_read_and_frees_it(
    config, reads, tmp_path: Path
):
    file = tmp_path / "config.yaml"
    file.write_text(config.dump())
    train, val = *config.DATASETS.TRAIN, *config.DATASETS.TEST
    with pytest.raises(StopHere) as stop:
        main(["train", "--config-file", str(file)])
    assert (reads(train), reads(val)) == (1, 1)
    assert stop.value.args == (False,)
