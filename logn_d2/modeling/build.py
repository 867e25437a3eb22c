"""From ``cfg.MODEL.LOGN`` to calibrations."""

from __future__ import annotations

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.utils.file_io import PathManager

from ..core import AffineCalibration, ClassCounts, LogitStatistics, stage_calibrations

__all__ = ["calibrations_from_config", "known_class_names", "logn_node"]


def logn_node(cfg: CfgNode) -> CfgNode:
    """``cfg.MODEL.LOGN``.

    Raises:
        ValueError: the config does not have it.
    """
    if "LOGN" not in cfg.MODEL:
        raise ValueError(
            "The config has no MODEL.LOGN. Call logn_d2.add_logn_config(cfg) before "
            "cfg.merge_from_file(...)."
        )
    return cfg.MODEL.LOGN


def calibrations_from_config(
    cfg: CfgNode, num_stages: int
) -> tuple[list[AffineCalibration | None], LogitStatistics | None]:
    """The calibration of each box predictor.

    Args:
        cfg (CfgNode): MODEL.LOGN.STATISTICS and MODEL.LOGN.CALIBRATION decide.
        num_stages (int): S, 1 for heads without cascade.

    Returns:
        tuple[list, LogitStatistics]: S calibrations, each None where there is none; and the
        statistics that they are made from, or None.

    Raises:
        FileNotFoundError: there is no such statistics file.
        StatisticsError: the statistics are another model's.
        ValueError: something that the calibration needs is missing.
    """
    node, num_classes = logn_node(cfg), cfg.MODEL.ROI_HEADS.NUM_CLASSES
    statistics = None
    if node.STATISTICS:
        statistics = LogitStatistics.load(PathManager.get_local_path(node.STATISTICS))
        statistics.check(
            num_classes=num_classes,
            num_stages=num_stages,
            class_names=known_class_names(cfg.DATASETS.TRAIN, num_classes),
        )
    text = node.CALIBRATION or ("logn" if statistics is not None else "")
    if not text:
        return [None] * num_stages, None
    datasets = tuple(cfg.DATASETS.TRAIN)

    def count_classes() -> ClassCounts:
        from ..data import class_counts  # counts only if the calibration asks for them

        return class_counts(datasets)

    calibrations = stage_calibrations(
        text,
        num_classes=num_classes,
        num_stages=num_stages,
        statistics=statistics,
        counts=count_classes,
    )
    return list(calibrations), statistics


def known_class_names(datasets: tuple[str, ...], num_classes: int) -> list[str] | None:
    """Class names of the first data set, where they are registered already and are K.

    Args:
        datasets (tuple[str, ...]): registered names.
        num_classes (int): K of the model; a data set with another number says nothing about it.
    """
    if not datasets or datasets[0] not in MetadataCatalog.list():
        return None
    try:
        names = MetadataCatalog.get(datasets[0]).get("thing_classes", None)
    except FileNotFoundError:  # a model can be used where its training set is not
        return None
    return list(names) if names is not None and len(names) == num_classes else None
