"""Statistics of images are those of one process, whoever passes over them."""

from __future__ import annotations

from pathlib import Path

import torch

from logn_d2.core import LogitStatistics

from ..processes import Command
from .small import COUNTS

SCRIPT = Path(__file__).with_name("collect_process.py")


def test_two_processes_gather_what_one_does(tmp_path: Path) -> None:
    pairs = [(0, 1), (0, 2), (1, 2)]
    running = [
        Command([SCRIPT, tmp_path, rank, size], tmp_path / f"log{size}{rank}.txt")
        for rank, size in pairs
    ]
    assert [each.wait() for each in running] == [0] * 3, [each.output[-800:] for each in running]
    files = [tmp_path / f"{size}.safetensors.rank{rank}" for rank, size in pairs]
    alone, *together = [LogitStatistics.load(path) for path in files]
    assert alone.num_images == sum(COUNTS)
    for each in together:
        assert (each.num_images, each.num_rois) == (alone.num_images, alone.num_rois)
        (mine,), (expected,) = each.stages, alone.stages
        for name in ("mean", "var"):
            found, wanted = getattr(mine, name), getattr(expected, name)
            torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)
