"""The statistics pass of a run: where its file is, and when it need not be repeated."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from dataclasses import replace

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.utils import comm
from torch import nn

from ..collection import collect_from_config
from ..core import ClassCounts, LogitStatistics, StatisticsError
from ..core.statistics_file import VERSION
from ..data import class_counts
from ..modeling.box_predictors import unwrapped
from ..passes.resume import deciding_settings, weights_digest

__all__ = [
    "collect",
    "is_current",
    "periodic_collection",
    "periodic_statistics_path",
    "statistics_path",
    "warn_of_unused_classes",
    "without_calibration",
]

logger = logging.getLogger(__name__)


def statistics_path(cfg: CfgNode) -> str:
    """Where a run writes its statistics file, unless told otherwise."""
    return os.path.join(cfg.OUTPUT_DIR, "logn_stats.safetensors")


def periodic_statistics_path(cfg: CfgNode) -> str:
    """Where the statistics of the latest evaluation before the end of training are."""
    return os.path.join(cfg.OUTPUT_DIR, "inference", "logn_stats.safetensors")


def periodic_collection(cfg: CfgNode) -> CfgNode:
    """A copy of the config whose statistics pass is short enough for every evaluation."""
    cfg = cfg.clone()
    cfg.defrost()
    limits = (cfg.MODEL.LOGN.COLLECT.MAX_IMAGES, cfg.MODEL.LOGN.COLLECT.PERIODIC_IMAGES)
    cfg.MODEL.LOGN.COLLECT.MAX_IMAGES = min(limit for limit in limits if limit > 0)
    return cfg


def without_calibration(cfg: CfgNode) -> CfgNode:
    """A copy of the config with which a model gives raw logits."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.LOGN.STATISTICS = cfg.MODEL.LOGN.CALIBRATION = ""
    return cfg


def collect(cfg: CfgNode, model: nn.Module, path: str, *, resume: bool = False) -> LogitStatistics:
    """Gathers statistics and writes the statistics file.

    Args:
        cfg (CfgNode): MODEL.LOGN.COLLECT says what to gather.
        model (nn.Module): with its weights loaded.
        path (str): the statistics file.
        resume (bool): continue an interrupted pass; take the file that is there if it is of the
            same weights, data and settings.

    Returns:
        LogitStatistics: on every process.
    """
    digest = _run_digest(cfg, unwrapped(model))
    finished = _finished(path, digest) if resume else None
    # Every process must take the same way, also where they see a file system at different times.
    if all(comm.all_gather(finished is not None)):
        logger.info("The statistics in %s are up to date.", path)
        return finished
    statistics = collect_from_config(cfg, unwrapped(model), path, resume=resume)
    statistics = replace(statistics, provenance={**statistics.provenance, "run": digest})
    if comm.is_main_process():
        statistics.save(path)
        warn_of_unused_classes(statistics, class_counts(cfg.DATASETS.TRAIN))
    comm.synchronize()
    return statistics


def warn_of_unused_classes(statistics: LogitStatistics, counts: ClassCounts) -> None:
    """Names a class without training objects that sets LogN's beta, the smallest mean.

    No RoI ever raised its logit, so that its mean can lie far below all others; calibrated scores
    then fall below thresholds that are meant for the other classes.
    """
    for number, stage in enumerate(statistics.stages):
        if statistics.background == "none":
            return  # Eq. 1 has no beta
        if len(stage.mean) < len(counts.image_count) or statistics.unlabelled(number) is not None:
            continue  # what no RoI is matched to has no say in beta, where that is known
        lowest = int(stage.mean[: len(counts.image_count)].argmin())
        if counts.image_count[lowest] == 0:
            logger.warning(
                "Stage %d: class '%s' has no training object and sets LogN's beta, %.2f. Take it "
                "out of the categories, use logn(beta=mean), or set "
                "MODEL.ROI_HEADS.SCORE_THRESH_TEST to 0.",
                *(number, counts.class_names[lowest], stage.mean[lowest]),
            )


def is_current(cfg: CfgNode, model: nn.Module, path: str | os.PathLike[str]) -> bool:
    """Whether a statistics file is what `collect` would write: it then need not be repeated."""
    return _finished(os.fspath(path), _run_digest(cfg, unwrapped(model))) is not None


def _finished(path: str, digest: str) -> LogitStatistics | None:
    try:
        statistics = LogitStatistics.load(path)
    except (OSError, StatisticsError):
        return None
    return statistics if statistics.provenance.get("run") == digest else None


def _run_digest(cfg: CfgNode, model: nn.Module) -> str:
    """A hash of all that the numbers follow from; of more, where that is simpler."""
    files = [_stamp(MetadataCatalog.get(name).get("json_file")) for name in cfg.DATASETS.TRAIN]
    content = {
        **deciding_settings(cfg, collects=True),
        "weights": weights_digest(model),
        "format": VERSION,
        "data": [cfg.DATASETS.TRAIN, files],
    }
    text = json.dumps(content, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _stamp(path: str | None) -> list[int] | None:
    """Size and time of a file, which change when it does."""
    if path is None or not os.path.isfile(path):
        return None
    status = os.stat(path)
    return [status.st_size, status.st_mtime_ns]
