"""`logn sweep --ood` for detectors: passes over unknown images, figures, a table."""

from __future__ import annotations

import argparse
import logging
import os
from collections.abc import Mapping, Sequence

from detectron2.config import CfgNode

from ..core import AffineCalibration
from ..engine.checks import check_datasets, check_output_folder
from ..engine.evaluation import read_ground_truth
from ..errors import UserError
from ..files import write_json
from ..ood import in_percent, ood_table
from ..progress import Progress
from ..sites import ROI_HEADS, config_site
from ..sweeps import (
    StoredOutputs,
    SweepDetections,
    UnknownObjectsResult,
    evaluate_unknown_objects,
    find_known_objects,
)

logger = logging.getLogger("logn_d2.sweep")


def check_for_unknown_objects(cfg: CfgNode, args: argparse.Namespace) -> None:
    """Find mistakes before processes start."""
    if config_site(cfg) is not ROI_HEADS:
        raise UserError(
            f"--ood needs the logits of each box, which can't be stored for a "
            f"{cfg.MODEL.META_ARCHITECTURE}. It supports R-CNN and image classifiers."
        )
    if args.from_outputs or args.max_boxes:
        raise UserError(
            "--ood stores all logits and boxes of a network pass. Omit --from-outputs and "
            "--max-boxes."
        )
    if not 0 <= (args.ood_threshold or 0) <= 1:
        raise UserError(f"--ood-threshold is {args.ood_threshold}, expected a score in [0, 1].")
    check_datasets(args.ood)
    if cfg.DATASETS.TEST[0] in args.ood:
        raise UserError(
            f"'{cfg.DATASETS.TEST[0]}' is the evaluated set. --ood needs images without any of "
            "its classes."
        )
    for name in args.ood:
        check_output_folder(unknown_store(args, name))


def known_store(args: argparse.Namespace) -> str | None:
    """Folder for the raw outputs of the known images, or None."""
    # --ood measures on stored logits, also where the user did not ask for a store.
    default = os.path.join(args.output, "outputs") if args.ood else None
    return args.save_outputs or default


def unknown_store(args: argparse.Namespace, name: str) -> str:
    """Folder for the raw outputs of a set of unknown images."""
    return os.path.join(args.output, f"outputs_{name}")


def compare_unknown_objects(
    cfg: CfgNode,
    args: argparse.Namespace,
    calibrations: Mapping[str, Sequence[AffineCalibration]],
    swept: SweepDetections,
) -> None:
    """Print a table for each set and write ``unknown_SET.json``, in percent.

    Args:
        cfg (CfgNode): the detector's config.
        args (Namespace): the command line.
        calibrations (Mapping): name -> one calibration per stage; each name has its own threshold.
        swept (SweepDetections): detections in the known images under each calibration.
    """
    dataset = cfg.DATASETS.TEST[0]
    known, truth = StoredOutputs.load(known_store(args)), read_ground_truth(dataset)
    others = {
        name: (StoredOutputs.load(unknown_store(args, name)), read_ground_truth(name, masks=False))
        for name in args.ood
    }
    progress = Progress(logger, len(calibrations) * (1 + len(others)))
    found: dict[str, dict[str, UnknownObjectsResult]] = {name: {} for name in others}
    for text, stages in calibrations.items():
        options = {"calibrations": stages, "average": cfg.MODEL.LOGN.CASCADE_AVERAGE}
        # The known side is the longer one, and the same for every set of unknown images.
        progress.step(f"{text}: known objects of {dataset}")
        mine = find_known_objects(
            *(known, truth),
            threshold=args.ood_threshold,
            detections=swept.detections(text),
            **options,
        )
        for name, (unknown, unknown_truth) in others.items():
            progress.step(f"{text}: unknown objects of {name}")
            found[name][text] = evaluate_unknown_objects(
                *(known, unknown, truth, unknown_truth), known_objects=mine, **options
            )
    for name, results in found.items():
        print(f"\n{dataset} against {name}, in percent\n\n{as_text(results)}")
        content = {text: in_percent(result.as_dict()) for text, result in results.items()}
        write_json(os.path.join(args.output, f"unknown_{name}.json"), content)


def as_text(results: Mapping[str, UnknownObjectsResult]) -> str:
    """A table of all scores, and a line per calibration with AP, boxes and recall."""
    rows = {
        f"{text}: {score}": found
        for text, result in results.items()
        for score, found in result.scores.items()
    }
    lines = [ood_table(rows), ""]
    for text, each in results.items():
        found = f"{text}: known AP {100 * each.known_ap:.1f}; score >= {each.threshold:.4f} keeps "
        found += f"{each.known_boxes} boxes in {100 * each.known_images:.0f} % of the known images "
        found += f"and {each.unknown_boxes} in {100 * each.unknown_images:.0f} % of the unknown"
        if each.unknown_ap:
            aps = ", ".join(f"{name} {100 * ap:.1f}" for name, ap in each.unknown_ap.items())
            found += f", {100 * each.unknown_recall:.1f} % of whose objects are found (AP50: {aps})"
        lines.append(found)
    return "\n".join(lines)
