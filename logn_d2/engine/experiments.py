"""Rows of a table for one trained detector: statistics and calibrations, one inference pass.

A run is the folder of a finished training, with ``config.yaml`` and ``model_final.pth``.
"""

from __future__ import annotations

import functools
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.utils import comm
from torch import nn

from .. import UNCALIBRATED
from ..core import AffineCalibration, LogitStatistics
from ..errors import MissingFileError, UserError
from ..files import atomic_write
from ..modeling.attach import calibrations_at, find_sites
from ..modeling.build import TrainingClassCounts
from ..results import Results
from ..sweeps import evaluate_sweep
from .checkpoint import load_weights
from .checks import check_calibration
from .config import load_config
from .evaluation import read_ground_truth, sweep_dataset
from .statistics import collect, is_current, statistics_path, without_calibration
from .trainer import Trainer

Metrics = dict[str, dict[str, float]]


@dataclass(frozen=True)
class Row:
    """One row of a table.

    Attributes:
        label (str): name in the table, unique there.
        calibration (str): see `logn_d2.core.parse_calibration`.
        population (str): RoIs of the statistics; "" for the run's own (MODEL.LOGN.COLLECT).
        estimator (str): estimator of the statistics; "" for the run's own.
        average (str): quantity that a cascade averages, "probs" or "logits"; "" for the run's own.
    """

    label: str
    calibration: str = UNCALIBRATED
    population: str = ""
    estimator: str = ""
    average: str = ""


# Keys that do not affect a training's weights.
_WITHOUT_EFFECT = (
    *("OUTPUT_DIR", "MODEL.DEVICE", "DATALOADER.NUM_WORKERS", "VIS_PERIOD"),
    *("MODEL.LOGN.VIS_IMAGES", "MODEL.LOGN.CHECK_IMAGES"),
    *("MODEL.LOGN.STATISTICS", "MODEL.LOGN.CALIBRATION"),
    *("MODEL.LOGN.COLLECT.ENABLED", "MODEL.LOGN.COLLECT.CHECKPOINT_PERIOD"),
    "MODEL.LOGN.COLLECT.PERIODIC_IMAGES",
)


def has_begun(folder: str | os.PathLike[str]) -> bool:
    """Whether this folder contains a training, finished or not, that can be resumed."""
    folder = Path(folder)
    begun = (folder / "config.yaml").is_file() and (folder / "last_checkpoint").is_file()
    return begun or is_trained(folder)


def is_trained(folder: str | os.PathLike[str]) -> bool:
    """Whether this folder contains a finished training."""
    return all((Path(folder) / name).is_file() for name in ("config.yaml", "model_final.pth"))


def check_same_training(folder: str | os.PathLike[str], cfg: CfgNode) -> None:
    """Check that the training in a folder is the requested one.

    Args:
        folder (PathLike): see `has_begun`.
        cfg (CfgNode): the requested training.

    Raises:
        ValueError: the configs differ in keys that affect the weights or the tables.
    """
    found, wanted = _flat(load_config(Path(folder) / "config.yaml")), _flat(cfg)
    keys = sorted({*found, *wanted} - set(_WITHOUT_EFFECT))
    other = [key for key in keys if found.get(key) != wanted.get(key)]
    if other:
        each = "; ".join(f"{key} is {found.get(key)}, not {wanted.get(key)}" for key in other)
        raise UserError(
            f"The training in {folder} has other settings than the requested one: {each}. "
            "Use the same settings, name the folder as RUN, or move it away."
        )


def _flat(node: CfgNode, prefix: str = "") -> dict[str, Any]:
    """Dotted key -> value."""
    flat = {}
    for key, value in node.items():
        if isinstance(value, CfgNode):
            flat.update(_flat(value, f"{prefix}{key}."))
        else:
            flat[prefix + key] = _as_in_yaml(value)
    return flat


def _as_in_yaml(value: Any) -> Any:
    """A value as read from a config file, where nested sequences are lists."""
    return [_as_in_yaml(each) for each in value] if isinstance(value, (list, tuple)) else value


def run_config(folder: str | os.PathLike[str], opts: Sequence[str] = ()) -> CfgNode:
    """The config of a run, without calibration, with the run's final weights.

    Args:
        folder (PathLike): the run.
        opts (Sequence[str]): KEY VALUE pairs that override it.

    Raises:
        FileNotFoundError: there is no finished training.
    """
    folder = Path(folder)
    if not is_trained(folder):
        raise MissingFileError(
            f"{folder} is not a finished training: expected config.yaml and model_final.pth in it. "
            f"Train it first: logn train --config-file C.yaml --output {folder}"
        )
    own = ["MODEL.WEIGHTS", str(folder / "model_final.pth"), "OUTPUT_DIR", str(folder)]
    cfg = without_calibration(load_config(folder / "config.yaml", [*own, *opts]))
    # A training without evaluation, such as the demo's, has an empty DATASETS.TEST.
    cfg.DATASETS.TEST = tuple(cfg.DATASETS.TEST) or _evaluated_on(folder)
    cfg.freeze()
    return cfg


def _evaluated_on(folder: Path) -> tuple[str, ...]:
    """The data set of a run's results, for a training evaluated only by `logn sweep`."""
    path = folder / "results.json"
    about = Results.load(path).provenance if path.is_file() else {}
    return (about["data set"],) if about.get("data set") else ()


def measure(
    cfg: CfgNode, rows: Sequence[Row], output: str | os.PathLike[str]
) -> dict[str, Metrics]:
    """Evaluate a run under many calibrations; all processes call it.

    The network runs once over ``cfg.DATASETS.TEST[0]`` (once for each kind of cascade average), and
    once over the training set for each kind of statistics. Results in ``output`` with the same
    weights, data and settings are reused: statistics by all rows, detections by a call with the
    same rows. Other rows need another pass over ``cfg.DATASETS.TEST[0]``.

    Args:
        cfg (CfgNode): see `run_config`.
        rows (Sequence[Row]): rows to evaluate.
        output (PathLike): folder for statistics and detections.

    Returns:
        dict: label -> task -> metric -> percent, in the order of the rows; empty on all processes
        but the first.

    Raises:
        ValueError: a repeated label, or logits that can't be calibrated.
    """
    if not cfg.DATASETS.TEST:
        raise UserError(
            f"DATASETS.TEST of {cfg.OUTPUT_DIR}/config.yaml is empty, and there is no results.json "
            f"that names a data set. Evaluate the run first: logn sweep --dataset NAME --output "
            f"{cfg.OUTPUT_DIR}"
        )
    labels = [row.label for row in rows]
    if len(set(labels)) < len(labels):
        raise UserError(f"Labels must differ, found {', '.join(sorted(labels))}.")
    model = Trainer.build_model(cfg)
    load_weights(model, cfg.MODEL.WEIGHTS, cfg.OUTPUT_DIR, resume=False)
    calibrations = _calibrations(cfg, model, rows, Path(output))
    own = cfg.MODEL.LOGN.CASCADE_AVERAGE
    # Rows without an average of their own share the sweep of the config's.
    found: dict[str, Metrics] = {}
    # The average decides which detections exist, so each takes a sweep of its own.
    for average in sorted({row.average or own for row in rows}):
        names = [row.label for row in rows if (row.average or own) == average]
        chosen = {name: calibrations[name] for name in names}
        found.update(_evaluate(cfg, model, chosen, average, Path(output) / f"sweep_{average}"))
    return {label: found[label] for label in labels if label in found}


def _evaluate(
    cfg: CfgNode,
    model: nn.Module,
    calibrations: dict[str, list[AffineCalibration]],
    average: str,
    folder: Path,
) -> dict[str, Metrics]:
    dataset = cfg.DATASETS.TEST[0]
    truth = read_ground_truth(dataset, cfg.DATASETS.TRAIN)
    swept = sweep_dataset(
        *(cfg, model, dataset, calibrations, folder),
        average=average,
        ground_truth=truth,
        resume=True,
    )
    return evaluate_sweep(swept, truth) if comm.is_main_process() else {}


def _calibrations(
    cfg: CfgNode, model: nn.Module, rows: Sequence[Row], output: Path
) -> dict[str, list[AffineCalibration]]:
    """Label -> one calibration for each box predictor, or one for the model's site."""
    sites = find_sites(model)
    gather = functools.cache(functools.partial(_statistics, cfg, model, output))
    counts = TrainingClassCounts(cfg)
    found = {}
    for row in rows:
        needed = check_calibration(cfg, row.calibration, True)
        statistics = gather(row.population, row.estimator) if "statistics" in needed else None
        options = {"statistics": statistics, "counts": counts}
        found[row.label] = calibrations_at(sites, row.calibration, **options)
    return found


def _statistics(
    cfg: CfgNode, model: nn.Module, output: Path, population: str, estimator: str
) -> LogitStatistics:
    """Statistics of one kind, collected once."""
    cfg = cfg.clone()
    cfg.defrost()
    node = cfg.MODEL.LOGN.COLLECT
    is_own = population in ("", node.POPULATION) and estimator in ("", node.ESTIMATOR)
    node.POPULATION, node.ESTIMATOR = population or node.POPULATION, estimator or node.ESTIMATOR
    if node.ESTIMATOR != "exact" or node.POPULATION == "positives":
        node.STOP_AT = 0.0  # these have no standard error
    output.mkdir(parents=True, exist_ok=True)
    path = output / f"logn_stats_{node.POPULATION}_{node.ESTIMATOR}.safetensors"
    # The file of the training saves a pass if it still belongs to the weights.
    theirs = statistics_path(cfg)  # collected when training ended
    if comm.is_main_process() and is_own and not is_current(cfg, model, path):
        if is_current(cfg, model, theirs):
            with atomic_write(path) as temporary:
                shutil.copyfile(theirs, temporary)
    comm.synchronize()  # `collect` finds the copied file on every process
    return collect(cfg, model, str(path), resume=True)
