#!/usr/bin/env python
"""Damage statistics files in many ways, and report the outcome of reading them.

The content must equal the written one, or a StatisticsError must name the file. Any other outcome
is printed with its seed, and the exit status is 1.

Example:
    python benchmarks/fuzz_statistics.py --count 2000 --seed 0
"""

from __future__ import annotations

import argparse
import collections
import json
import random
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import safetensors
import safetensors.torch
import torch

from logn_d2.core import (
    LogitMoments,
    LogitStatistics,
    PosteriorMoments,
    StageStatistics,
    StatisticsError,
)

VALUES = (None, True, -1, 0, 3, 1e300, 10**30, "", "x", [], ["x"], {}, {"x": 1}, float("nan"))


def example() -> LogitStatistics:
    """Two stages of four classes, with every possible field of a file."""
    stages = []
    for seed in range(2):
        moments, posteriors = LogitMoments(num_columns=5), PosteriorMoments(num_columns=5)
        logits = torch.randn(40, 5, generator=torch.Generator().manual_seed(seed))
        moments.update(logits)
        posteriors.update(logits, logits.softmax(dim=1), torch.arange(40) % 5)
        fingerprint = torch.rand(5).double()
        stages.append(StageStatistics.from_moments(moments, fingerprint, posteriors))
    return LogitStatistics(tuple(stages), ("a", "b", "c", "d"), num_images=9, num_rois=80)


def flip_bits(content: bytes, draw: random.Random) -> bytes:
    damaged = bytearray(content)
    for _ in range(draw.randint(1, 8)):
        damaged[draw.randrange(len(damaged))] ^= 1 << draw.randrange(8)
    return bytes(damaged)


def cut(content: bytes, draw: random.Random) -> bytes:
    first = draw.randrange(len(content))
    return content[:first] + content[first + draw.randint(1, 200) :] * draw.randint(0, 1)


def insert(content: bytes, draw: random.Random) -> bytes:
    place = draw.randrange(len(content))
    return content[:place] + draw.randbytes(draw.randint(1, 50)) + content[place:]


def rewrite(content: bytes, draw: random.Random) -> bytes:
    """Another value, dtype or shape of a field or tensor, in an intact safetensors file."""
    with tempfile.NamedTemporaryFile() as file:
        Path(file.name).write_bytes(content)
        with safetensors.safe_open(file.name, framework="pt") as opened:
            metadata = dict(opened.metadata())
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}
    if draw.random() < 0.5:  # as files of earlier releases
        del metadata["sha256"]
    if draw.random() < 0.5:
        name = draw.choice(sorted(metadata))
        if draw.random() < 0.2:
            del metadata[name]
        else:
            metadata[name] = json.dumps(draw.choice(VALUES))
    else:
        name = draw.choice(sorted(tensors))
        change: list[Callable[[torch.Tensor], torch.Tensor | None]] = [
            lambda t: None,
            lambda t: t[:-1].clone(),
            lambda t: t.float(),
            lambda t: t.reshape(1, *t.shape),
            lambda t: torch.full_like(t.double(), float("nan")),
            lambda t: -t - 1,
            lambda t: t[:0].clone(),
        ]
        found = draw.choice(change)(tensors[name])
        if found is None:
            del tensors[name]
        else:
            tensors[name] = found.contiguous()
    return safetensors.torch.save(tensors, metadata)


MUTATIONS = (flip_bits, cut, insert, rewrite)


def equal(found: LogitStatistics, expected: LogitStatistics) -> bool:
    """Whether everything that calibrations use is equal."""
    if found.class_names != expected.class_names or len(found.stages) != len(expected.stages):
        return False
    return all(
        torch.equal(getattr(a, name), getattr(b, name))
        for a, b in zip(found.stages, expected.stages, strict=True)
        for name in ("mean", "var", "count")
    )


def outcome(content: bytes, expected: LogitStatistics, seed: int, folder: Path) -> str:
    """Outcome of reading a damaged file: "same", "refused", or the mistake."""
    draw = random.Random(seed)
    path = folder / "damaged.safetensors"
    path.write_bytes(draw.choice(MUTATIONS)(content, draw))
    try:
        found = LogitStatistics.load(path)
        found.check(num_classes=4, num_stages=2)
        if any(stage.moments is not None for stage in found.stages):
            found.sampling_error()
    except StatisticsError as error:
        return "refused" if str(error) else "refused without a message"
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    if equal(found, expected):
        return "same"
    # Without a checksum, a changed number can't be recognised.
    with safetensors.safe_open(path, framework="pt") as file:
        return "other numbers" if "sha256" in file.metadata() else "other numbers, no checksum"


def main() -> int:
    """Print the outcomes; the exit status is 1 if one is neither the same nor refused."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    expected, found = example(), collections.Counter()
    begun = time.perf_counter()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        expected.save(folder / "whole.safetensors")
        content = (folder / "whole.safetensors").read_bytes()
        for seed in range(args.seed, args.seed + args.count):
            result = outcome(content, expected, seed, folder)
            found[result] += 1
            if result not in ("same", "refused", "other numbers, no checksum"):
                print(f"seed {seed}: {result}")
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"{dict(found)}; {time.perf_counter() - begun:.0f} s, at most {memory:.2f} GiB")
    return int(bool(set(found) - {"same", "refused", "other numbers, no checksum"}))


if __name__ == "__main__":
    sys.exit(main())
