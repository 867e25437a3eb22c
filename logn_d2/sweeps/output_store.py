"""What a network says of a data set, on disk: a later sweep needs no network and no weights.

Stored for each image: the raw logits of every RoI and stage, the boxes that are decoded for them,
and the masks of the detections that the sweep found. Logits and boxes keep the type that the model
gave them in. They are neither rounded nor cut to the best ones: a calibration may lift any class of
any RoI, every logit is part of the softmax, and half precision would swap neighbours in the
ranking. An image takes Ri * (S * (K + 1) + B) values, B = 4 for class-agnostic boxes and 4 K for
others: 5 MB for 1,000 RoIs and 1,203 classes, and 19 MB more for boxes of each class. Those can be
left out but for the best candidates. A later sweep then notices where another one could have been a
detection, and ends with an error: what it finds is exact in any case.

A folder holds ``predictions.json``, the weights of the classifiers, which some calibrations are
made from, and shards, safetensors files of some batches each.

Shapes: N images, R RoIs of all images, Ri of image i, K foreground classes, S cascade stages.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from detectron2.utils import comm
from torch import Tensor

from ..errors import UserError
from ..files import atomic_write
from ..lvis.detections import Detections, image_id_array
from ..lvis.ground_truth import LvisGroundTruth
from .detections_folder import ImagePredictions
from .union import RawPredictions, is_looked_at, output_size

__all__ = [
    "ACTIVATIONS",
    "CLASSIFIERS",
    "FORMAT",
    "MANIFEST",
    "VERSION",
    "StoreWriter",
    "ids_from_tensor",
    "ids_to_tensor",
    "read_manifest",
]

logger = logging.getLogger(__name__)

MANIFEST = "predictions.json"
CLASSIFIERS = "classifiers.safetensors"
FORMAT = "logn_d2 predictions"
VERSION = 1

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "softmax": lambda logits: logits.softmax(dim=-1),
    "sigmoid": torch.sigmoid,
}

SHARD_BYTES = 64 * 2**20


class StoreWriter:
    """Writes one process's part of a store, beside a sweep from whose chunks it resumes.

    Args:
        folder (PathLike): where to; it is made.
        ground_truth (LvisGroundTruth): masks that its evaluation does not look at are left out.
        max_boxes (int): of boxes of each class, keep only those of so many best candidates of an
            image under each calibration of the sweep; 0 keeps all.
        shard_bytes (int): a shard is written when it holds more.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        ground_truth: LvisGroundTruth | None = None,
        max_boxes: int = 0,
        shard_bytes: int = SHARD_BYTES,
    ) -> None:
        self.folder = Path(folder)
        self._ground_truth = ground_truth
        self.max_boxes = max_boxes
        self._shard_bytes = shard_bytes
        self._share = f"{comm.get_rank()}of{comm.get_world_size()}"
        self._digest, self._header = "", {}
        self._activation: str | None = None
        self._batches = self._first = self._bytes = 0
        self._images: list[dict[str, Tensor]] = []
        self._image_ids: list[int] | list[str] = []
        self._found: list[Detections] = []

    def open(
        self,
        digest: str,
        header: Mapping[str, Any],
        num_batches: int,
        classifiers: Mapping[str, Tensor] | None = None,
    ) -> None:
        """Makes the folder ready to go on after some batches of a pass.

        Args:
            digest (str): of everything that decides the predictions.
            header (Mapping): what `StoredPredictions` says of all images, as JSON can write it.
            num_batches (int): that this process has done.
            classifiers (Mapping): "weight0" and "bias0" of the first stage and so on, as far as
                they are known, for calibrations that are made from weights.

        Raises:
            ValueError: their predictions are not there.
        """
        self._digest, self._header = digest, {**header, "digest": digest}
        self._batches = self._first = num_batches
        if comm.is_main_process():
            self._remove_others()
            self._write_manifest()
            tensors = {k: v.detach().cpu().clone() for k, v in (classifiers or {}).items()}
            write_tensors(self.folder / CLASSIFIERS, tensors)
        comm.synchronize()
        done = 0
        for first, end, path in sorted(self._own_shards()):
            if first != done or end > num_batches:
                path.unlink()
            else:
                done = end
        if done != num_batches:
            raise UserError(
                f"The sweep can't go on: {num_batches} batches are done, but {self.folder} has the "
                f"predictions of {done}. Start it anew, without --resume."
            )

    def add(
        self,
        inputs: Sequence[Mapping[str, Any]],
        raw: RawPredictions,
        parts: Sequence[ImagePredictions],
        best: Sequence[Tensor] | None = None,
    ) -> None:
        """Adds one batch of N images.

        Args:
            inputs (Sequence[Mapping]): as the model takes them.
            raw (RawPredictions): of all images.
            parts (Sequence[ImagePredictions]): of each image.
            best (Sequence[Tensor]): N tensors (Ri, K) bool, the boxes to keep; None for all.

        Raises:
            ValueError: scores that are not a softmax or sigmoid of the logits.
        """
        self._check_activation(raw)
        counts = [len(boxes) for boxes in raw.boxes]
        logits = zip(*(stage.split(counts) for stage in raw.logits), strict=True)
        rows = zip(inputs, raw.image_sizes, raw.boxes, logits, best or counts, strict=True)
        for image, image_size, boxes, stages, chosen in rows:
            tensors = {f"logits{index}": each for index, each in enumerate(stages)}
            number = len(boxes)
            if best is not None and boxes.shape[1] > 4:
                tensors["box_index"] = chosen.flatten().nonzero()[:, 0].int()
                boxes = boxes.reshape(-1, 4)[tensors["box_index"]]
            tensors = {name: each.cpu() for name, each in {**tensors, "boxes": boxes}.items()}
            sizes = (*image_size, *output_size(image, image_size))
            tensors["image"] = torch.tensor([(number, len(boxes), *sizes)])
            self._images.append(tensors)
            self._image_ids.append(image["image_id"])
            self._bytes += sum(each.nbytes for each in tensors.values())
        for part in parts:
            union = part.union
            if union.masks is not None:
                kept = is_looked_at(self._ground_truth, union.image_id, union.category)
                self._found.append(union.take(kept))
        self._batches += 1
        if self._bytes > self._shard_bytes:
            self.flush()

    def flush(self) -> None:
        """Writes what has been added since the last shard."""
        if not self._images:
            return
        tensors = {
            name: torch.cat([each[name] for each in self._images]) for name in self._images[0]
        }
        tensors["image_id"] = ids_to_tensor(image_id_array(self._image_ids))
        found = Detections.concatenate(self._found).to_arrays() if self._found else {}
        if found:
            tensors["found_image_id"] = ids_to_tensor(found.pop("image_id"))
        tensors.update({f"found_{k}": torch.from_numpy(np.array(v)) for k, v in found.items()})
        name = f"{self._digest}-{self._share}-{self._first:07d}-{self._batches:07d}.safetensors"
        write_tensors(self.folder / name, tensors, self._activation)
        self._first, self._bytes = self._batches, 0
        self._images, self._image_ids, self._found = [], [], []

    def finish(self) -> None:
        """Writes the rest and says that the store is whole, when all processes have done so."""
        self.flush()
        comm.synchronize()
        if comm.is_main_process():
            shards = sorted(self.folder.glob(f"{self._digest}-*.safetensors"))
            megabytes = sum(path.stat().st_size for path in shards) / 1e6
            self._write_manifest([path.name for path in shards])
            logger.info("The predictions in %s take %.0f MB", self.folder, megabytes)
        comm.synchronize()

    def _check_activation(self, raw: RawPredictions) -> None:
        """Finds out what makes scores from logits, without which they are of no use."""
        pairs = [
            (torch.cat(list(scorer(logits))), logits)
            for scorer, logits in zip(raw.scorers, raw.logits, strict=True)
        ]
        for name in [self._activation] if self._activation else ACTIVATIONS:
            expected = ((scores, ACTIVATIONS[name](logits)) for scores, logits in pairs)
            if all(torch.allclose(*each, rtol=0, atol=0, equal_nan=True) for each in expected):
                self._activation = name
                return
        raise UserError(
            "This model's scores are not the softmax or sigmoid of its logits: its predict_probs "
            "does more. Its predictions can't be used without it; sweep with the model instead."
        )

    def _own_shards(self) -> list[tuple[int, int, Path]]:
        """First batch, end and path of each of this process's shards."""
        paths = self.folder.glob(f"{self._digest}-{self._share}-*.safetensors")
        return [(*map(int, path.stem.rsplit("-", 2)[1:]), path) for path in paths]

    def _remove_others(self) -> None:
        """Removes the shards of the store that was here before."""
        self.folder.mkdir(parents=True, exist_ok=True)
        found = read_manifest(self.folder).get("digest")
        if found is not None and found != self._digest:
            for path in self.folder.glob(f"{found}-*.safetensors"):
                path.unlink()

    def _write_manifest(self, shards: Sequence[str] | None = None) -> None:
        """The manifest; without shards, of a store that is not whole yet."""
        content = {"format": FORMAT, "version": VERSION, **self._header, "shards": shards}
        with atomic_write(self.folder / MANIFEST) as temporary:
            temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def keep_other_store(folder: str | os.PathLike[str], digest: str) -> None:
    """Refuses a folder that holds the whole predictions of something else.

    Raises:
        ValueError: what would be lost; on every process.
    """
    manifest = read_manifest(Path(folder))
    if manifest.get("shards") is not None and manifest.get("digest") != digest:
        raise UserError(
            f"'{folder}' holds the predictions of other weights, images or settings "
            f"in {len(manifest['shards'])} files ({manifest.get('info')}). Choose another "
            "folder, or replace them with --overwrite."
        )


def ids_to_tensor(image_ids: np.ndarray) -> Tensor:
    """(N,) int64; or (N, length) int32 code points of (N,) strings, which no tensor can hold."""
    if image_ids.dtype.kind == "U":
        length = image_ids.dtype.itemsize // np.dtype(np.int32).itemsize
        image_ids = np.ascontiguousarray(image_ids).view(np.int32).reshape(-1, length)
    return torch.from_numpy(image_ids.copy())


def ids_from_tensor(tensor: Tensor) -> np.ndarray:
    """What `ids_to_tensor` was given."""
    array = tensor.contiguous().numpy()
    return array.view(f"U{array.shape[1]}")[:, 0] if array.ndim == 2 else array


def write_tensors(path: Path, tensors: Mapping[str, Tensor], activation: str | None = "") -> None:
    """Writes one file of a store."""
    metadata = {"format": FORMAT, "version": str(VERSION), "activation": activation or ""}
    with atomic_write(path) as temporary:
        # save_file would make a file that only its owner can read.
        temporary.write_bytes(safetensors.torch.save(dict(tensors), metadata))


def read_manifest(folder: Path) -> dict[str, Any]:
    """The content of predictions.json; empty where there is none, or another program's."""
    try:
        content = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, json.JSONDecodeError, UnicodeDecodeError):
        return {}
    ours = isinstance(content, dict) and content.get("format") == FORMAT
    return content if ours else {}
