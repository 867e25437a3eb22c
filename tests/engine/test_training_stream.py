"""An interrupted training ends with the weights of an uninterrupted one."""

import itertools
import os

import pytest
import torch

from logn_d2.data.rng import seed_rng
from logn_d2.engine import Trainer
from logn_d2.engine.training_stream import TrainingStream
from logn_d2.source import Source


@pytest.fixture
def cfg(cfg, tmp_path):
    cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.MAX_ITER, cfg.SOLVER.CHECKPOINT_PERIOD = 3, 6, 2
    cfg.DATALOADER.NUM_WORKERS = 0
    cfg.DATALOADER.ASPECT_RATIO_GROUPING = True
    cfg.DATASETS.TEST = ()
    cfg.MODEL.LOGN.COLLECT.ENABLED = False
    cfg.OUTPUT_DIR = str(tmp_path / "whole")
    return cfg


def train(cfg, *, resume=False, until=None, seed=0):
    """A training's batches and its last weights; `until` stops it as a crash would."""
    seed_rng(seed)
    os.makedirs(cfg.OUTPUT_DIR, exist_ok=True)
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=resume)
    batches, step = [], trainer.run_step
    forward = trainer.model.forward

    def noted(inputs):
        batches.append([(each["image_id"], each["image"].sum().item()) for each in inputs])
        return forward(inputs)

    def run_step():
        if trainer.iter == until:
            raise KeyboardInterrupt
        step()

    trainer.model.forward, trainer.run_step = noted, run_step
    try:
        trainer.train()
    except KeyboardInterrupt:
        pass
    return batches, {k: v.clone() for k, v in trainer.model.state_dict().items()}


@pytest.mark.parametrize("grouping", [True, False])
@pytest.mark.parametrize("sampler", ["TrainingSampler", "RepeatFactorTrainingSampler"])
def test_a_resumed_training_equals_an_uninterrupted_one(cfg, tmp_path, sampler, grouping):
    cfg.DATALOADER.SAMPLER_TRAIN, cfg.DATALOADER.ASPECT_RATIO_GROUPING = sampler, grouping
    cfg.SEED = 7 if grouping else -1
    batches, weights = train(cfg)
    cfg.OUTPUT_DIR = str(tmp_path / "cut")
    if cfg.SEED < 0:  # the sampler's seed is drawn: take the first half as it comes
        cut, _ = train(cfg, until=5)
        rest, _ = train(cfg, resume=True, seed=1)
        again, _ = train(cfg, resume=True, seed=2)
        assert len(rest) == 2 and again == []
        assert rest[0] == cut[4]
        return
    first, _ = train(cfg, until=5)
    rest, resumed = train(cfg, resume=True, seed=1)
    assert first == batches[:5] and rest == batches[4:]
    assert weights.keys() == resumed.keys()
    assert all(torch.equal(weights[key], resumed[key]) for key in weights)


def images(widths):
    return [
        {"file_name": "", "image_id": i, "width": width, "height": 10, "annotations": []}
        for i, width in enumerate(widths)
    ]


class Counting(torch.utils.data.Sampler):
    def __init__(self):
        pass

    def __iter__(self):
        return itertools.count()


def test_images_that_wait_for_their_aspect_ratio_are_not_lost(cfg, monkeypatch):
    monkeypatch.setattr(Source, "mapper", lambda self, is_train: dict)
    widths = [20, 20, 5, 20, 5, 20, 20, 5, 20, 20, 5, 5, 20, 20, 5, 20, 20, 5]
    for taken in range(4):
        whole = TrainingStream(cfg, images(widths), Counting())
        expected = [[r["image_id"] for r in batch] for batch in itertools.islice(whole, 5)]
        stream = TrainingStream(cfg, images(widths), Counting())
        iterator = iter(stream)
        for _ in range(taken):
            next(iterator)
        stream.keep(taken)
        again = TrainingStream(cfg, images(widths), Counting())
        again.load_state_dict(stream.state_dict())
        found = [[r["image_id"] for r in batch] for batch in itertools.islice(again, 5 - taken)]
        assert found == expected[taken:]
        # A position that was returned to can be kept in turn.
        once = TrainingStream(cfg, images(widths), Counting())
        once.load_state_dict(stream.state_dict())
        iterator = iter(once)
        next(iterator)
        once.keep(taken + 1)
        last = TrainingStream(cfg, images(widths), Counting())
        last.load_state_dict(once.state_dict())
        found = [[r["image_id"] for r in batch] for batch in itertools.islice(last, 4 - taken)]
        assert found == expected[taken + 1 :]


def test_a_stream_of_other_images_starts_from_the_beginning_with_a_warning(cfg, caplog):
    stream = TrainingStream(cfg, images([20] * 9), Counting())
    stream.keep(3)
    other = TrainingStream(cfg, images([20] * 8), Counting())
    other.load_state_dict(stream.state_dict())
    assert "other images: the sampler starts at its beginning" in caplog.text
