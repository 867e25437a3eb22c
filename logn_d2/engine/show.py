"""Pictures of an image's detections before and after calibration, from a config.

Shapes: H x W pixels of the image, K foreground classes.
"""

from __future__ import annotations

import functools

import numpy as np
from detectron2.config import CfgNode
from detectron2.data.detection_utils import convert_PIL_to_numpy
from PIL import Image
from torch import nn

from ..core import AffineCalibration
from ..data import class_counts
from ..data.mappers import TestResize
from ..errors import UserError
from ..modeling import attach
from ..modeling.build import known_class_names
from ..pictures.before_after import BeforeAfter, Shown
from ..pictures.side_by_side import draw_side_by_side, enlarged
from ..sites import config_site
from ..source import source_of
from .checkpoint import load_weights
from .checks import check_calibration, check_classes, check_statistics, check_weights
from .evaluation import calibration_name
from .statistics import without_calibration


def check_comparison(cfg: CfgNode) -> None:
    """Find mistakes before the model is built.

    Raises:
        ValueError, KeyError, OSError: the message names the mistake and its correction.
    """
    path = cfg.MODEL.LOGN.STATISTICS
    name = calibration_name(cfg, bool(path))
    if not name:
        raise UserError(
            "There is nothing to show after calibration. Give --stats FILE, or a --calibration "
            "that needs no statistics, such as norcal(gamma=0.6)."
        )
    check_weights(cfg.MODEL.WEIGHTS)
    check_classes(cfg)
    site = config_site(cfg)
    check_calibration(name, site.classes_in(cfg), bool(path), site=site)
    if path:
        check_statistics(cfg, path)


class SideBySide:
    """Draws an image with its detections before calibration on the left, after on the right.

    Args:
        cfg (CfgNode): config of the model, with statistics and calibration.
        shown (Shown): choice of the detections.
    """

    def __init__(self, cfg: CfgNode, shown: Shown) -> None:
        path, num_classes = cfg.MODEL.LOGN.STATISTICS, config_site(cfg).classes_in(cfg)
        self._name = calibration_name(cfg, bool(path))
        self._shown = shown
        self._class_names = known_class_names(cfg.DATASETS.TEST, num_classes) or ()
        if path and not self._class_names:
            self._class_names = check_statistics(cfg, path).class_names
        self._format = cfg.INPUT.FORMAT
        self._resize = TestResize(cfg)
        model = source_of(without_calibration(cfg)).model().eval()
        load_weights(model, cfg.MODEL.WEIGHTS, cfg.OUTPUT_DIR, resume=False)
        average = cfg.MODEL.LOGN.CASCADE_AVERAGE
        calibrations = self._calibrations(cfg, model)
        self._compare = BeforeAfter(model, calibrations, average=average, shown=shown)

    def __call__(self, pixels: np.ndarray) -> np.ndarray:
        """Detect and draw.

        Args:
            pixels (ndarray): (H, W, 3) uint8 RGB.

        Returns:
            ndarray: the picture, uint8 RGB; its size depends only on the image's size.
        """
        # Boxes are scaled to the enlarged picture, so that names fit; the network sees the
        # original.
        canvas = enlarged(pixels)
        height, width = canvas.shape[:2]
        image = self._resize(convert_PIL_to_numpy(Image.fromarray(pixels), self._format))
        ((before, after),) = self._compare([{"image": image, "height": height, "width": width}])
        limit = self._shown.calibrated_threshold
        rule = f"the best {len(after)}" if limit is None else f"{len(after)} above {limit:g}"
        captions = (
            f"uncalibrated: {len(before)} above {self._shown.threshold:g}",
            f"{self._name}: {rule}",
        )
        return draw_side_by_side(canvas, list(zip(captions, (before, after))), self._class_names)

    def _calibrations(self, cfg: CfgNode, model: nn.Module) -> list[AffineCalibration]:
        """The calibrations of `attach`, which compares the statistics with these weights."""
        attachment = attach(
            model,
            cfg.MODEL.LOGN.STATISTICS or None,
            calibration=self._name,
            counts=functools.partial(class_counts, tuple(cfg.DATASETS.TRAIN)),
            class_names=self._class_names or None,
        )
        # Both sides come from one pass of the uncalibrated model.
        attachment.detach()
        return attachment.calibrations
