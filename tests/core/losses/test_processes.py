"""Two processes with half a batch each learn the same as one process with the whole batch."""

from pathlib import Path

import torch
import torch.distributed as dist

from logn_d2.core import build_loss

from ...processes import CONTEXT, PATIENCE
from .small_batch import STATEFUL, batch, make

NUM_ROIS = 12
NUM_STEPS = 3


def _learn(folder: Path, rank: int) -> None:
    """One of the two processes: saves the state and the values of each loss."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/rendezvous", rank=rank, world_size=2)
    shares = torch.load(folder / f"shares{rank}.pt", weights_only=True)
    results = {}
    for text, steps in shares.items():
        loss = build_loss(text, 3)
        values = [loss(*step).item() for step in steps]
        results[text] = [loss.state_dict(), values]
    torch.save(results, folder / f"results{rank}.pt")
    dist.barrier()  # gloo aborts a process whose partner is gone
    dist.destroy_process_group()


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
    processes = [CONTEXT.Process(target=_learn, args=(tmp_path, rank)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(PATIENCE)
    assert [process.exitcode for process in processes] == [0, 0]
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
