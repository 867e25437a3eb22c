"""Reading and writing statistics files: safetensors with format, version and checksum."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from ..files import atomic_write
from .stage import StatisticsError

__all__ = ["VERSION", "read_file", "shortened", "write_file"]

FORMAT = "logn_d2 statistics"
VERSION = 3


def write_file(
    path: str | os.PathLike[str], tensors: Mapping[str, Tensor], fields: Mapping[str, Any]
) -> None:
    """Write tensors and fields; on failure an existing file stays intact.

    Raises:
        OSError: the folder can't be written or the disk is full.
    """
    fields = {**fields, "format": FORMAT, "version": VERSION}
    metadata = {name: json.dumps(value) for name, value in fields.items()}
    metadata[_CHECKSUM] = json.dumps(_checksum(tensors, metadata))
    with atomic_write(path) as temporary:
        temporary.write_bytes(safetensors.torch.save(dict(tensors), metadata))


def read_file(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read tensors and fields of a statistics file of a known version.

    Raises:
        StatisticsError: the file is truncated, damaged, has another format, or is from a newer
            version.
    """
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except safetensors.SafetensorError as error:
        raise StatisticsError(
            f"'{path}' is not a complete statistics file ({error}). It was truncated, or has "
            "another format; collect the statistics again or give the path that `logn collect` "
            "wrote."
        ) from None
    if metadata.get("format") != json.dumps(FORMAT):
        raise StatisticsError(
            f"'{path}' is a safetensors file but not a statistics file of logn_d2 (format: "
            f"{metadata.get('format')!r}). Give the path that `logn collect` wrote."
        )
    try:
        decoded = {name: json.loads(value) for name, value in metadata.items()}
    except (json.JSONDecodeError, RecursionError) as error:
        raise StatisticsError(f"The metadata of '{path}' are damaged ({error}).") from None
    version = decoded.get("version", 0)
    if not isinstance(version, int):
        raise StatisticsError(f"'{path}' has the format version {version!r}, expected a number.")
    if version > VERSION:
        raise StatisticsError(
            f"'{path}' has format version {decoded['version']}, this logn_d2 reads up to "
            f"{VERSION}. Update logn_d2."
        )
    # A field of early releases: statistics of transformed logits do not fit raw ones.
    if decoded.get("logits", "raw") != "raw":
        raise StatisticsError(
            f"'{path}' contains statistics of logits that are not raw "
            f"({shortened(decoded['logits'])}). Collect them again from this model's own logits."
        )
    written = decoded.pop(_CHECKSUM, None)  # older files have none
    # The checksum can't contain itself.
    metadata.pop(_CHECKSUM, None)
    if written is not None and written != _checksum(tensors, metadata):
        raise StatisticsError(
            f"'{path}' was changed after it was written: its checksum differs. Copy it again, or "
            "collect "
            "the statistics again."
        )
    return tensors, decoded


_CHECKSUM = "sha256"


def _checksum(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    """SHA-256 of all tensors and metadata; without it, a flipped bit in a mean goes unnoticed."""
    digest = hashlib.sha256()
    for name, value in sorted(metadata.items()):
        digest.update(f"{name}={value};".encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name}:{tensor.dtype}{tuple(tensor.shape)};".encode())
        # As bytes: numpy knows no bfloat16, and NaN must equal itself.
        digest.update(tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def shortened(value: Any) -> str:
    """A value for an error message, at most 80 characters."""
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
