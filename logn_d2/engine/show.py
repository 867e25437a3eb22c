"""Pictures of an image's detections before and after calibration, from a config.

Shapes: H x W pixels of the image, K foreground classes.
"""

from __future__ import annotations

import numpy as np
from detectron2.config import CfgNode
from detectron2.data.detection_utils import convert_PIL_to_numpy
from PIL import Image

from ..data.mappers import TestResize
from ..errors import UserError
from ..modeling.attach import calibrations_at, find_sites
from ..modeling.box_predictors import check_calibratable
from ..modeling.build import TrainingClassCounts, known_class_names
from ..pictures.before_after import BeforeAfter, Shown
from ..pictures.side_by_side import draw_side_by_side, enlarged
from ..sites import config_site
from .checkpoint import load_model
from .checks import check_calibration, check_classes, check_statistics, check_weights
from .evaluation import calibration_name


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
    check_calibration(cfg, name, bool(path))
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
        statistics = check_statistics(cfg, path) if path else None
        self._name = calibration_name(cfg, bool(path))
        self._shown = shown
        # Pictures need no data set, and then the statistics know the names.
        own = () if statistics is None else statistics.class_names
        self._class_names = known_class_names(cfg.DATASETS.TEST, num_classes) or own
        self._format = cfg.INPUT.FORMAT
        self._resize = TestResize(cfg)
        model, _ = load_model(cfg)
        check_calibratable(model)
        calibrations = calibrations_at(
            find_sites(model),
            self._name,
            statistics=statistics,
            counts=TrainingClassCounts(cfg),
            class_names=self._class_names or None,
        )
        average = cfg.MODEL.LOGN.CASCADE_AVERAGE
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
        # The caption states the rule, because the two sides select by different scores.
        limit = self._shown.calibrated_threshold
        rule = f"the best {len(after)}" if limit is None else f"{len(after)} above {limit:g}"
        captions = (
            f"uncalibrated: {len(before)} above {self._shown.threshold:g}",
            f"{self._name}: {rule}",
        )
        return draw_side_by_side(canvas, list(zip(captions, (before, after))), self._class_names)
