"""A second stage's feature memory is full of all classes before its first step."""

import json
from pathlib import Path

import pytest
import torch

from logn_d2.engine import Trainer
from logn_d2.modeling import FeatureMemory

CAPACITY = 2 * 16 + 1  # two objects of each class; a third would be one too many


@pytest.fixture
def loce(cfg):
    """Config of a second stage of one step, on a model with random weights."""
    cfg.SEED, cfg.DATASETS.TEST = 1, ()
    cfg.MODEL.LOGN.COLLECT.ENABLED = False
    cfg.MODEL.ROI_HEADS.NAME, cfg.MODEL.LOGN.LOSS = "LogNMemoryROIHeads", "loce"
    cfg.MODEL.LOGN.MEMORY.CAPACITY = CAPACITY
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.MAX_ITER = (64,), 2, 1
    cfg.MODEL.LOGN.SECOND_STAGE, cfg.MODEL.WEIGHTS = "heads", f"{cfg.OUTPUT_DIR}/first.pth"
    torch.save({"model": Trainer.build_model(cfg).state_dict()}, cfg.MODEL.WEIGHTS)
    return cfg


@pytest.fixture
def remembered(monkeypatch):
    """Labels of all RoIs that are remembered, one list for each time."""
    calls, add = [], FeatureMemory.add

    def noted(memory, sample):
        calls.append(sample.labels.tolist())
        add(memory, sample)

    monkeypatch.setattr(FeatureMemory, "add", noted)
    return calls


def trained(cfg, resume=False):
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=resume)
    trainer.train()
    return trainer


def scores_before_steps(monkeypatch):
    """Where the mean scores before each step will be."""
    seen, run_step = [], Trainer.run_step

    def step(trainer):
        seen.append(trainer.model.roi_heads.box_predictor.loss.mean_score.clone())
        run_step(trainer)

    monkeypatch.setattr(Trainer, "run_step", step)
    return seen


def test_every_class_fills_its_part_before_the_first_step(loce, remembered):
    heads = trained(loce).model.roi_heads
    assert len(remembered) == 2 * 12 + 1  # two images of each class, and the step
    before, after = (
        torch.tensor(sum(labels, [])).bincount(minlength=12)
        for labels in (remembered[:-1], remembered)
    )
    assert (before >= 2 * 16).all()
    assert len(heads.memory) == after.clamp(max=CAPACITY).sum()
    entries = map(json.loads, (Path(loce.OUTPUT_DIR) / "metrics.json").read_text().splitlines())
    assert [entry["memory/seconds"] > 0 for entry in entries] == [True]


def test_mean_scores_are_warm_before_the_first_step(loce, monkeypatch):
    seen = scores_before_steps(monkeypatch)
    trained(loce)
    (scores,) = seen
    assert (scores[:-1] != 0.01).all() and scores[-1] == 0.01


def test_a_resumed_training_fills_its_memory_and_keeps_its_mean_scores(
    loce, remembered, monkeypatch
):
    trained(loce)
    before = torch.load(f"{loce.OUTPUT_DIR}/model_final.pth", weights_only=True)["model"]
    loce.SOLVER.MAX_ITER = 2
    remembered.clear()
    scores = scores_before_steps(monkeypatch)
    trained(loce, resume=True)
    assert len(remembered) == 2 * 12 + 1
    assert torch.equal(scores[0], before["roi_heads.box_predictor.loss.mean_score"])


def test_finished_training_fills_nothing(loce, remembered):
    trained(loce)
    remembered.clear()
    trained(loce, resume=True)
    assert remembered == []


@pytest.mark.parametrize(("capacity", "stage"), [(CAPACITY, ""), (15, "heads")])
def test_without_first_stage_or_room_the_memory_fills_as_training_goes(
    capacity, stage, loce, remembered
):
    loce.MODEL.LOGN.MEMORY.CAPACITY, loce.MODEL.LOGN.SECOND_STAGE = capacity, stage
    trained(loce)
    assert len(remembered) == 1
