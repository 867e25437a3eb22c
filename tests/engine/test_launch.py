"""Processes on the CPU are a group that Detectron2 knows."""

import json
import logging
import os
import socket

import pytest
import torch
import torch.distributed as dist
from detectron2.engine import defaults
from detectron2.utils import comm
from torch import nn
from torch.multiprocessing import ProcessExitedException

from logn_d2.engine import launch
from logn_d2.engine.launch import _first_host, started_processes

from ..processes import Command, use_forks

LOGGER = "detectron2.of_this_test"


def is_no_noise(record):
    return record.getMessage() != "noise"


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
        "log level": logging.getLogger(LOGGER).level,
        "filtered": not logging.getLogger(LOGGER).filter(logging.makeLogRecord({"msg": "noise"})),
    }
    path = os.path.join(folder, f"{comm.get_rank()}.json")
    with open(path, "w") as file:
        json.dump(facts, file)
    if facts["size"] > 1:
        comm.synchronize()  # the first to end has the other one terminated, file or no file
        raise SystemExit(7)


def read(folder, rank):
    return json.loads((folder / f"{rank}.json").read_text())


def test_two_processes_share_gradients_and_cores_and_report_their_exit_code(tmp_path, monkeypatch):
    use_forks(monkeypatch)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(logging.getLogger(LOGGER), "level", logging.ERROR)
    monkeypatch.setattr(logging.getLogger(LOGGER), "filters", [is_no_noise])
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
        assert facts["log level"] == logging.ERROR and facts["filtered"]


def test_one_process_needs_no_group(tmp_path):
    before = torch.get_num_threads()
    launch(describe, 1, device="cpu", args=(str(tmp_path),))
    assert read(tmp_path, 0)["size"] == 1
    assert torch.get_num_threads() == before


def test_machines_need_an_address():
    with pytest.raises(ValueError, match="--dist-url tcp://HOST:PORT"):
        launch(describe, 1, device="cpu", num_machines=2)


TORCHRUN = {"LOCAL_WORLD_SIZE": "2", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
SRUN = {
    "SLURM_STEP_NUM_TASKS": "2",
    "SLURM_STEP_NUM_NODES": "1",
    "SLURM_STEP_NODELIST": "localhost",
}


@pytest.mark.parametrize("launcher", ["torchrun", "srun"])
def test_processes_that_a_launcher_has_started_join_each_other(tmp_path, launcher):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    script = tmp_path / "script.py"
    script.write_text(
        "from logn_d2.engine import launch\n"
        "from tests.engine.test_launch import describe\n"
        f"launch(describe, 1, device='cpu', args=({str(tmp_path)!r},))\n"
    )
    started = []
    for rank in ("0", "1"):
        names = (
            ("RANK", "LOCAL_RANK") if launcher == "torchrun" else ("SLURM_PROCID", "SLURM_LOCALID")
        )
        own = {**(TORCHRUN if launcher == "torchrun" else SRUN), **dict.fromkeys(names, rank)}
        own["MASTER_PORT"] = port
        started.append(Command([script], tmp_path / f"{rank}.txt", own))
    assert [process.wait() for process in started] == [7, 7], started[0].output
    for rank in range(2):
        facts = read(tmp_path, rank)
        assert (facts["size"], facts["local"]) == (2, [rank, 2])
        assert facts["gathered"] == [0, 1] and facts["gradient"] == [0.5] * 4


def test_a_launcher_and_processes_of_our_own_are_too_many(tmp_path, monkeypatch):
    for name, value in {**TORCHRUN, "RANK": "0", "LOCAL_RANK": "0", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    assert started_processes() == 2
    with pytest.raises(ValueError, match="torchrun has started 2 processes, and 2 more"):
        launch(describe, 2, device="cpu", args=(str(tmp_path),))
    monkeypatch.delenv("MASTER_PORT")
    with pytest.raises(ValueError, match="WORLD_SIZE is 2 .* MASTER_PORT is not set"):
        launch(describe, 1, device="cpu", args=(str(tmp_path),))
    assert not list(tmp_path.iterdir())


def test_the_batch_script_of_a_slurm_job_is_alone(monkeypatch):
    monkeypatch.setenv("SLURM_NTASKS", "8")
    monkeypatch.setenv("SLURM_PROCID", "0")
    assert started_processes() == 0


@pytest.mark.parametrize(
    ("nodes", "first"),
    [("n1", "n1"), ("n1,n2", "n1"), ("gpu[07-09,12],login1", "gpu07"), ("a[3,5]-ib", "a3-ib")],
)
def test_tasks_of_slurm_meet_at_the_first_machine(nodes, first):
    assert _first_host(nodes) == first
