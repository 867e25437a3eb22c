"""The number of times a training reads its annotation files: LVIS takes half a minute each time."""

from __future__ import annotations

from detectron2.data import MetadataCatalog

import logn_d2.data.registration as registration
from logn_d2.engine import check_training, run_training
from logn_d2.engine.trainer import Trainer


class StopHere(Exception):
    """Ends a run where the training would begin."""


def test_the_training_set_is_read_once_for_the_checks_and_once_to_start(cfg, monkeypatch):
    reads, read = [], registration.read_annotations
    monkeypatch.setattr(
        registration, "read_annotations", lambda path: reads.append(str(path)) or read(path)
    )

    def stop(self, resume):
        raise StopHere

    monkeypatch.setattr(Trainer, "resume_or_load", stop)
    cfg.MODEL.LOGN.LOSS = "seesaw"  # counts classes when the model is built
    cfg.MODEL.LOGN.COLLECT.ENABLED = False
    cfg.DATALOADER.SAMPLER_TRAIN = "RepeatFactorTrainingSampler"
    for name in (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST):
        vars(MetadataCatalog.get(name)).pop("_read", None)
    train, val = (
        str(MetadataCatalog.get(names[0]).json_file)
        for names in (cfg.DATASETS.TRAIN, cfg.DATASETS.TEST)
    )
    check_training(cfg, 1)
    assert (reads.count(train), reads.count(val)) == (1, 1)
    try:
        run_training(cfg, resume=False)
    except StopHere:
        pass
    assert (reads.count(train), reads.count(val)) == (2, 1)
