"""One process of a statistics pass, started by the tests.

    python collect_process.py FOLDER OUTPUT RANK WORLD_SIZE KILL_AFTER [KEY VALUE ...]

With KILL_AFTER > 0 it kills itself, as the kernel would, once it has seen so many images.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import torch
import torch.distributed as dist

from logn_d2.collection import LogitStatisticsCollector, collect_from_config
from tests.small_detectors import CASCADE, image_records, register, small_config, small_model


def main(
    folder: str, output: str, rank: int, world_size: int, kill_after: int, opts: list[str]
) -> None:
    torch.set_num_threads(1)
    process = LogitStatisticsCollector.process

    def process_and_die(self: LogitStatisticsCollector, *args: object) -> None:
        process(self, *args)
        if self.num_images == kill_after:
            os.kill(os.getpid(), signal.SIGKILL)

    LogitStatisticsCollector.process = process_and_die
    register(image_records(Path(folder)))
    cfg = small_config(CASCADE, MODEL__LOGN__COLLECT__CHECKPOINT_PERIOD=2)
    cfg.merge_from_list(opts)
    if world_size > 1:
        rendezvous = f"file://{folder}/rendezvous"
        dist.init_process_group("gloo", rendezvous, rank=rank, world_size=world_size)
    statistics = collect_from_config(cfg, small_model(cfg), output)
    # Every process has the result of all, not only the one that writes it.
    statistics.save(f"{output}.rank{rank}")
    if world_size > 1:
        dist.barrier()  # gloo aborts a process whose partner is gone
        dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:3], *map(int, sys.argv[3:6]), sys.argv[6:])
