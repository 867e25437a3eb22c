"""A network's raw outputs for a data set, on disk: a later sweep needs no network and no weights.

Each image is stored with the raw logits of every RoI and stage, the boxes decoded for them, and the
masks of the detections in the sweep. Logits and boxes keep the model's own type. They are neither
rounded nor reduced to the best: a calibration may lift any class of any RoI, every logit is part of
the softmax, and half precision would swap neighbours in the ranking. An image takes Ri * (S * (K +
1) + B) values, B = 4 for class-agnostic boxes and 4 K for others: 5 MB for 1,000 RoIs and 1,203
classes, and 19 MB more for boxes of each class. Of the latter, all but those of the best candidates
can be left out. A later sweep then ends with an error if any other candidate could have been a
detection, so its results are always exact.

A folder contains ``predictions.json``; the weights of the classifiers, from which some calibrations
are computed; and shards, safetensors files of a few batches each.

Shapes: N images, R RoIs of all images, Ri of image i, K foreground classes, S cascade stages.
"""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import torch
from detectron2.utils import comm
from torch import Tensor

from ..core import tensor_file
from ..errors import UserError
from ..lvis.detections import Detections, image_id_array
from ..lvis.ground_truth import LvisGroundTruth
from ..passes.shards import ShardFolder, ShardKind, damaged, find_shards
from .detections_folder import ImageDetections
from .union import RawOutputs, is_evaluated, output_size

logger = logging.getLogger(__name__)

CLASSIFIERS = "classifiers.safetensors"

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "softmax": lambda logits: logits.softmax(dim=-1),
    "sigmoid": torch.sigmoid,
}

SHARD_BYTES = 64 * 2**20


class StoreWriter:
    """Write one process's part of a store, during a sweep whose chunks determine where it resumes.

    Args:
        folder (PathLike): output folder, created if missing.
        ground_truth (LvisGroundTruth): masks that its evaluation drops are left out.
        max_boxes (int): with class-specific boxes, keep only those of this many best candidates of
            an image under each calibration of the sweep; 0 keeps all.
        shard_bytes (int): size from which on a shard is written.
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
        self._shards: ShardFolder | None = None
        self._activation: str | None = None
        # Bytes, not images, decide when a shard is written: an image may take 5 or 24 MB.
        self._batches = self._bytes = 0
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
        """Prepare the folder for a pass, after the batches that are already done.

        Args:
            digest (str): digest of everything that determines the outputs.
            header (Mapping): the fields of `StoredOutputs` for all images, JSON-serialisable.
            num_batches (int): batches that this process has done.
            classifiers (Mapping): "weight0" and "bias0" of the first stage and so on, if known, for
                calibrations computed from weights.

        Raises:
            ValueError: the outputs of these batches are missing.
        """
        self._shards = ShardFolder(
            self.folder, OUTPUTS, digest, resume=num_batches > 0, end=num_batches, header=header
        )
        if self._shards.num_batches != num_batches:
            raise UserError(
                f"The sweep can't resume: {num_batches} batches are done, but {self.folder} has "
                f"the outputs of {self._shards.num_batches}. Start again without --resume."
            )
        if comm.is_main_process():
            # Clones, because weights that share memory (tied classifiers) can't be saved.
            tensors = {k: v.detach().cpu().clone() for k, v in (classifiers or {}).items()}
            write_tensors(self.folder / CLASSIFIERS, tensors)

    def add(
        self,
        inputs: Sequence[Mapping[str, Any]],
        raw: RawOutputs,
        parts: Sequence[ImageDetections],
        best: Sequence[Tensor] | None = None,
    ) -> None:
        """Add one batch of N images.

        Args:
            inputs (Sequence[Mapping]): inputs of the model.
            raw (RawOutputs): outputs for all images.
            parts (Sequence[ImageDetections]): detections in each image.
            best (Sequence[Tensor]): N tensors (Ri, K) bool, the boxes to keep; None for all.

        Raises:
            ValueError: scores that are not a softmax or sigmoid of the logits.
        """
        # Before anything is kept: a store that can't be read later should fail with its first
        # image, not after hours.
        self._check_activation(raw)
        counts = [len(boxes) for boxes in raw.boxes]
        logits = zip(*(stage.split(counts) for stage in raw.logits), strict=True)
        rows = zip(inputs, raw.image_sizes, raw.boxes, logits, best or counts, strict=True)
        for image, image_size, boxes, stages, chosen in rows:
            tensors = {f"logits{index}": each for index, each in enumerate(stages)}
            number = len(boxes)
            # Class-agnostic boxes are four numbers for each RoI and not worth leaving out.
            if best is not None and boxes.shape[1] > 4:
                tensors["box_index"] = chosen.flatten().nonzero()[:, 0].int()
                boxes = boxes.reshape(-1, 4)[tensors["box_index"]]
            tensors = {name: each.cpu() for name, each in {**tensors, "boxes": boxes}.items()}
            # Both sizes: boxes are in the coordinates of the model's input and are scaled to the
            # image at the end, as in the model.
            sizes = (*image_size, *output_size(image, image_size))
            tensors["image"] = torch.tensor([(number, len(boxes), *sizes)])
            self._images.append(tensors)
            self._image_ids.append(image["image_id"])
            self._bytes += sum(each.nbytes for each in tensors.values())
        for part in parts:
            union = part.union
            if union.masks is not None:
                # The other masks were not computed and are empty; stored, they would pass for known
                # ones.
                kept = is_evaluated(self._ground_truth, union.image_id, union.category)
                self._found.append(union.take(kept))
        self._batches += 1
        if self._bytes > self._shard_bytes:
            self.flush()

    def flush(self) -> None:
        """Write everything added since the last shard."""
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
        save = functools.partial(write_tensors, tensors=tensors, activation=self._activation)
        self._shards.write(self._batches, save)
        self._batches = self._bytes = 0
        self._images, self._image_ids, self._found = [], [], []

    def finish(self) -> None:
        """Write the rest, and mark the store as complete once all processes have finished."""
        self.flush()
        self._shards.finish()
        if comm.is_main_process():
            _, shards, _ = find_shards(self.folder, OUTPUTS)
            megabytes = sum(path.stat().st_size for path in shards) / 1e6
            logger.info("The outputs in %s take %.0f MB", self.folder, megabytes)

    def _check_activation(self, raw: RawOutputs) -> None:
        """Find the function from logits to scores, which a later sweep needs."""
        pairs = [
            (torch.cat(list(scorer(logits))), logits)
            for scorer, logits in zip(raw.scorers, raw.logits, strict=True)
        ]
        for name in [self._activation] if self._activation else ACTIVATIONS:
            expected = ((scores, ACTIVATIONS[name](logits)) for scores, logits in pairs)
            # Bit for bit: a later sweep promises the detections of the model, and scores that
            # differ in the last bit may swap places.
            if all(torch.allclose(*each, rtol=0, atol=0, equal_nan=True) for each in expected):
                self._activation = name
                return
        raise UserError(
            "This model's scores are not the softmax or sigmoid of its logits: its predict_probs "
            "does more. Its outputs can't be used without the model; sweep with it instead."
        )


def ids_to_tensor(image_ids: np.ndarray) -> Tensor:
    """(N,) int64; or (N, length) int32 code points of (N,) strings, which no tensor can hold."""
    if image_ids.dtype.kind == "U":
        # numpy's strings are arrays of four-byte code points, so the bytes can be viewed as int32
        # without a loop.
        length = image_ids.dtype.itemsize // np.dtype(np.int32).itemsize
        image_ids = np.ascontiguousarray(image_ids).view(np.int32).reshape(-1, length)
    return torch.from_numpy(image_ids.copy())


def ids_from_tensor(tensor: Tensor) -> np.ndarray:
    """Invert `ids_to_tensor`."""
    array = tensor.contiguous().numpy()
    return array.view(f"U{array.shape[1]}")[:, 0] if array.ndim == 2 else array


def write_tensors(path: Path, tensors: Mapping[str, Tensor], activation: str | None = "") -> None:
    """Write one file of a store."""
    metadata = {"format": OUTPUTS.format, "version": str(OUTPUTS.version)}
    metadata["activation"] = activation or ""
    tensor_file.write_tensors(path, tensors, metadata)


def read_tensors(path: Path, names: Sequence[str] | None = None) -> dict[str, Any]:
    """Read some or all tensors of a file of a store, and its activation.

    Raises:
        ValueError: the file is missing, truncated, changed, or from another program.
    """
    try:
        tensors, metadata = tensor_file.read_tensors(path, names)
    except (safetensors.SafetensorError, OSError) as error:
        raise damaged(path, OUTPUTS.what, error) from None
    if metadata.get("format") != OUTPUTS.format:
        raise UserError(f"'{path}' is not a file of outputs of logn_d2.")
    return {**tensors, "activation": metadata.get("activation")}


OUTPUTS = ShardKind(
    "store of outputs",
    ".safetensors",
    functools.partial(read_tensors, names=("image_id",)),
    manifest="predictions.json",
    format="logn_d2 predictions",
    command="logn sweep --config-file CONFIG --weights WEIGHTS --output DIR --save-outputs",
    others=(CLASSIFIERS,),
)
