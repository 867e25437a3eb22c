"""The statistics pass of a run, which is skipped if its file is up to date."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Callable
from dataclasses import replace

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.utils import comm
from torch import nn

from ..collection import collect_from_config
from ..core import ClassCounts, LogitStatistics, StatisticsError
from ..core.affine import foreground_columns
from ..core.statistics import FILE
from ..modeling.box_predictors import unwrapped
from ..modeling.build import TrainingClassCounts
from ..passes.resume import deciding_settings, weights_digest

logger = logging.getLogger(__name__)


def statistics_path(cfg: CfgNode) -> str:
    """The default path of a run's statistics file."""
    return os.path.join(cfg.OUTPUT_DIR, "logn_stats.safetensors")


def periodic_statistics_path(cfg: CfgNode) -> str:
    """The path of the statistics for the last evaluation before the end of the training."""
    return os.path.join(cfg.OUTPUT_DIR, "inference", "logn_stats.safetensors")


def periodic_collection(cfg: CfgNode) -> CfgNode:
    """A copy of the config whose statistics pass is short enough for every evaluation."""
    cfg = cfg.clone()
    cfg.defrost()
    # 0 stands for no limit.
    limits = (cfg.MODEL.LOGN.COLLECT.MAX_IMAGES, cfg.MODEL.LOGN.COLLECT.PERIODIC_IMAGES)
    cfg.MODEL.LOGN.COLLECT.MAX_IMAGES = min(limit for limit in limits if limit > 0)
    return cfg


def without_calibration(cfg: CfgNode) -> CfgNode:
    """A copy of the config whose model returns raw logits."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.LOGN.STATISTICS = cfg.MODEL.LOGN.CALIBRATION = ""
    return cfg


def collect(cfg: CfgNode, model: nn.Module, path: str, *, resume: bool = False) -> LogitStatistics:
    """Collect statistics and write the statistics file.

    Args:
        cfg (CfgNode): MODEL.LOGN.COLLECT has the settings of the pass.
        model (nn.Module): with its weights loaded.
        path (str): the statistics file.
        resume (bool): resume an interrupted pass, or keep an existing file of the same weights,
            data and settings.

    Returns:
        LogitStatistics: the same on every process.
    """
    digest = _run_digest(cfg, unwrapped(model))
    finished = _finished(path, digest) if resume else None
    # Processes may see a file of a network file system at different times, but all or none must
    # enter the pass, which has collective calls.
    if all(comm.all_gather(finished is not None)):
        logger.info("The statistics in %s are up to date.", path)
        return finished
    statistics = collect_from_config(cfg, unwrapped(model), path, resume=resume)
    statistics = replace(statistics, provenance={**statistics.provenance, "run": digest})
    if comm.is_main_process():
        statistics.save(path)
        warn_of_unused_classes(statistics, TrainingClassCounts(cfg))
    comm.synchronize()
    return statistics


def warn_of_unused_classes(statistics: LogitStatistics, count: Callable[[], ClassCounts]) -> None:
    """Warn of a class without training objects that determines LogN's beta, the smallest mean.

    No RoI ever raised the logit of such a class, so its mean can lie far below all others. The
    calibrated scores of the other classes then fall below the usual score thresholds.

    Args:
        statistics (LogitStatistics): of a pass over training images.
        count (Callable): counts the training set, only if the statistics leave the question open.
    """
    if statistics.background == "none":
        return  # Eq. 1 has no beta
    columns = foreground_columns(statistics.background)
    for number, stage in enumerate(statistics.stages):
        mean = stage.mean[columns]
        if len(mean) < len(statistics.class_names) or statistics.unlabelled(number) is not None:
            continue  # beta already leaves out classes that are known to have no RoI
        lowest = int(mean.argmin())
        if stage.posteriors is not None and stage.posteriors.label_count[columns][lowest] > 0:
            continue  # it had a RoI, so it has objects
        counts = count()
        if counts.image_count[lowest] == 0:
            logger.warning(
                "Stage %d: class '%s' has no training object and sets LogN's beta, %.2f. Take it "
                "out of the categories, use logn(beta=mean), or set "
                "MODEL.ROI_HEADS.SCORE_THRESH_TEST to 0.",
                *(number, counts.class_names[lowest], mean[lowest]),
            )


def is_current(cfg: CfgNode, model: nn.Module, path: str | os.PathLike[str]) -> bool:
    """Whether `collect` would write the same statistics file again."""
    return _finished(os.fspath(path), _run_digest(cfg, unwrapped(model))) is not None


def _finished(path: str, digest: str) -> LogitStatistics | None:
    try:
        statistics = LogitStatistics.load(path)
    except (OSError, StatisticsError):
        return None
    return statistics if statistics.provenance.get("run") == digest else None


def _run_digest(cfg: CfgNode, model: nn.Module) -> str:
    """A hash of everything that the statistics depend on, and of a few harmless settings."""
    files = [_stamp(MetadataCatalog.get(name).get("json_file")) for name in cfg.DATASETS.TRAIN]
    content = {
        **deciding_settings(cfg, collects=True),
        "weights": weights_digest(model),
        "format": FILE.version,
        "data": [cfg.DATASETS.TRAIN, files],
    }
    text = json.dumps(content, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _stamp(path: str | None) -> list[int] | None:
    """Size and modification time of a file: hashing gigabytes of annotations would take longer."""
    if path is None or not os.path.isfile(path):
        return None
    status = os.stat(path)
    return [status.st_size, status.st_mtime_ns]
