"""Processes on the CPU are a group that Detectron2 knows."""

import json
import os

import pytest
import torch
import torch.distributed as dist
from detectron2.engine import defaults
from detectron2.utils import comm
from torch import nn
from torch.multiprocessing import ProcessExitedException

from logn_d2.engine import launch


def describe(folder):
    model = defaults.create_ddp_model(nn.Linear(2, 2), broadcast_buffers=False)
    loss = model(torch.full((1, 2), float(comm.get_rank()))).sum()
    loss.backward()
    facts = {
        "size": comm.get_world_size(),
        "local": [comm.get_local_rank(), comm.get_local_size()],
        "threads": torch.get_num_threads(),
        "gathered": comm.all_gather(comm.get_rank()),
        "gradient": next(iter(model.parameters())).grad.flatten().tolist(),
        "backend": dist.get_backend() if dist.is_initialized() else None,
    }
    path = os.path.join(folder, f"{comm.get_rank()}.json")
    with open(path, "w") as file:
        json.dump(facts, file)
    if facts["size"] > 1:
        raise SystemExit(7)


def read(folder, rank):
    return json.loads((folder / f"{rank}.json").read_text())


def test_two_processes_share_gradients_and_cores_and_report_their_exit_code(tmp_path, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    with pytest.raises(ProcessExitedException) as stopped:
        launch(describe, 2, device="cpu", args=(str(tmp_path),))
    assert stopped.value.exit_code == 7
    for rank in range(2):
        facts = read(tmp_path, rank)
        assert (facts["size"], facts["local"]) == (2, [rank, 2])
        assert facts["gathered"] == [0, 1]
        assert facts["gradient"] == [0.5] * 4  # the mean of both processes' inputs, 0 and 1
        assert facts["threads"] == max(1, os.cpu_count() // 2)
        assert facts["backend"] == "gloo"


def test_one_process_needs_no_group(tmp_path):
    before = torch.get_num_threads()
    launch(describe, 1, device="cpu", args=(str(tmp_path),))
    assert read(tmp_path, 0)["size"] == 1
    assert torch.get_num_threads() == before


def test_machines_need_an_address():
    with pytest.raises(ValueError, match="--dist-url tcp://HOST:PORT"):
        launch(describe, 1, device="cpu", num_machines=2)


def test_processes_of_another_launcher_are_refused_before_they_work(tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="WORLD_SIZE is 2 in the environment.*--num-processes"):
        launch(describe, 1, device="cpu", args=(str(tmp_path),))
    assert not list(tmp_path.iterdir())
