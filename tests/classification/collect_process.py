"""One process of a statistics pass over images, started by `test_processes`.

python collect_process.py FOLDER RANK WORLD_SIZE
"""

from __future__ import annotations

import sys

import torch
import torch.distributed as dist

from logn_d2.classification import register_images
from logn_d2.collection import collect_from_config
from tests.classification.small import COUNTS, small_config, small_model, small_set


def main(folder: str, rank: int, world_size: int) -> None:
    torch.set_num_threads(1)
    register_images("processes_train", lambda: small_set(COUNTS, 0))
    cfg = small_config(
        DATASETS__TRAIN=("processes_train",),
        DATALOADER__NUM_WORKERS=0,
        MODEL__LOGN__COLLECT__POPULATION="images",
        # One image at a time: a batch of another size rounds float32 logits otherwise.
        MODEL__LOGN__IMAGE__TEST_BATCH=1,
    )
    if world_size > 1:
        rendezvous = f"file://{folder}/rendezvous"
        dist.init_process_group("gloo", rendezvous, rank=rank, world_size=world_size)
    output = f"{folder}/{world_size}.safetensors"
    collect_from_config(cfg, small_model(), output).save(f"{output}.rank{rank}")
    if world_size > 1:
        dist.barrier()  # gloo aborts a process whose partner is gone
        dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
