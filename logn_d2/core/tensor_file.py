"""safetensors files, written whole or not at all: a format, version, checksum and JSON fields."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from ..errors import UserError
from ..files import atomic_write

_CHECKSUM = "sha256"


def write_tensors(
    path: str | os.PathLike[str], tensors: Mapping[str, Tensor], metadata: Mapping[str, str]
) -> None:
    """Write tensors and texts; on failure an existing file stays intact.

    Raises:
        OSError: the folder can't be written or the disk is full.
    """
    # safetensors refuses tensors that are not contiguous.
    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
    with atomic_write(path) as temporary:
        # save_file would make a file that only its owner can read.
        temporary.write_bytes(safetensors.torch.save(tensors, dict(metadata)))


def read_tensors(
    path: str | os.PathLike[str], names: Iterable[str] | None = None
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read the tensors of these names, or all, and the texts.

    Raises:
        SafetensorError: the file is truncated or of another format.
    """
    with safetensors.safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in names or file.keys()}
        return tensors, file.metadata() or {}


@dataclass(frozen=True)
class FileKind:
    """A kind of file: the content, and the error for files that can't be used.

    Attributes:
        format (str): marks the kind in the file, such as "logn_d2 statistics".
        what (str): such a file in a sentence.
        version (int): the version that is written, and the newest that can be read.
        advice (str): a sentence that says where to get such a file.
        error (type): raised for files that can't be used.
    """

    format: str
    what: str
    version: int
    advice: str
    error: type[UserError] = UserError

    def write(
        self, path: str | os.PathLike[str], tensors: Mapping[str, Tensor], fields: Mapping[str, Any]
    ) -> None:
        """Write tensors and fields.

        Raises:
            OSError: the folder can't be written or the disk is full.
        """
        fields = {**fields, "format": self.format, "version": self.version}
        # safetensors allows only strings as metadata; JSON tells numbers from text.
        metadata = {name: json.dumps(value) for name, value in fields.items()}
        metadata[_CHECKSUM] = json.dumps(_checksum(tensors, metadata))
        write_tensors(path, tensors, metadata)

    def read(self, path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Read tensors and fields of a file of a known version.

        Raises:
            ValueError: the file is truncated, damaged, has another format, or is from a newer
                version.
        """
        try:
            tensors, metadata = read_tensors(path)
        except safetensors.SafetensorError as error:
            raise self.error(
                f"'{path}' is not a complete {self.what} ({error}). It was truncated, or has "
                f"another format. {self.advice}"
            ) from None
        if metadata.get("format") != json.dumps(self.format):
            raise self.error(
                f"'{path}' is not a {self.what} of logn_d2 (format: {metadata.get('format')!r}). "
                f"{self.advice}"
            )
        try:
            fields = {name: json.loads(value) for name, value in metadata.items()}
        except (json.JSONDecodeError, RecursionError) as error:
            raise self.error(f"The metadata of '{path}' are damaged ({error}).") from None
        version = fields.get("version", 0)
        if not isinstance(version, int):
            raise self.error(f"'{path}' has the format version {version!r}, expected a number.")
        if version > self.version:
            raise self.error(
                f"'{path}' has format version {version}, this logn_d2 reads up to {self.version}. "
                "Update logn_d2."
            )
        written = fields.pop(_CHECKSUM, None)  # older files have none
        # The checksum can't contain itself.
        metadata.pop(_CHECKSUM, None)
        if written is not None and written != _checksum(tensors, metadata):
            raise self.error(
                f"'{path}' was changed after it was written: its checksum differs. Copy it again. "
                f"{self.advice}"
            )
        return tensors, fields


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
