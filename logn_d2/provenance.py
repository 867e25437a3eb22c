"""Provenance of results as plain data: machine, versions, commit."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from pathlib import Path
from typing import Any

import detectron2
import numpy as np
import torch
import torchvision

import logn_d2


def provenance(dataset: str, **found: Any) -> dict[str, Any]:
    """The origin of results on a data set, for a result file.

    Args:
        dataset (str): name of the data set.
        **found: what else is known, such as ``weights``.
    """
    return {
        "data set": dataset,
        **found,
        "machine": machine(),
        "versions": versions(),
        "commit": commit(),
    }


def machine() -> dict[str, str | int | None]:
    """Processor, cores, torch threads and GPU."""
    # On Linux the standard library knows only the architecture, not the model.
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        model = re.search(r"model name\s*:\s*(.+)", info.read_text())
        cpu = model[1] if model else cpu
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
    }


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that affect results."""
    modules = (logn_d2, detectron2, torch, torchvision, np)
    return {"python": platform.python_version()} | {m.__name__: m.__version__ for m in modules}


def commit() -> str | None:
    """The commit of the checkout that `logn_d2` is imported from.

    Returns:
        str: its hash, with "-dirty" if tracked files differ from it; None without a checkout or
        git.
    """
    root = Path(logn_d2.__file__).parents[1]
    if not (root / ".git").exists():  # otherwise git would find a repository further up
        return None
    # --exclude, or the name of a tag would stand in place of the hash.
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        found = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return found.stdout.strip()
