"""`logn sweep`: sweep over calibrations with the network or stored outputs; results and table."""

from __future__ import annotations

import argparse
import functools
import itertools
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger
from torch import nn

from .. import UNCALIBRATED
from ..analysis import format_table
from ..classification.accuracy import accuracy_table
from ..core import AffineCalibration, expand_grid, stage_calibrations
from ..data import records_kept
from ..engine import load_config, short_errors
from ..engine.checkpoint import load_model
from ..engine.checks import (
    check_calibration,
    check_classes,
    check_datasets,
    check_output_folder,
    check_statistics,
    check_weights,
)
from ..engine.evaluation import read_ground_truth, sweep_dataset
from ..engine.experiments import has_begun
from ..engine.image_sweep import ImageSweep
from ..engine.images import check_image_sets, classifies_images
from ..engine.statistics import without_calibration
from ..errors import UserError
from ..files import write_text
from ..lvis.ground_truth import LvisGroundTruth
from ..modeling.attach import calibrations_at, find_sites
from ..modeling.box_predictors import check_calibratable
from ..modeling.build import TrainingClassCounts
from ..ood import ood_table, score_figures
from ..provenance import provenance
from ..results import ResultRow, Results
from ..sites import ROI_HEADS, config_site
from ..sweeps import (
    StoredOutputs,
    SweepDetections,
    best_of_grid,
    evaluate_sweep,
    sweep_stored,
    without_known_classes,
)
from .run import processes_here, start
from .unknown_objects import (
    check_for_unknown_objects,
    compare_unknown_objects,
    known_store,
    unknown_store,
)

logger = logging.getLogger("logn_d2.sweep")

Metrics = Mapping[str, Mapping[str, Mapping[str, float]]]


def setup(args: argparse.Namespace) -> CfgNode:
    """Load the config of the command line, which registers data sets."""
    cfg = load_config(args.config_file, args.opts, args.imports)
    # From its option or its key; the model itself returns raw logits.
    args.stats = cfg.MODEL.LOGN.STATISTICS
    if not cfg.DATASETS.TEST:
        raise UserError("DATASETS.TEST is empty: name a data set with --dataset.")
    return without_calibration(cfg)


def check(cfg: CfgNode, args: argparse.Namespace) -> None:
    """Find mistakes before processes start."""
    if classifies_images(cfg):
        check_for_images(cfg, args)
    elif args.odin is not None:
        raise UserError(
            f"--odin changes images by the gradient of an image classifier; this is a "
            f"{cfg.MODEL.META_ARCHITECTURE}. Omit it."
        )
    elif args.ood:
        check_for_unknown_objects(cfg, args)
    elif config_site(cfg) is not ROI_HEADS and (args.save_outputs or args.from_outputs):
        raise UserError(
            f"The outputs of a {cfg.MODEL.META_ARCHITECTURE} can't be stored: its candidates have "
            "no boxes before its own inference. Omit --save-outputs and --from-outputs."
        )
    for text in args.calibrations:
        check_calibration(cfg, text, bool(args.stats))
    datasets = [*cfg.DATASETS.TEST[:1], *([args.choose_on] if args.choose_on else [])]
    check_datasets(datasets)
    check_classes(cfg, datasets)
    check_output_folder(args.output)
    if args.from_outputs:
        stored = StoredOutputs.load(args.from_outputs)
        truth = read_ground_truth(cfg.DATASETS.TEST[0])
        stored.check(truth)
    else:
        check_weights(cfg.MODEL.WEIGHTS)
    if args.save_outputs:
        check_output_folder(args.save_outputs)
    if args.stats:
        check_statistics(cfg, args.stats)


def check_for_images(cfg: CfgNode, args: argparse.Namespace) -> None:
    """Find mistakes that only a sweep of an image classifier can have."""
    if args.save_outputs or args.from_outputs:
        raise UserError(
            "A sweep of an image classifier always keeps the logits, in the folder of --output, "
            "and reuses them with --resume. Omit --save-outputs and --from-outputs."
        )
    if args.odin is not None and not (args.ood and 0 <= args.odin <= 1):
        raise UserError(
            f"--odin changes pixels by {args.odin} of their range, expected a share in [0, 1], and "
            "sets of unknown images with --ood."
        )
    check_datasets(args.ood)
    # Images that chose a temperature or count as unknown can't be those that are evaluated.
    others = [args.choose_on] if args.choose_on else []
    check_image_sets([*cfg.DATASETS.TEST[:1], *others, *args.ood])
    if cfg.DATASETS.TEST[0] in (*others, *args.ood):
        raise UserError(
            f"'{cfg.DATASETS.TEST[0]}' is the evaluated set. --choose-on, which also fits a "
            "temperature, and --ood need other images."
        )


def make_calibrations(
    cfg: CfgNode, args: argparse.Namespace, make: Callable[..., list[AffineCalibration]]
) -> dict[str, list[AffineCalibration]]:
    """Name -> one calibration for each box predictor, as `calibrations_at` makes them."""
    statistics = check_statistics(cfg, args.stats) if args.stats else None
    counts = TrainingClassCounts(cfg)
    with records_kept(cfg.DATASETS.TRAIN):  # FRACAL counts classes and reads their places
        return {t: make(t, statistics=statistics, counts=counts) for t in args.calibrations}


def load_network(
    cfg: CfgNode, args: argparse.Namespace
) -> tuple[nn.Module, str, dict[str, list[AffineCalibration]]]:
    """The model with its weights, the source of the weights, and the calibrations."""
    model, weights = load_model(cfg)
    make = functools.partial(calibrations_at, find_sites(model))
    return model, weights, make_calibrations(cfg, args, make)


class NetworkSweep:
    """Sweep with the network."""

    def __init__(self, cfg: CfgNode, args: argparse.Namespace) -> None:
        self._cfg, self._args = cfg, args
        self._model, weights, self.calibrations = load_network(cfg, args)
        self.provenance = {"weights": weights}

    def __call__(self, dataset: str, folder: str, store: str | None = None) -> SweepDetections:
        """Detections in a data set, which go to a folder."""
        return self._swept(dataset, read_ground_truth(dataset), folder, store)

    def unknown(self, dataset: str, folder: str, store: str) -> None:
        """Detections in images without any of the classes; the outputs are stored."""
        # None of the detector's classes is verified there, so the sweep computes no masks.
        truth = read_ground_truth(dataset, masks=False)
        truth = without_known_classes(truth, config_site(self._cfg).classes_in(self._cfg))
        self._swept(dataset, truth, folder, store)

    def _swept(
        self, dataset: str, truth: LvisGroundTruth, folder: str, store: str | None
    ) -> SweepDetections:
        return sweep_dataset(
            *(self._cfg, self._model, dataset, self.calibrations, folder),
            ground_truth=truth,
            resume=self._args.resume,
            overwrite=self._args.overwrite,
            store=store,
            max_boxes=self._args.max_boxes,
            store_info={"data set": dataset, **self.provenance},
        )


class StoredSweep:
    """Sweep with stored outputs."""

    def __init__(self, cfg: CfgNode, args: argparse.Namespace) -> None:
        self._cfg, self._args = cfg, args
        self._stored = StoredOutputs.load(args.from_outputs)
        self.provenance = {**self._stored.info, "outputs": args.from_outputs}
        make = functools.partial(
            stage_calibrations,
            num_classes=self._stored.num_classes,
            num_stages=self._stored.num_stages,
            classifiers=self._stored.classifiers(),
            fingerprints=self._stored.fingerprints,
        )
        self._calibrations = make_calibrations(cfg, args, make)

    def __call__(self, dataset: str, folder: str, store: str | None = None) -> SweepDetections:
        """Detections in a data set, which go to a folder."""
        return sweep_stored(
            self._stored,
            self._calibrations,
            average=self._cfg.MODEL.LOGN.CASCADE_AVERAGE,
            ground_truth=read_ground_truth(dataset),
            output_dir=folder,
            overwrite=self._args.overwrite,
            device=self._cfg.MODEL.DEVICE,
        )


def work(args: argparse.Namespace) -> None:
    """The work of each process."""
    with short_errors():
        for name in ("detectron2", "logn_d2"):
            setup_logger(args.output, distributed_rank=comm.get_rank(), name=name)
        cfg = setup(args)
        if classifies_images(cfg):
            sweep_images(cfg, args)
            return
        dataset = cfg.DATASETS.TEST[0]
        find = (StoredSweep if args.from_outputs else NetworkSweep)(cfg, args)
        others = None
        if args.choose_on and args.grids:
            others = find(args.choose_on, os.path.join(args.output, "sweep_to_choose"))
        swept = find(dataset, os.path.join(args.output, "sweep"), known_store(args))
        for other in args.ood:
            folder = os.path.join(args.output, f"sweep_{other}")
            find.unknown(other, folder, unknown_store(args, other))
        # Only now: the others had to take part in every pass.
        if not comm.is_main_process():
            return
        keep_config(cfg, Path(args.output))
        truth = read_ground_truth(dataset, cfg.DATASETS.TRAIN)
        metrics = evaluate_sweep(swept, truth, per_class_folder=args.output)
        chooses = metrics
        if others is not None:
            # Boxes alone: the choice is by box AP.
            chooses = evaluate_sweep(others, read_ground_truth(args.choose_on), ("bbox",))
        chosen = [best_of_grid(chooses, members) for members in args.grids]
        save(args, dataset, metrics, find.provenance, chosen)
        print(format_table(metrics, chosen))
        say_where_chosen("box AP", chosen, args, dataset)
        if args.ood:
            compare_unknown_objects(cfg, args, find.calibrations, swept)


def sweep_images(cfg: CfgNode, args: argparse.Namespace) -> None:
    """The work for an image classifier: accuracies, and unknown inputs."""
    dataset, chosen_on = cfg.DATASETS.TEST[0], args.choose_on
    model, weights, calibrations = load_network(cfg, args)
    if len(calibrations) > 1:
        check_calibratable(model)
    images = ImageSweep(
        cfg, model, calibrations, args.output, resume=args.resume, odin_noise=args.odin
    )
    # Every process takes part in a pass, so all passes come before the others leave.
    for name in filter(None, (dataset, chosen_on, *args.ood)):
        images.logits(name)
    for name in (dataset, *args.ood) if args.ood else ():
        images.collect_scores(name)
    if not comm.is_main_process():
        return
    keep_config(cfg, Path(args.output))
    results = images.results(dataset)
    metrics = {name: {"image": found.as_dict()} for name, found in results.items()}
    chooses = metrics
    if chosen_on:
        others = images.results(chosen_on)
        chooses = {name: {"image": found.as_dict()} for name, found in others.items()}
        for name, found in images.temperatures(dataset, chosen_on).items():
            metrics[name]["image"].update(found)
    chosen = [best_of_grid(chooses, members, "image", "acc") for members in args.grids]
    print(accuracy_table({name: found["image"] for name, found in metrics.items()}, marked=chosen))
    for other in args.ood:
        separated = images.unknown(dataset, other)
        for name, by_score in separated.items():
            metrics[name][f"ood {other}"] = score_figures(by_score)
        rows = {
            f"{n}: {s}": found for n, scores in separated.items() for s, found in scores.items()
        }
        print(f"\n{dataset} against {other}, in percent\n\n{ood_table(rows)}")
    say_where_chosen("accuracy", chosen, args, dataset)
    images.write(dataset, results)
    save(args, dataset, metrics, {"weights": weights}, chosen)


def say_where_chosen(
    what: str, chosen: Sequence[str], args: argparse.Namespace, dataset: str
) -> None:
    """Explain the stars of the table."""
    if chosen:
        print(f"\n* best {what} of its grid on {args.choose_on or dataset}")
        if not args.choose_on:
            print(
                "  The choice used the evaluated images, so its figures are too optimistic.\n"
                "  Choose on other images with --choose-on DATASET."
            )


def keep_config(cfg: CfgNode, folder: Path) -> None:
    """Write the config for the report, unless the folder is a training's and has its own."""
    # The report reads names of data sets from it; a training's must stay as it was trained.
    if not has_begun(folder):
        write_text(folder / "config.yaml", cfg.dump())


def save(
    args: argparse.Namespace,
    dataset: str,
    metrics: Metrics,
    found: Mapping[str, Any],
    chosen: Sequence[str],
) -> None:
    """Write the report's input: tasks for which all calibrations were evaluated.

    Args:
        args (Namespace): the command line.
        dataset (str): the evaluated set.
        metrics (Mapping): calibration -> task -> metric.
        found (Mapping): further provenance, such as the weights.
        chosen (Sequence[str]): the best of each grid.
    """
    choice = {"chosen": chosen, "chosen on": args.choose_on or dataset} if chosen else {}
    about = {**provenance(dataset, statistics=args.stats), **found, **choice}
    # A calibration from stored outputs may lack masks, and a row without mask AP could not be
    # compared.
    common = set.intersection(*(set(by_task) for by_task in metrics.values()))
    rows = tuple(
        ResultRow(name, {task: value for task, value in by_task.items() if task in common})
        for name, by_task in metrics.items()
    )
    Results(rows, about).save(os.path.join(args.output, "results.json"))


def run(args: argparse.Namespace) -> int:
    """Run the checks, then start the processes; return the exit status."""
    with short_errors():
        expanded = [expand_grid(text) for text in args.calibrations]
        args.grids = [members for members in expanded if len(members) > 1]
        # Each once, in the given order, the baseline of all differences first.
        args.calibrations = list(dict.fromkeys([UNCALIBRATED, *itertools.chain(*expanded)]))
        cfg = setup(args)
        check(cfg, args)
        here = processes_here(cfg.MODEL.DEVICE, args.num_gpus, args.num_processes)
        start(work, args, cfg.MODEL.DEVICE, here)
    return 0
