"""Checkpoints survive being killed while they are written."""

import random

import pytest
import torch
from torch import nn

from logn_d2.engine.checkpoint import AtomicCheckpointer, load_weights

from ..load_script import load_script


@pytest.fixture
def checkpointer(tmp_path):
    return AtomicCheckpointer(nn.Linear(2, 2), str(tmp_path))


def test_saved_file_has_its_name_and_is_the_last_checkpoint(checkpointer, tmp_path):
    checkpointer.save("model_0000004", iteration=4)
    assert (tmp_path / "last_checkpoint").read_text() == "model_0000004.pth"
    assert checkpointer.get_checkpoint_file() == str(tmp_path / "model_0000004.pth")
    assert checkpointer.load(checkpointer.get_checkpoint_file())["iteration"] == 4
    assert sorted(p.name for p in tmp_path.iterdir()) == ["last_checkpoint", "model_0000004.pth"]


def test_a_save_that_breaks_off_leaves_the_old_checkpoint(checkpointer, tmp_path, monkeypatch):
    checkpointer.save("model_final", iteration=1)

    def break_off(data, file):
        file.write(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", break_off)
    with pytest.raises(KeyboardInterrupt):
        checkpointer.save("model_final", iteration=2)
    assert checkpointer.load(checkpointer.get_checkpoint_file())["iteration"] == 1


def test_kill_between_file_and_tag_leaves_the_old_tag(checkpointer, tmp_path, monkeypatch):
    checkpointer.save("model_0000001", iteration=1)

    def killed(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr("logn_d2.engine.checkpoint.write_text", killed)
    with pytest.raises(KeyboardInterrupt):
        checkpointer.save("model_0000002", iteration=2)
    assert checkpointer.load(checkpointer.get_checkpoint_file())["iteration"] == 1


def test_resume_takes_the_last_checkpoint_and_else_the_weights(checkpointer, tmp_path):
    model = checkpointer.model
    checkpointer.save("first")
    named = str(tmp_path / "first.pth")
    with torch.no_grad():
        model.weight.zero_()
    checkpointer.save("second")
    other = nn.Linear(2, 2)
    assert load_weights(other, named, str(tmp_path), resume=False) == named
    assert not torch.equal(other.weight, model.weight)
    assert load_weights(other, named, str(tmp_path), resume=True) == str(tmp_path / "second.pth")
    assert torch.equal(other.weight, model.weight)
    # A folder without checkpoints: --resume of a pass that began with named weights.
    assert load_weights(other, named, str(tmp_path / "empty"), resume=True) == named


def test_no_weights_at_all(tmp_path):
    with pytest.raises(ValueError, match="MODEL.WEIGHTS is empty"):
        load_weights(nn.Linear(2, 2), "", str(tmp_path), resume=True)


class Detector(nn.Module):
    def __init__(self, classes=3):
        super().__init__()
        self.backbone, self.cls_score = nn.Linear(2, 4), nn.Linear(4, classes + 1)


def saved(tmp_path, state):
    torch.save({"model": state}, tmp_path / "weights.pth")
    return str(tmp_path / "weights.pth")


PARTIAL = {
    "other classes": (lambda s: Detector(5).state_dict(), "2 of .*cls_score.weight.*NUM_CLASSES"),
    "backbone": (
        lambda s: {k: v for k, v in s.items() if "backbone" in k},
        "lacks 2 of .*first is cls_score.weight, which is not in it.*backbone alone",
    ),
    "prefix": (lambda s: {f"student.{k}": v for k, v in s.items()}, "remove 'student.' from"),
    "nan": (lambda s: {k: v * torch.nan for k, v in s.items()}, "not finite in 4 tensors"),
}


@pytest.mark.parametrize("name", PARTIAL)
def test_weights_that_leave_a_part_at_random_are_refused(name, tmp_path):
    change, message = PARTIAL[name]
    path = saved(tmp_path, change(Detector().state_dict()))
    with pytest.raises(ValueError, match=message) as error:
        load_weights(Detector(), path, str(tmp_path), resume=False)
    assert path in str(error.value)


def test_statistics_of_batch_norm_must_be_there_and_finite(tmp_path):
    """Without them, a trained network has the features of an untrained one."""
    model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2))
    state = {key: value.clone() for key, value in model.state_dict().items()}
    incomplete = {key: value for key, value in state.items() if key != "1.running_var"}
    broken = {**state, "1.running_mean": torch.tensor([0.0, torch.nan])}
    for wrong, message in ((incomplete, "1.running_var, which is not"), (broken, "1.running_mean")):
        with pytest.raises(ValueError, match=f"first is {message}"):
            load_weights(model, saved(tmp_path, wrong), str(tmp_path), resume=False)
    load_weights(model, saved(tmp_path, state), str(tmp_path), resume=False)


def test_a_training_may_start_from_such_weights_with_one_warning(tmp_path, caplog):
    path = saved(tmp_path, Detector(5).state_dict())
    model = Detector()
    AtomicCheckpointer(model, str(tmp_path)).load(path, checkpointables=[])
    lines = [r.message for r in caplog.records if "with other classes" in r.message]
    assert len(lines) == 1 and "(6, 4)" in lines[0] and "(4, 4)" in lines[0]


def test_a_damaged_file_is_named_whatever_its_damage(tmp_path):
    path = tmp_path / "weights.pth"
    saved(tmp_path, Detector().state_dict())
    whole, draw = path.read_bytes(), random.Random(0)
    files = [b"", b"<html>", *(whole[: draw.randrange(len(whole))] for _ in range(20))]
    for content in files:
        path.write_bytes(content)
        with pytest.raises(ValueError, match="can't be loaded") as error:
            load_weights(Detector(), str(path), str(tmp_path), resume=False)
        assert str(path) in str(error.value)
    for content in ({"model": 3}, {"model": {"backbone.weight": "x"}}, [1], 5, {"model": []}):
        torch.save(content, path)
        with pytest.raises(ValueError, match="can't be loaded"):
            load_weights(Detector(), str(path), str(tmp_path), resume=False)


@pytest.mark.filterwarnings("ignore")
def test_damaged_checkpoints_are_loaded_as_saved_or_refused(tmp_path):
    fuzz = load_script("benchmarks/fuzz_checkpoints.py")
    content = fuzz.save({"model": fuzz.example().state_dict()})
    found = {seed: fuzz.outcome(content, seed, tmp_path) for seed in range(100)}
    assert not {seed: how for seed, how in found.items() if how not in ("same", "refused")}
    assert set(found.values()) == {"same", "refused"}
