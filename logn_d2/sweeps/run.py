"""One inference pass, many calibrations.

A calibration changes only class logits. So the network runs once per image; each calibration only
needs softmax and non-maximum suppression, and the mask head runs once per distinct detection.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from typing import Any

from detectron2.evaluation import DatasetEvaluator, inference_on_dataset
from detectron2.utils import comm
from fvcore.common.timer import Timer
from torch import nn

from ..data.rng import preserved_rng
from ..errors import UserError
from ..lvis.ground_truth import LvisGroundTruth
from ..modeling.box_predictors import cascade_average_of
from ..passes.resume import BatchLoader, LoaderFactory, loader_from, pass_digest
from ..passes.shards import refuse_others
from ..sites import LogitSite, evaluation_mode, known_site, site_detector
from .detections_folder import SWEEP, ImageDetections, SweepDetections, SweepWriter
from .network import SweepRunner
from .output_store import OUTPUTS, StoreWriter
from .site_network import SiteSweepRunner
from .union import Calibrations

logger = logging.getLogger(__name__)


def sweep(
    model: nn.Module,
    loader: BatchLoader | LoaderFactory,
    calibrations: Calibrations,
    *,
    average: str | None = None,
    ground_truth: LvisGroundTruth | None = None,
    output_dir: str | os.PathLike[str] | None = None,
    chunk_size: int = 200,
    resume: bool = False,
    overwrite: bool = True,
    settings: Mapping[str, Any] | None = None,
    store: str | os.PathLike[str] | None = None,
    max_boxes: int = 0,
    store_info: Mapping[str, Any] | None = None,
    site: LogitSite | None = None,
) -> SweepDetections:
    """Detections of a model under many calibrations, at the cost of little more than one pass.

    Each calibration's boxes, classes and scores equal, bit for bit, those of the model with this
    calibration attached; so do its masks, except for pixels that a larger batch in the mask head
    rounds differently. A calibration that is already attached is ignored: all start from raw
    logits. Afterwards the model and all random generators are unchanged.

    Args:
        model (nn.Module): a GeneralizedRCNN, a model with the same structure, or a detector listed
            in docs/sites.md, with its weights loaded.
        loader (Iterable or Callable): batches of mapped images, in the same order each time; see
            `build_evaluation_loader`. With a function from the number of batches to skip to a
            loader, a resumed sweep loads only the rest.
        calibrations (Mapping): name -> one calibration per box predictor (cascade stage).
        average (str): the quantity that a cascade averages over stages, "probs" or "logits"; None
            follows the model's own heads.
        ground_truth (LvisGroundTruth): annotations of the later evaluation. Masks of detections
            that the federated rule drops, usually nine in ten, are then left empty, which saves
            most of the mask head's work and changes no result. None computes all.
        output_dir (PathLike): folder for the detections; memory use is then independent of the
            number of images, and a killed sweep can be resumed. None keeps them in memory.
        chunk_size (int): images of a process per file; a killed sweep loses at most these.
        resume (bool): use the files of an interrupted sweep with the same settings.
        overwrite (bool): replace a finished sweep with other settings, or other stored outputs, in
            these folders; False refuses.
        settings (Mapping): further settings that must be equal to resume.
        store (PathLike): folder for the raw outputs with which `sweep_stored` evaluates other
            calibrations without the model; None stores nothing.
        max_boxes (int): with class-specific boxes, store only those of this many best candidates of
            an image under each calibration, which suffices for similar calibrations; 0 stores all.
        store_info (Mapping): notes for human readers, stored there: data set, weights.
        site (LogitSite): description of the logits in a model unknown to logn_d2.

    Returns:
        SweepDetections: for all images; without ``output_dir`` only on process 0, while the others
        have their own images.

    Raises:
        ValueError: calibrations that do not fit the model; other results in a folder; a model whose
            outputs can't be stored, because its scores are neither softmax nor sigmoid of its
            logits.

    Example:
        >>> swept = sweep(model, loader, calibrations)  # doctest: +SKIP
        >>> evaluate_sweep(swept, ground_truth)["logn"]["bbox"]["AP"]  # doctest: +SKIP
    """
    keep = None if store is None else StoreWriter(store, ground_truth, max_boxes)
    # Resolved here, because it is part of the digest: None would stand for two results.
    average = average or cascade_average_of(model)
    runner = _runner(model, calibrations, average, ground_truth, keep, site)
    with preserved_rng(), evaluation_mode(model):
        # The loader of all images, whose digest identifies the pass also when it is resumed.
        first = loader_from(loader, 0)
        # The number of processes determines which images a chunk has.
        decisive = {"processes": comm.get_world_size(), **runner.settings(), **(settings or {})}
        if keep is not None:
            decisive["store"] = [str(keep.folder.resolve()), max_boxes]
        digest = pass_digest(model, first, decisive)
        if not overwrite:
            refuse_others(output_dir, SWEEP, digest)
            refuse_others(store, OUTPUTS, digest)
            comm.synchronize()  # no process writes before all have checked
        options = {"chunk_size": chunk_size, "resume": resume}
        if keep is not None:
            # Raw outputs are stored first, because a chunk marks its images as done.
            options["before_chunk"] = keep.flush
        writer = SweepWriter(list(calibrations), output_dir, digest, **options)
        if keep is not None:
            header = {**runner.describe(), "info": dict(store_info or {})}
            keep.open(digest, header, writer.num_batches, runner.classifiers())
        # Building the loader again would start its workers twice.
        rest = loader_from(loader, writer.num_batches) if writer.num_batches else first
        collector, timer = _Collector(writer, keep), Timer()
        swept = inference_on_dataset(runner, rest, collector)["detections"]
    rate = sum(comm.all_gather(collector.num_images / timer.seconds()))
    logger.info("Swept %d calibrations, %.2f images/s", len(calibrations), rate)
    return swept


def _runner(
    model: nn.Module,
    calibrations: Calibrations,
    average: str,
    ground_truth: LvisGroundTruth | None,
    keep: StoreWriter | None,
    site: LogitSite | None,
) -> SweepRunner | SiteSweepRunner:
    """The runner of the network, at the model's site or else at its box predictors."""
    # A given site wins over box predictors: the caller knows which logits to calibrate.
    detector = model if site is not None else site_detector(model)
    if detector is None:
        return SweepRunner(model, calibrations, average, ground_truth, keep)
    if keep is not None:
        raise UserError(
            f"The outputs of a {type(detector).__name__} can't be stored: its candidates have no "
            "boxes before its own inference. Omit the store (--save-outputs)."
        )
    return SiteSweepRunner(detector, calibrations, site or known_site(detector))


class _Collector(DatasetEvaluator):
    """Passes detections on to the writer."""

    def __init__(self, writer: SweepWriter, keep: StoreWriter | None) -> None:
        self._writer = writer
        self._keep = keep
        self.num_images = 0

    def process(self, inputs: Sequence[Mapping[str, Any]], outputs: ImageDetections) -> None:
        self._writer.add(outputs)
        self.num_images += len(inputs)

    def evaluate(self) -> dict[str, SweepDetections]:
        if self._keep is not None:
            # The store before the sweep, for the same reason as its flush before each chunk.
            self._keep.finish()
        return {"detections": self._writer.finish()}
