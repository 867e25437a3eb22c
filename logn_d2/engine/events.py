"""Histograms of the statistics and pictures of detections for TensorBoard."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.data.detection_utils import read_image
from detectron2.utils.events import EventStorage
from torch import nn

from .. import UNCALIBRATED
from ..core import AffineCalibration, LogitStatistics
from ..core.affine import foreground_columns
from ..data.loader import build_evaluation_loader
from ..pictures.before_after import BeforeAfter, Shown
from ..pictures.side_by_side import draw_side_by_side, enlarged

_BINS = 100
# Not by a threshold: early in a training run all scores are low, and no box would be drawn.
_SHOWN = Shown(threshold=0.0, at_most=10, one_per_place=True)


def put_statistics(storage: EventStorage, statistics: LogitStatistics) -> None:
    """Add histograms over classes of the logits' means and standard deviations.

    Their names are "logn_stats/stage0/mean", "logn_stats/stage0/std" and so on. They leave out the
    background and classes without usable statistics.

    Args:
        storage (EventStorage): the training run's.
        statistics (LogitStatistics): statistics of the weights at this iteration.
    """
    for index, stage in enumerate(statistics.stages):
        columns = foreground_columns(statistics.background)
        usable = stage.usable[columns]
        if not usable.any():
            continue
        for name, values in (("mean", stage.mean), ("std", stage.std)):
            classes = values[columns][usable].float()
            storage.put_histogram(f"logn_stats/stage{index}/{name}", classes, bins=_BINS)


class ComparedImages:
    """Adds pictures of some validation images, before and after calibration.

    MODEL.LOGN.COLLECT.SEED chooses the images from the first data set of DATASETS.TEST. They are
    the same at each iteration, so that "before_after/IMAGE_ID" shows the progress of the training.

    Args:
        cfg (CfgNode): MODEL.LOGN.VIS_IMAGES is the number of images.
    """

    def __init__(self, cfg: CfgNode) -> None:
        self._cfg = cfg
        self._images: list[dict[str, Any]] | None = None

    def put(
        self,
        storage: EventStorage,
        model: nn.Module,
        name: str,
        calibrations: Sequence[AffineCalibration],
    ) -> None:
        """Draw the pictures and add them to a storage; call it on one process.

        Args:
            storage (EventStorage): the training run's.
            model (nn.Module): the detector, which is not changed.
            name (str): the name of the calibration in the pictures.
            calibrations (Sequence[AffineCalibration]): the calibration of each stage.
        """
        if self._images is None:
            self._images = self._choose()
        average = self._cfg.MODEL.LOGN.CASCADE_AVERAGE
        compare = BeforeAfter(model, calibrations, average=average, shown=_SHOWN)
        metadata = MetadataCatalog.get(self._cfg.DATASETS.TEST[0])
        for image in self._images:
            pixels = enlarged(read_image(image["file_name"], "RGB"))
            size = {"height": pixels.shape[0], "width": pixels.shape[1]}
            ((before, after),) = compare([{**image, **size}])
            picture = draw_side_by_side(
                pixels,
                [(UNCALIBRATED, before), (name, after)],
                metadata.get("thing_classes", ()),
            )
            # TensorBoard's writer takes channels first.
            channels_first = np.ascontiguousarray(picture.transpose(2, 0, 1))
            storage.put_image(f"before_after/{image['image_id']}", channels_first)

    def _choose(self) -> list[dict[str, Any]]:
        images = build_evaluation_loader(self._cfg, self._cfg.DATASETS.TEST[0]).dataset
        # A generator of its own: pictures must not change the training's random numbers.
        generator = torch.Generator().manual_seed(self._cfg.MODEL.LOGN.COLLECT.SEED % 2**63)
        order = torch.randperm(len(images), generator=generator)
        return [images[int(index)] for index in order[: self._cfg.MODEL.LOGN.VIS_IMAGES]]
