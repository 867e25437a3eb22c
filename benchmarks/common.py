"""Shared by the benchmarks: a clock, the spread of ratios, and the machine."""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torchvision

__all__ = ["machine", "seconds", "spread"]


def seconds(
    function: Callable,
    arguments: Sequence[Any] = (),
    device: str = "cpu",
    clock: Callable[[], float] = time.perf_counter,
) -> float:
    """One call's time; ``clock`` may be `time.process_time`, for a busy CPU."""
    if device == "cuda":
        torch.cuda.synchronize()
    start = clock()
    function(*arguments)
    if device == "cuda":
        torch.cuda.synchronize()
    return clock() - start


def spread(values: Sequence[float], digits: int = 2) -> str:
    """Median, smallest and largest of some ratios, for example "0.21x (0.20-0.23)"."""
    low, high = min(values), max(values)
    return f"{statistics.median(values):.{digits}f}x ({low:.{digits}f}-{high:.{digits}f})"


def machine(device: str = "cpu") -> str:
    """The machine, for the table's caption."""
    name = torch.cuda.get_device_name() if device == "cuda" else _processor()
    return (
        f"{name}, {torch.get_num_threads()} threads, torch {torch.__version__}, "
        f"torchvision {torchvision.__version__}"
    )


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
