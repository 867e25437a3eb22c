"""Two processes with half a batch each learn the same as one process with the whole batch."""

import os
import subprocess
import sys
from pathlib import Path

import torch

from .small_batch import STATEFUL, batch, make

NUM_ROIS = 12
NUM_STEPS = 3
# Stands by itself, so that starting a process costs no more than importing torch.
SCRIPT = """
import sys, torch, torch.distributed as dist
from logn_d2.core import build_loss
folder, rank = sys.argv[1], int(sys.argv[2])
torch.set_num_threads(1)
dist.init_process_group("gloo", f"file://{folder}/rendezvous", rank=rank, world_size=2)
shares = torch.load(f"{folder}/shares{rank}.pt", weights_only=True)
results = {}
for text, steps in shares.items():
    loss = build_loss(text, 3)
    values = [loss(*step).item() for step in steps]
    results[text] = [loss.state_dict(), values]
torch.save(results, f"{folder}/results{rank}.pt")
dist.barrier()  # gloo aborts a process whose partner is gone
dist.destroy_process_group()
"""


def _shares(text: str, rank: int) -> list[list[torch.Tensor]]:
    steps = [batch(make(text), NUM_ROIS, seed) for seed in range(NUM_STEPS)]
    half = slice(rank * NUM_ROIS // 2, (rank + 1) * NUM_ROIS // 2)
    shares = [[each.detach()[half].clone() for each in step] for step in steps]
    # At last an image without RoIs on one process: the other must not wait for it.
    shares[-1] = [each[: len(each) * rank] for each in shares[-1]]
    for logits, targets, objects in shares:
        objects += 100 * rank  # an object is on one process only
        assert len(logits) == len(targets)
    return shares


def test_two_processes_learn_like_one(tmp_path: Path) -> None:
    shares = [{text: _shares(text, rank) for text in STATEFUL} for rank in range(2)]
    for rank in range(2):
        torch.save(shares[rank], tmp_path / f"shares{rank}.pt")
    processes = [
        subprocess.Popen([sys.executable, "-c", SCRIPT, str(tmp_path), str(rank)], env=os.environ)
        for rank in range(2)
    ]
    assert [process.wait(timeout=120) for process in processes] == [0, 0]
    results = [torch.load(tmp_path / f"results{rank}.pt", weights_only=True) for rank in range(2)]
    for text in STATEFUL:
        loss = make(text)
        values = [
            loss(*map(torch.cat, zip(*halves))).item()
            for halves in zip(shares[0][text], shares[1][text])
        ]
        found = [torch.tensor(each[text][1]) for each in results]
        # Both have as many RoIs, but in the last step.
        mean = (found[0] + found[1]) / 2
        torch.testing.assert_close(mean[:-1], torch.tensor(values)[:-1], rtol=1e-6, atol=0)
        for name, expected in loss.state_dict().items():
            for each in results:
                torch.testing.assert_close(each[text][0][name], expected, rtol=1e-9, atol=1e-12)
