"""Logits of a whole set of images: collected in one pass, stored in a file, scored many times.

A calibration changes only logits, so one network pass serves all of them.

Shapes: N images, K classes.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import torch
from detectron2.evaluation import DatasetEvaluator, inference_on_dataset
from detectron2.utils import comm
from torch import Tensor, nn

from ..core import AffineCalibration
from ..core.tensor_file import read_tensors, write_tensors
from ..data.rng import preserved_rng
from ..errors import MissingFileError, UserError
from ..passes.resume import BatchLoader
from .accuracy import evaluate_images

_FORMAT = "logn_d2 image logits 1"


@dataclass(frozen=True, eq=False)
class StoredLogits:
    """Raw logits of a set of images.

    Attributes:
        logits (Tensor): (N, K) float32, in nats.
        labels (Tensor): (N,) int64; -1 for an image without a label.
        digest (str): digest of their pass, see `pass_digest`; "" if unknown.
    """

    logits: Tensor
    labels: Tensor
    digest: str = ""

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a safetensors file with "logits" and "labels".

        Raises:
            OSError: the folder is not writable or the disk is full.
        """
        tensors = {"logits": self.logits, "labels": self.labels}
        write_tensors(path, tensors, {"format": _FORMAT, "digest": self.digest})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> StoredLogits:
        """Read a file written by `save`.

        Raises:
            FileNotFoundError: the file does not exist.
            ValueError: the file is damaged, or of another kind.
        """
        tensors, about = load_tensors(path, _FORMAT, "logits")
        return cls(tensors["logits"], tensors["labels"], about.get("digest", ""))


def load_tensors(
    path: str | os.PathLike[str], form: str, what: str
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read a file of one tensor or more for a set of images, and its metadata.

    Args:
        path (PathLike): the file.
        form (str): expected "format".
        what (str): content in messages, and name of a tensor that must have two dimensions.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the file is damaged, or of another kind.
    """
    if not Path(path).is_file():
        raise MissingFileError(f"There are no {what} at '{path}'.")
    try:
        tensors, about = read_tensors(path)
    except safetensors.SafetensorError as error:
        raise UserError(f"'{path}' is not a complete file of {what} ({error}).") from None
    kind = about.get("format")
    if kind != form or tensors.get(what, torch.zeros(0)).dim() != 2:
        raise UserError(f"'{path}' contains no {what} of images (format: {kind!r}).")
    return tensors, about


class LogitsCollector(DatasetEvaluator):
    """Evaluator that returns the raw logits of all images, in the order of their ids."""

    _output = "logits"

    def reset(self) -> None:
        """Discard all images."""
        self._seen: list[tuple[Any, int, Tensor]] = []

    def process(self, inputs: Sequence[Mapping[str, Any]], outputs: Sequence[Mapping]) -> None:
        """Add the outputs of an `ImageClassifier` for some images."""
        for image, output in zip(inputs, outputs, strict=True):
            logits = output[self._output].detach().float().cpu()
            if not logits.isfinite().all():
                raise UserError(
                    f"'{image.get('file_name')}' has NaN or infinite logits. Check the file and "
                    "the weights."
                )
            self._seen.append((image["image_id"], int(image.get("label", -1)), logits))

    def evaluate(self) -> dict[str, StoredLogits]:
        """Collect the images of all processes; empty on all processes but the first."""
        parts = comm.gather(self._seen)
        if not comm.is_main_process():
            return {}
        # By id, so that the result does not depend on the number of processes.
        seen = sorted((each for part in parts for each in part), key=lambda each: each[0])
        if not seen:
            raise UserError("The evaluation had no images. Is the data set empty?")
        labels = torch.tensor([label for _, label, _ in seen])
        return {"logits": StoredLogits(torch.stack([z for *_, z in seen]), labels)}


def collect_logits(model: nn.Module, loader: BatchLoader) -> StoredLogits | None:
    """Collect the raw logits of all images of a loader; None on all processes but the first.

    Args:
        model (nn.Module): an `ImageClassifier`; it and all random generators are left unchanged.
        loader (Iterable): batches of mapped images, each with "image_id".

    Raises:
        ValueError: an image whose logits are not finite.
    """
    # Starting a loader draws a seed for its workers, which would change a training around this
    # pass.
    with preserved_rng():
        return inference_on_dataset(model, loader, LogitsCollector()).get("logits")


@torch.no_grad()
def scores_of(model: nn.Module, calibration: AffineCalibration | None, logits: Tensor) -> Tensor:
    """Class probabilities of raw logits under a calibration.

    Args:
        model (nn.Module): an `ImageClassifier`; its loss computes the scores.
        calibration (AffineCalibration): None for none.
        logits (Tensor): (N, K).

    Returns:
        Tensor: (N, K) in [0, 1], on the CPU.
    """
    device = next(model.parameters()).device
    logits = logits.to(device)
    if calibration is not None:
        logits = calibration.to(device)(logits)
    return model.head.loss.scores(logits).cpu()


class ImageEvaluator(LogitsCollector):
    """Evaluator of a model's accuracy in its present state: ``{"image": metrics in percent}``."""

    _output = "scores"  # calibrated probabilities

    def evaluate(self) -> dict[str, dict[str, float]]:
        """Accuracies and ECE in percent; empty on all processes but the first."""
        found = super().evaluate()
        if not found:
            return {}
        seen = found["logits"]
        return {"image": evaluate_images(seen.logits, seen.labels).as_dict()}
