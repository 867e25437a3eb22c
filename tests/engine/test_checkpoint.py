"""Checkpoints survive being killed while they are written."""

import pytest
import torch
from torch import nn

from logn_d2.engine.checkpoint import AtomicCheckpointer, load_weights


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

    monkeypatch.setattr("logn_d2.engine.checkpoint.atomic_write", killed)
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
