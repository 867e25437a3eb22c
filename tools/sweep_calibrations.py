#!/usr/bin/env python
"""Compare calibrations of one detector: one inference pass, one table.

Writes OUTPUT/results.json, from which the report is made, and the detections of every calibration
to OUTPUT/sweep, with masks where the LVIS rule looks at them. After an interruption, the same
command with --resume goes on where it stopped.

Example:
    python tools/sweep_calibrations.py --config-file C.yaml --stats logn_stats.safetensors \\
        --calibrations uncalibrated logn "logn(beta=mean)" "norcal(gamma=0.6)" \\
        --output output/sweep MODEL.WEIGHTS model_final.pth
"""

from __future__ import annotations

import argparse
import functools
import logging
import os
import sys
from collections.abc import Sequence

import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.modeling import build_model
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger
from torch.multiprocessing import ProcessExitedException

from logn_d2.core import AffineCalibration, stage_calibrations
from logn_d2.data import class_counts
from logn_d2.data.loader import build_evaluation_loader
from logn_d2.engine import launch, load_config, short_errors
from logn_d2.engine.checkpoint import load_weights
from logn_d2.engine.checks import (
    check_calibration,
    check_datasets,
    check_output_folder,
    check_statistics,
    check_weights,
)
from logn_d2.engine.statistics import deciding_settings, without_calibration
from logn_d2.evaluation import LvisGroundTruth, evaluate_sweep, format_table, sweep
from logn_d2.modeling.box_predictors import find_box_predictors, predictor_fingerprint
from logn_d2.report import ResultRow, Results
from logn_d2.report.provenance import commit, machine, versions

logger = logging.getLogger("logn_d2.sweep_calibrations")

BASELINE = "uncalibrated"
# The parts of LogN (paper Table 2), for which statistics are all that is needed.
DEFAULT = (BASELINE, "logn_mean", "logn_std", "logn_no_beta", "logn")


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Command line arguments."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config-file", required=True, help="of the detector")
    parser.add_argument("--stats", metavar="PATH", default="", help="statistics file")
    parser.add_argument(
        "--calibrations",
        nargs="+",
        metavar="NAME",
        default=DEFAULT,
        help=f"names, or calls with keywords; {BASELINE} is always among them "
        f"(default: {' '.join(DEFAULT)})",
    )
    parser.add_argument("--output", required=True, metavar="DIR", help="folder for the results")
    parser.add_argument("--dataset", help="registered name (default: the first of DATASETS.TEST)")
    parser.add_argument("--resume", action="store_true", help="go on with an interrupted sweep")
    parser.add_argument("--num-gpus", type=int, default=1)
    parser.add_argument("--num-processes", type=int, default=1, help="processes on the CPU")
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="changes of the config")
    args = parser.parse_args(argv)
    if "MODEL.WEIGHTS" in args.calibrations:
        parser.error("write --output DIR between --calibrations and the first KEY VALUE")
    args.calibrations = list(dict.fromkeys([BASELINE, *args.calibrations]))
    return args


def setup(args: argparse.Namespace) -> CfgNode:
    """The config of the command line; data sets are registered."""
    cfg = load_config(args.config_file, args.opts)
    if args.dataset:
        cfg.DATASETS.TEST = (args.dataset,)
    if not cfg.DATASETS.TEST:
        raise ValueError("DATASETS.TEST is empty: name a data set with --dataset.")
    cfg.freeze()
    return without_calibration(cfg)


def check(cfg: CfgNode, args: argparse.Namespace) -> None:
    """Finds mistakes before processes start."""
    for text in args.calibrations:
        check_calibration(text, cfg.MODEL.ROI_HEADS.NUM_CLASSES, bool(args.stats))
    check_datasets(cfg.DATASETS.TEST[:1])
    check_weights(cfg.MODEL.WEIGHTS)
    check_output_folder(args.output)
    if args.stats:
        check_statistics(cfg, args.stats)


def make_calibrations(
    cfg: CfgNode, args: argparse.Namespace, model: torch.nn.Module
) -> dict[str, list[AffineCalibration]]:
    """Name -> one calibration for each box predictor of the model."""
    predictors, num_classes = find_box_predictors(model), cfg.MODEL.ROI_HEADS.NUM_CLASSES
    statistics = check_statistics(cfg, args.stats) if args.stats else None
    if statistics is not None:
        statistics.check(
            num_classes=num_classes,
            num_stages=len(predictors),
            fingerprints=[predictor_fingerprint(predictor) for predictor in predictors],
        )
    # Counting the classes of LVIS takes a while, and most calibrations do not need it.
    counts = functools.cache(lambda: class_counts(tuple(cfg.DATASETS.TRAIN)))
    return {
        text: stage_calibrations(
            text,
            num_classes=num_classes,
            num_stages=len(predictors),
            statistics=statistics,
            counts=counts,
        )
        for text in args.calibrations
    }


def main(args: argparse.Namespace) -> None:
    """What every process does."""
    with short_errors():
        for name in ("detectron2", "logn_d2"):
            setup_logger(args.output, distributed_rank=comm.get_rank(), name=name)
        cfg = setup(args)
        dataset = cfg.DATASETS.TEST[0]
        model = build_model(cfg)
        weights = load_weights(model, cfg.MODEL.WEIGHTS, cfg.OUTPUT_DIR, resume=False)
        truth = LvisGroundTruth.from_json(MetadataCatalog.get(dataset).json_file)
        predictions = sweep(
            model,
            lambda skip: build_evaluation_loader(cfg, dataset, skip=skip),
            make_calibrations(cfg, args, model),
            average=cfg.MODEL.LOGN.CASCADE_AVERAGE,
            ground_truth=truth,
            output_dir=os.path.join(args.output, "sweep"),
            resume=args.resume,
            settings=deciding_settings(cfg),
        )
        if not comm.is_main_process():
            return
        metrics = evaluate_sweep(predictions, truth)
        rows = tuple(ResultRow(name, by_task) for name, by_task in metrics.items())
        provenance = {
            "data set": dataset,
            "weights": weights,
            "statistics": args.stats,
            "machine": machine(),
            "versions": versions(),
            "commit": commit(),
        }
        Results(rows, provenance).save(os.path.join(args.output, "results.json"))
        print(format_table(metrics))


def run(args: argparse.Namespace) -> int:
    """Checks, then starts the processes; returns the exit code."""
    with short_errors():
        cfg = setup(args)
        check(cfg, args)
        num_processes = args.num_processes if cfg.MODEL.DEVICE == "cpu" else args.num_gpus
        try:
            launch(main, num_processes, device=cfg.MODEL.DEVICE, args=(args,))
        except ProcessExitedException as error:  # which has said why
            return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(run(parse_args()))
