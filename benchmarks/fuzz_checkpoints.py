#!/usr/bin/env python
"""Damage checkpoints in many ways, and report the outcome of loading them.

The loaded weights must equal the saved ones, or a ValueError must name the file. Any other outcome
is printed with its seed, and the exit status is 1.

Example:
    python benchmarks/fuzz_checkpoints.py --count 500 --seed 0
"""

from __future__ import annotations

import argparse
import collections
import io
import random
import resource
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import nn

from logn_d2.engine.checkpoint import load_weights

if __package__:
    from .fuzz_statistics import cut, flip_bits, insert
else:
    from fuzz_statistics import cut, flip_bits, insert

VALUES: tuple[Any, ...] = (None, 3, "x", [], {}, torch.zeros(0), torch.zeros(2, 2, 2))


def example() -> nn.Module:
    """A little of everything that a detector's state holds."""
    torch.manual_seed(0)
    return nn.ModuleDict(
        {
            "backbone": nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)),
            "cls_score": nn.Linear(4, 5),
            "bbox_pred": nn.Linear(4, 16),
        }
    )


def save(state: Any) -> bytes:
    file = io.BytesIO()
    torch.save(state, file)
    return file.getvalue()


def rewrite(content: bytes, draw: random.Random) -> bytes:
    """Other names, shapes, values or nesting, in an intact file."""
    state = torch.load(io.BytesIO(content), weights_only=True)
    weights = state["model"]
    name = draw.choice(sorted(weights))
    kind = draw.randrange(8)
    if kind == 0:
        del weights[name]
    elif kind == 1:
        weights[name] = draw.choice(VALUES)
    elif kind == 2:
        weights[name] = torch.full_like(weights[name].float(), draw.choice([float("nan"), 1e999]))
    elif kind == 3:
        state["model"] = {f"student.{key}": value for key, value in weights.items()}
    elif kind == 4:
        state["model"] = {key: v for key, v in weights.items() if key.startswith("backbone")}
    elif kind == 5:
        weights[name] = torch.cat([weights[name].reshape(-1), torch.zeros(1)])
    elif kind == 6:
        return save(draw.choice([weights, [weights], {"state_dict": weights}, {}, 3, None]))
    else:
        state["model"] = draw.choice(VALUES)
    return save(state)


MUTATIONS = (flip_bits, cut, insert, rewrite)


def outcome(content: bytes, seed: int, folder: Path) -> str:
    """Outcome of loading a damaged file: "same", "refused", or the mistake."""
    draw = random.Random(seed)
    path = folder / "damaged.pth"
    path.write_bytes(draw.choice(MUTATIONS)(content, draw))
    expected, model = example().state_dict(), example()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    try:
        load_weights(model, str(path), str(folder), resume=False)
    except ValueError as error:
        return "refused" if "damaged.pth" in str(error) else f"refused without its name: {error}"
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    found = model.state_dict()
    # batch norm's counter of batches, which inference does not use
    names = [name for name in expected if "num_batches" not in name]
    return "same" if all(torch.equal(found[n], expected[n]) for n in names) else "other weights"


def main() -> int:
    """Print the outcomes; the exit status is 1 if one is neither the same nor refused."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    found: collections.Counter[str] = collections.Counter()
    begun, content = time.perf_counter(), save({"model": example().state_dict()})
    with tempfile.TemporaryDirectory() as name:
        for seed in range(args.seed, args.seed + args.count):
            result = outcome(content, seed, Path(name))
            found[result] += 1
            if result not in ("same", "refused"):
                print(f"seed {seed}: {result}")
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"{dict(found)}; {time.perf_counter() - begun:.0f} s, at most {memory:.2f} GiB")
    return int(bool(set(found) - {"same", "refused"}))


if __name__ == "__main__":
    sys.exit(main())
