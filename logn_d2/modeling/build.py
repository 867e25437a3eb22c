"""Calibrations from ``cfg.MODEL.LOGN``, and the class counts of the training set."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.utils.file_io import PathManager
from torch import nn

from ..core import AffineCalibration, ClassCounts, LogitStatistics
from ..core.affine import Background
from ..errors import UserError
from .weights_guard import WeightsGuard, guarded_calibrations


def logn_node(cfg: CfgNode) -> CfgNode:
    """``cfg.MODEL.LOGN``.

    Raises:
        ValueError: the config lacks the node.
    """
    if "LOGN" not in cfg.MODEL:
        raise UserError(
            "The config has no MODEL.LOGN. Call logn_d2.add_logn_config(cfg) before "
            "cfg.merge_from_file(...)."
        )
    return cfg.MODEL.LOGN


def calibrations_from_config(
    cfg: CfgNode,
    predictors: Sequence[nn.Module],
    counts: Callable[[], ClassCounts],
    background: Background = "last",
) -> tuple[list[AffineCalibration | None], list[WeightsGuard | None]]:
    """The calibration of each box predictor, whose weights may be loaded later.

    Args:
        cfg (CfgNode): MODEL.LOGN.STATISTICS and MODEL.LOGN.CALIBRATION decide.
        predictors (Sequence[nn.Module]): S of them, 1 for heads without cascade.
        counts (Callable): returns the class counts of the training set.
        background (str): position of the background column.

    Returns:
        tuple[list, list]: S calibrations and the guards of their weights; each is None without a
        calibration.

    Raises:
        FileNotFoundError: the statistics file does not exist.
        StatisticsError: the statistics belong to another model.
        ValueError: an input of the calibration is missing.
    """
    node, num_classes = logn_node(cfg), cfg.MODEL.ROI_HEADS.NUM_CLASSES
    if not node.STATISTICS and not node.CALIBRATION:
        return [None] * len(predictors), [None] * len(predictors)
    statistics = None
    if node.STATISTICS:
        # Once for all stages.
        statistics = LogitStatistics.load(PathManager.get_local_path(node.STATISTICS))
    return guarded_calibrations(
        predictors,
        node.CALIBRATION or "logn",
        num_classes=num_classes,
        statistics=statistics,
        counts=counts,
        background=background,
        class_names=known_class_names(cfg.DATASETS.TRAIN, num_classes),
    )


class TrainingClassCounts:
    """Counts the classes of ``cfg.DATASETS.TRAIN`` once, when called, because LVIS takes a while.

    An object instead of a closure, so that a model with it can be pickled.
    """

    def __init__(self, cfg: CfgNode) -> None:
        self.datasets = tuple(cfg.DATASETS.TRAIN)
        self._counts: ClassCounts | None = None

    def __call__(self) -> ClassCounts:
        from ..data import class_counts  # only if counts are needed

        if self._counts is None:
            self._counts = class_counts(self.datasets)
        return self._counts


def known_class_names(datasets: tuple[str, ...], num_classes: int) -> list[str] | None:
    """Class names of the first data set, if they are registered and their number is K.

    Args:
        datasets (tuple[str, ...]): registered names.
        num_classes (int): K of the model; a data set with another number is ignored.
    """
    # `MetadataCatalog.get` would create an entry for an unknown name.
    if not datasets or datasets[0] not in MetadataCatalog.list():
        return None
    try:
        names = MetadataCatalog.get(datasets[0]).get("thing_classes", None)
    except FileNotFoundError:  # a model can be used without its training set
        return None
    return list(names) if names is not None and len(names) == num_classes else None
