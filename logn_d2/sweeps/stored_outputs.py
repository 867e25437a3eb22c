"""Sweeps over the outputs that `StoreWriter` wrote: no network, no weights.

Shapes: N images, R RoIs of all images, Ri of image i, K foreground classes, S cascade stages, U
    distinct detections in an image over all calibrations.
"""

from __future__ import annotations

import copy
import functools
import hashlib
import itertools
import json
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.utils.logger import log_every_n_seconds
from torch import Tensor

from ..core import AffineCalibration
from ..errors import UserError, check_choice
from ..lvis.detections import Detections, RleMasks
from ..lvis.ground_truth import LvisGroundTruth
from ..modeling.stages import AVERAGES
from ..passes.shards import find_shards, refuse_others
from .detections_folder import SWEEP, ImageDetections, SweepDetections, SweepWriter
from .output_store import ACTIVATIONS, CLASSIFIERS, OUTPUTS, ids_from_tensor, read_tensors
from .union import (
    Calibrations,
    RawOutputs,
    Union,
    calibrations_digest,
    check_calibrations,
    empty_masks,
    find_unions,
    is_evaluated,
    scaled,
)

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _StoredImage:
    """One image of a store.

    Attributes:
        image_id (int or str): its id.
        logits (list[Tensor]): S tensors (Ri, K + 1).
        boxes (Tensor): (Ri, 4 or K * 4); or (P, 4), the stored ones of Ri * K.
        box_index (Tensor): (P,) their positions; None if all are stored.
        image_size (tuple[int, int]): height and width of the model's input.
        output_size (tuple[int, int]): height and width of the image.
    """

    image_id: int | str
    logits: list[Tensor]
    boxes: Tensor
    box_index: Tensor | None
    image_size: tuple[int, int]
    output_size: tuple[int, int]

    def all_boxes(self) -> tuple[Tensor, Tensor | None]:
        """Boxes, (Ri, 4 or K * 4), 0 if not stored; and which ones are stored, (Ri, K) bool."""
        if self.box_index is None:
            return self.boxes, None
        rows, columns = self.logits[0].shape
        # Boxes that were not stored get a place, so that positions stay those of (RoI, class);
        # `known` keeps them from being used.
        boxes = self.boxes.new_zeros(rows * (columns - 1), 4)
        boxes[self.box_index] = self.boxes
        known = torch.zeros(len(boxes), dtype=torch.bool)
        known[self.box_index] = True
        return boxes.view(rows, -1), known.view(rows, -1)


@dataclass(frozen=True)
class _Shard:
    """Some images of a store.

    Attributes:
        images (list): the images.
        activation (str): the function from logits to scores.
        found (Detections): the detections with stored masks; None for a model without masks.
    """

    images: list[_StoredImage]
    activation: str
    found: Detections | None


class StoredOutputs:
    """A model's raw outputs on a data set.

    Attributes:
        folder (Path): their folder.
        num_classes (int): K.
        num_stages (int): S.
        has_masks (bool): whether the model has a mask head.
        selection (tuple): the model's score and overlap thresholds and number of detections.
        fingerprints (list[Tensor]): (K + 1,) of each stage's classifier, or None.
        calibrations (list[str]): calibrations whose detections have stored masks.
        info (dict): the notes given to the sweep.
    """

    def __init__(self, folder: Path, manifest: dict[str, Any], shards: Sequence[Path]) -> None:
        self.folder = folder
        self.digest: str = manifest["digest"]
        self.num_classes: int = manifest["num_classes"]
        self.num_stages: int = manifest["num_stages"]
        self.has_masks: bool = manifest["has_masks"]
        threshold, overlap, topk = manifest["selection"]
        # JSON does not tell 1 from 1.0, and the number of detections must be an integer.
        self.selection = (float(threshold), float(overlap), int(topk))
        self.fingerprints = [
            None if each is None else torch.tensor(each, dtype=torch.float64)
            for each in manifest["fingerprints"]
        ]
        self.calibrations: list[str] = manifest["calibrations"]
        self.info: dict[str, Any] = manifest["info"]
        self._shards = list(shards)

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> StoredOutputs:
        """Open a store; its shards are read when they are needed.

        Raises:
            FileNotFoundError: there is no store.
            ValueError: the store is incomplete, damaged, or of a newer format.
        """
        folder = Path(folder)
        manifest, shards, finished = find_shards(folder, OUTPUTS)
        if not finished:
            raise UserError(
                f"The outputs in '{folder}' are incomplete: their sweep was interrupted. Repeat "
                "its command with --resume to finish it."
            )
        try:
            return cls(folder, manifest, shards)
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"'{folder / OUTPUTS.manifest}' is damaged ({error!r}).") from error

    @property
    def num_images(self) -> int:
        """N."""
        return len(self.image_ids)

    @property
    def image_ids(self) -> np.ndarray:
        """(N,) int64 or strings, in the order of the pass."""
        # `OUTPUTS.read` loads the ids alone; logits stay on disk.
        ids = [ids_from_tensor(OUTPUTS.read(path)["image_id"]) for path in self._shards]
        return np.concatenate(ids) if ids else np.zeros(0, dtype=np.int64)

    def classifiers(self) -> list[Callable[[], tuple[Tensor, Tensor | None]]]:
        """For each stage, a function that returns the classifier's weight and its bias or None.

        It raises a ValueError if the model had no such layer; see `stage_calibrations`.
        """
        tensors = read_tensors(self.folder / CLASSIFIERS)

        def read(index: int) -> tuple[Tensor, Tensor | None]:
            if f"weight{index}" not in tensors:
                raise UserError(
                    "This calibration is computed from the classifier's weights, but the model of "
                    f"the outputs in '{self.folder}' has no such layer. Choose another one."
                )
            return tensors[f"weight{index}"], tensors.get(f"bias{index}")

        return [functools.partial(read, index) for index in range(self.num_stages)]

    def check(self, ground_truth: LvisGroundTruth) -> None:
        """Check that these are outputs for a data set.

        Raises:
            ValueError: other classes or other images.
        """
        if ground_truth.num_classes != self.num_classes:
            raise UserError(
                f"The outputs in '{self.folder}' are of {self.num_classes} classes, the data "
                f"set has {ground_truth.num_classes}. Name the data set that they were made for."
            )
        ids = self.image_ids
        # Both directions: outputs of a part of the data set would count the objects of all other
        # images as missed.
        foreign = np.setdiff1d(ids, ground_truth.image_ids)
        lacking = np.setdiff1d(ground_truth.image_ids, ids)
        if len(foreign) or len(lacking):
            raise UserError(
                f"The outputs in '{self.folder}' are of another data set: {len(foreign)} of "
                f"their {len(ids)} images are not in it, and {len(lacking)} of its "
                f"{ground_truth.num_images} are not in them. They were made for "
                f"{self.info.get('data set', 'an unknown one')}."
            )

    def shards(self) -> Iterator[_Shard]:
        """Yield the images, one shard at a time.

        Raises:
            ValueError: a file is damaged, or belongs to another store.
        """
        # One shard at a time is in memory.
        for path in self._shards:
            tensors = read_tensors(path)
            try:
                yield _shard(tensors, self.num_stages, self.num_classes)
            except (KeyError, RuntimeError) as error:
                raise UserError(f"'{path}' is damaged ({error}).") from error

    def raw_outputs(self) -> Iterator[tuple[_StoredImage, RawOutputs]]:
        """Yield each image with the raw outputs of the model's box predictors, on the CPU.

        Raises:
            ValueError: a file is damaged, or boxes were left out when it was stored.
        """
        for shard in self.shards():
            for image in shard.images:
                if image.box_index is not None:
                    raise UserError(
                        f"'{self.folder}' lacks boxes that were not among the best. Store the "
                        "outputs without --max-boxes."
                    )
                yield image, _raw(image, shard.activation, "cpu")


def sweep_stored(
    stored: StoredOutputs,
    calibrations: Calibrations,
    *,
    average: str = "probs",
    ground_truth: LvisGroundTruth | None = None,
    output_dir: str | os.PathLike[str] | None = None,
    overwrite: bool = True,
    device: str | torch.device = "cpu",
) -> SweepDetections:
    """Sweep over stored outputs; boxes, classes and scores equal those of `sweep` bit for bit.

    That holds on the kind of device on which the outputs were made. A mask is known if its
    detection occurred under a calibration of the storing sweep; `SweepDetections.missing_masks`
    counts the others, and `sweep_results` evaluates masks only if none is missing.

    Args:
        stored (StoredOutputs): outputs for a data set.
        calibrations (Mapping): name -> one calibration for each cascade stage.
        average (str): the quantity that a cascade averages over stages, "probs" or "logits".
        ground_truth (LvisGroundTruth): annotations of the later evaluation; masks that it drops do
            not count as missing.
        output_dir (PathLike): folder for the detections; None keeps them in memory.
        overwrite (bool): replace another finished sweep in the folder; False refuses.
        device (str or torch.device): device of the computation.

    Returns:
        SweepDetections: of all images.

    Raises:
        ValueError: calibrations or ground truth do not fit, a file is damaged, or a box is needed
            that was not stored (``max_boxes`` of `sweep`).

    Example:
        >>> stored = StoredOutputs.load("output/outputs")  # doctest: +SKIP
        >>> swept = sweep_stored(stored, calibrations)  # doctest: +SKIP
    """
    check_choice("average", average, AVERAGES)
    check_calibrations(calibrations, [stored.num_classes] * stored.num_stages)
    if ground_truth is not None:
        stored.check(ground_truth)
    # Copies, because to() moves the module itself.
    on_device = [[copy.deepcopy(each).to(device) for each in s] for s in calibrations.values()]
    # The digest of the store stands for weights, images and settings of its pass.
    decisive = [stored.digest, list(calibrations), calibrations_digest(calibrations), average]
    digest = hashlib.sha256(json.dumps(decisive).encode()).hexdigest()[:12]
    if not overwrite:
        refuse_others(output_dir, SWEEP, digest)
    writer, done, total = SweepWriter(list(calibrations), output_dir, digest), 0, stored.num_images
    for shard in stored.shards():
        for calibration in itertools.chain(*on_device):
            # Only the shards know it. The check is of a flag, so that repeating it costs nothing.
            calibration.check_activation(shard.activation == "sigmoid")
        masks = _KnownMasks(shard.found) if shard.found is not None else None
        for image in shard.images:
            union = _union(image, shard.activation, on_device, average, stored.selection)
            writer.add(_detections(image, union, masks, ground_truth))
        done += len(shard.images)
        log_every_n_seconds(logging.INFO, f"Swept {done} of {total} images", n=5)
    return writer.finish()


@torch.no_grad()
def _union(
    image: _StoredImage,
    activation: str,
    calibrations: Sequence[Sequence[AffineCalibration]],
    average: str,
    selection: tuple[float, float, int],
) -> Union:
    raw = _raw(image, activation, calibrations[0][0].column_scale.device)
    # Image by image, as the store has them: rankings and suppression of images are independent.
    (union,) = find_unions(raw, calibrations, average, selection)
    return union


def _raw(image: _StoredImage, activation: str, device: torch.device | str) -> RawOutputs:
    """The raw outputs of one image."""
    boxes, known = image.all_boxes()
    return RawOutputs(
        logits=[each.to(device) for each in image.logits],
        # A list of one, because scorers return the probabilities of each image.
        scorers=[lambda logits: [ACTIVATIONS[activation](logits)]] * len(image.logits),
        boxes=[boxes.to(device)],
        image_sizes=[image.image_size],
        known=None if known is None else [known.to(device)],
    )


def _detections(
    image: _StoredImage,
    union: Union,
    masks: _KnownMasks | None,
    ground_truth: LvisGroundTruth | None,
) -> ImageDetections:
    """Detections scaled to the image, with the known masks."""
    everything = torch.arange(len(union), device=union.classes.device)
    instances = union.instances(image.image_size, everything)
    part = scaled(instances, image.image_id, image.output_size)
    if masks is None:
        return union.detections(image.image_id, [part])
    detections, known = masks.given_to(part.detections, image.output_size)
    evaluated = is_evaluated(ground_truth, detections.image_id, detections.category)
    found = union.detections(image.image_id, [replace(part, detections=detections)])
    # A mask that the evaluation drops is not missed.
    return replace(found, missing=evaluated & ~known)


class _KnownMasks:
    """Masks by image, class and box."""

    def __init__(self, found: Detections) -> None:
        self._masks = found.masks
        # Masks are found by the bits of the box, since the union of this sweep has another order
        # than that of the storing one.
        self._position = {key: index for index, key in enumerate(_keys(found))}

    def given_to(
        self, detections: Detections, size: tuple[int, int]
    ) -> tuple[Detections, np.ndarray]:
        """The detections of one image with masks, empty if unknown; and which ones are known."""
        position = np.array([self._position.get(key, -1) for key in _keys(detections)], dtype=int)
        known = position >= 0
        nothing = empty_masks(1, size)
        if self._masks is None or not known.any():
            masks = nothing.take(np.zeros(len(position), dtype=int))
            return replace(detections, masks=masks), known
        # The empty mask comes last, and every detection without a known mask points at it.
        some = RleMasks.concatenate([self._masks.take(position[known]), nothing])
        index = np.where(known, np.cumsum(known) - 1, len(some) - 1)
        return replace(detections, masks=some.take(index)), known


def _keys(detections: Detections) -> list[tuple[int, int, bytes]]:
    """Equal for detections of one image, class and box, bit for bit."""
    # The models' boxes are float32 or narrower, so nothing is lost; equal boxes have equal bytes.
    boxes = detections.box.astype(np.float32)
    columns = (detections.image_id.tolist(), detections.category.tolist(), boxes)
    return [(i, c, box.tobytes()) for i, c, box in zip(*columns, strict=True)]


def _shard(tensors: dict[str, Any], num_stages: int, num_classes: int) -> _Shard:
    ids, rows = ids_from_tensor(tensors["image_id"]).tolist(), tensors["image"].tolist()
    counts = [row[0] for row in rows]
    stages = [tensors[f"logits{index}"].split(counts) for index in range(num_stages)]
    box_counts = [row[1] for row in rows]
    boxes = tensors["boxes"].split(box_counts)
    indices = (
        tensors["box_index"].split(box_counts) if "box_index" in tensors else [None] * len(rows)
    )
    columns = {stage.shape[1] for of_stage in stages for stage in of_stage}
    # A file of another store may have been copied here. A KeyError becomes the message with the
    # file's name.
    if not columns <= {num_classes + 1} or tensors["activation"] not in ACTIVATIONS:
        raise KeyError(f"{columns} columns, {tensors['activation']}")
    columns_of_images = (ids, rows, boxes, indices, *stages)
    images = [
        _StoredImage(image_id, list(logits), box, index, tuple(row[2:4]), tuple(row[4:]))
        for image_id, row, box, index, *logits in zip(*columns_of_images, strict=True)
    ]
    start = "found_"
    found = {k.removeprefix(start): v.numpy() for k, v in tensors.items() if k.startswith(start)}
    if found:
        found["image_id"] = ids_from_tensor(tensors["found_image_id"])
    return _Shard(images, tensors["activation"], Detections.from_arrays(found) if found else None)
