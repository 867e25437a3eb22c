"""The number of images that the statistics pass needs: AP against images, over several passes.

Each pass visits the training images in another random order and samples other RoIs; snapshots of
its statistics are kept. All snapshots, under LogN and its parts, are evaluated in one sweep over
the validation set: the network runs once. Boxes only. The second table shows early stopping: the
first check at which the standard error of the calibrated logits was below a tolerance.

    make demo && python benchmarks/statistics_images.py --run output/demo --output output/images

Writes OUTPUT/statistics_images.json and the tables on the terminal. The same command keeps finished
passes and resumes an interrupted sweep.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import logging
import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from common import machine
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.modeling import build_model
from tabulate import tabulate
from torch import nn

from logn_d2 import UNCALIBRATED
from logn_d2.collection import collect_statistics
from logn_d2.core import AffineCalibration, LogitStatistics, StatisticsError, stage_calibrations
from logn_d2.data.loader import build_evaluation_loader, build_statistics_loader
from logn_d2.engine import load_config
from logn_d2.engine.checkpoint import load_weights
from logn_d2.engine.statistics import without_calibration
from logn_d2.files import atomic_write
from logn_d2.lvis import LvisGroundTruth
from logn_d2.modeling import find_box_predictors
from logn_d2.modeling.box_predictors import predictor_fingerprint
from logn_d2.passes.resume import deciding_settings
from logn_d2.sweeps import evaluate_sweep, sweep

METRICS = ("AP", "APr", "APc", "APf")

# Number of images -> statistics, for one pass.
Snapshots = dict[int, LogitStatistics]


class Segment:
    """The next batches of an iterator over a whole pass."""

    def __init__(self, batches: Iterator[Sequence[Mapping[str, Any]]], length: int) -> None:
        self._batches = batches
        self._length = length

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[Sequence[Mapping[str, Any]]]:
        return itertools.islice(self._batches, self._length)


def ends_of(length: int, period: int, counts: Sequence[int]) -> list[int]:
    """Numbers of images at which a snapshot is kept: each check, each count, and the end."""
    return sorted({*range(period, length, period), *(c for c in counts if c < length), length})


def run_pass(
    model: nn.Module, cfg: CfgNode, seed: int, period: int, counts: Sequence[int]
) -> Snapshots:
    """One pass over all images, with its snapshots."""
    cfg = cfg.clone()
    cfg.MODEL.LOGN.COLLECT.SEED = seed
    loader = build_statistics_loader(cfg)
    ends = ends_of(len(loader), period, counts)
    batches, snapshots, total = iter(loader), {}, None
    for start, end in itertools.pairwise([0, *ends]):
        part = collect_statistics(
            model,
            Segment(batches, end - start),
            class_names=MetadataCatalog.get(cfg.DATASETS.TRAIN[0]).thing_classes,
            datasets=cfg.DATASETS.TRAIN,
            population=cfg.MODEL.LOGN.COLLECT.POPULATION,
            seed=seed,
        )
        # Parts of exact statistics add up to those of one pass.
        snapshots[end] = total = part if total is None else total.merge(part)
    return snapshots


def finished_pass(
    folder: Path, model: nn.Module, period: int, counts: Sequence[int]
) -> Snapshots | None:
    """Snapshots that an earlier run kept of a pass with these weights, if they suffice."""
    if not (folder / "finished").is_file():
        return None
    files = [LogitStatistics.load(path) for path in folder.glob("*.safetensors")]
    predictors = find_box_predictors(model)
    try:
        files[0].check(
            num_classes=predictors[0].num_classes,
            num_stages=len(predictors),
            fingerprints=[predictor_fingerprint(each) for each in predictors],
        )
    except StatisticsError:
        return None
    found = {each.num_images: each for each in sorted(files, key=lambda each: each.num_images)}
    return found if {*ends_of(max(found), period, counts)} <= {*found} else None


def keep_pass(folder: Path, snapshots: Snapshots) -> None:
    """Write a finished pass's snapshots."""
    for count, snapshot in snapshots.items():
        snapshot.save(folder / f"{count:07d}.safetensors")
    (folder / "finished").touch()


def stopping_points(snapshots: Snapshots, period: int, tolerances: Sequence[float]) -> dict:
    """Tolerance -> images at which the pass would have ended, and the error there."""
    errors = {count: each.sampling_error() for count, each in snapshots.items()}
    last = max(errors)
    looks = [count for count in errors if count % period == 0 or count == last]
    points = {}
    for tolerance in tolerances:
        count = next((count for count in looks if errors[count] <= tolerance), last)
        points[tolerance] = {"images": count, "error": errors[count]}
    return points


def make_calibrations(
    cfg: CfgNode, passes: Mapping[int, Snapshots], wanted: Mapping[int, set[int]], names: list[str]
) -> dict[str, list[AffineCalibration]]:
    """Name of variant, seed and count -> calibrations; the baseline first."""
    shape = {"num_classes": cfg.MODEL.ROI_HEADS.NUM_CLASSES}
    shape["num_stages"] = len(next(iter(passes[min(passes)].values())).stages)
    calibrations = {UNCALIBRATED: stage_calibrations(UNCALIBRATED, **shape)}
    for seed, snapshots in passes.items():
        for count, name in itertools.product(sorted(wanted[seed]), names):
            calibrations[label(name, seed, count)] = stage_calibrations(
                name, statistics=snapshots[count], **shape
            )
    return calibrations


def label(name: str, seed: int, count: int) -> str:
    """Name of a variant with certain statistics in the sweep."""
    return f"{name}, pass {seed}, {count} images"


def summarize(values: Sequence[float]) -> dict[str, float]:
    """Mean and spread over passes."""
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    return {
        "mean": statistics.fmean(values),
        "std": spread,
        "min": min(values),
        "max": max(values),
    }


def by_images(
    metrics: Mapping[str, Mapping],
    passes: Mapping[int, Snapshots],
    counts: Sequence[int],
    names: Sequence[str],
) -> list[dict[str, Any]]:
    """For each number of images, and all: the error, and each variant's metrics over passes."""
    rows = []
    for count in [*counts, None]:
        # Passes may differ in length if a sampler repeats images at random.
        seen = {seed: max(own) if count is None else count for seed, own in passes.items()}
        errors = [passes[seed][images].sampling_error() for seed, images in seen.items()]
        row: dict[str, Any] = {"images": max(seen.values()), "std_error": summarize(errors)}
        for name in names:
            found = [metrics[label(name, *each)]["bbox"] for each in seen.items()]
            row[name] = {m: summarize([each[m] for each in found]) for m in METRICS}
        rows.append(row)
    return rows


def by_tolerance(
    metrics: Mapping[str, Mapping],
    passes: Mapping[int, Snapshots],
    points: Mapping[int, dict],
    names: Sequence[str],
) -> list[dict[str, Any]]:
    """For each tolerance: number of images, and the loss against the whole pass."""
    rows = []
    for tolerance in next(iter(points.values())):
        images = {seed: own[tolerance]["images"] for seed, own in points.items()}
        shares = [count / max(passes[seed]) for seed, count in images.items()]
        row: dict[str, Any] = {
            "tolerance": tolerance,
            "reached": [own[tolerance]["error"] <= tolerance for own in points.values()],
            "images": list(images.values()),
            "share": statistics.fmean(shares),
        }
        for name in names:
            stopped = [metrics[label(name, *each)]["bbox"]["AP"] for each in images.items()]
            whole = [metrics[label(name, s, max(passes[s]))]["bbox"]["AP"] for s in images]
            row[name] = summarize([a - b for a, b in zip(stopped, whole, strict=True)])
        rows.append(row)
    return rows


def print_tables(results: Mapping[str, Any]) -> None:
    """The results as Markdown."""
    names = results["calibrations"]
    baseline = results[UNCALIBRATED]
    for metric in ("AP", "APr"):
        print(f"\nBox {metric}, mean and standard deviation over {results['passes']} passes")
        print(f"(uncalibrated: {baseline[metric]:.2f}):\n")
        lines = [
            [
                f"{row['images']:,}",
                f"{row['std_error']['mean']:.3f}",
                *(f"{row[n][metric]['mean']:.2f} ± {row[n][metric]['std']:.2f}" for n in names),
            ]
            for row in results["by_images"]
        ]
        print(tabulate(lines, ["images", "std error", *names], "pipe", disable_numparse=True))
    print("\nBox AP minus the whole pass's (largest difference), where a pass would have ended:\n")
    lines = [
        [
            f"{row['tolerance']:g}" + ("" if all(row["reached"]) else " (not reached)"),
            ", ".join(map(str, row["images"])),
            f"{row['share']:.1%}",
            *(f"{row[n]['mean']:+.2f} ({max(row[n]['max'], -row[n]['min']):.2f})" for n in names),
        ]
        for row in results["by_tolerance"]
    ]
    print(tabulate(lines, ["tolerance", "images", "share", *names], "pipe", disable_numparse=True))


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--run", type=Path, required=True, help="folder of a finished training")
    parser.add_argument("--weights", type=Path, help="default: model_final.pth of the run")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR")
    parser.add_argument(
        "--images", type=int, nargs="+", default=[50, 100, 200, 500, 1000, 2000], help="and all"
    )
    parser.add_argument("--passes", type=int, default=3, help="number of passes, a seed each")
    parser.add_argument("--tolerances", type=float, nargs="+", default=[0.2, 0.1, 0.05, 0.03])
    parser.add_argument("--period", type=int, default=100, help="images between two checks")
    parser.add_argument(
        "--calibrations", nargs="+", default=["logn", "logn_no_beta", "logn_mean", "logn_std"]
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="config keys to change")
    return parser.parse_args(argv)


def setup(args: argparse.Namespace) -> CfgNode:
    """The run's config, without masks and calibration."""
    cfg = without_calibration(load_config(args.run / "config.yaml", args.opts))
    cfg.MODEL.MASK_ON = False
    cfg.MODEL.LOGN.COLLECT.STOP_AT = 0.0
    cfg.MODEL.LOGN.COLLECT.ESTIMATOR = "exact"
    return cfg


def study(args: argparse.Namespace) -> dict[str, Any]:
    """All passes, the sweep, and the results."""
    cfg = setup(args)
    model = build_model(cfg).eval()
    weights = str(args.weights or args.run / "model_final.pth")
    load_weights(model, weights, cfg.OUTPUT_DIR, resume=False)
    passes = {}
    for seed in range(args.passes):
        folder = args.output / f"pass{seed}"
        passes[seed] = finished_pass(folder, model, args.period, args.images)
        if passes[seed] is None:
            passes[seed] = run_pass(model, cfg, seed, args.period, args.images)
            keep_pass(folder, passes[seed])
        print(f"pass {seed}: {max(passes[seed]):,} images", flush=True)
    shortest = min(max(snapshots) for snapshots in passes.values())
    counts = sorted(count for count in args.images if count < shortest)
    points = {
        seed: stopping_points(snapshots, args.period, args.tolerances)
        for seed, snapshots in passes.items()
    }
    wanted = {
        seed: {*counts, max(passes[seed]), *(point["images"] for point in own.values())}
        for seed, own in points.items()
    }
    dataset = cfg.DATASETS.TEST[0]
    truth = LvisGroundTruth.from_json(MetadataCatalog.get(dataset).json_file)
    swept = sweep(
        model,
        functools.partial(build_evaluation_loader, cfg, dataset),
        make_calibrations(cfg, passes, wanted, args.calibrations),
        average=cfg.MODEL.LOGN.CASCADE_AVERAGE,
        ground_truth=truth,
        output_dir=args.output / "sweep",
        resume=True,
        settings=deciding_settings(cfg),
    )
    metrics = evaluate_sweep(swept, truth, tasks=("bbox",))
    return {
        "machine": machine(),
        "weights": weights,
        "data sets": [*cfg.DATASETS.TRAIN, dataset],
        "passes": args.passes,
        "period": args.period,
        "calibrations": args.calibrations,
        UNCALIBRATED: {name: metrics[UNCALIBRATED]["bbox"][name] for name in METRICS},
        "by_images": by_images(metrics, passes, counts, args.calibrations),
        "by_tolerance": by_tolerance(metrics, passes, points, args.calibrations),
    }


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    torch.set_num_threads(args.threads)
    logging.disable(logging.INFO)
    results = study(args)
    with atomic_write(args.output / "statistics_images.json") as temporary:
        temporary.write_text(json.dumps(results, indent=2))
    print_tables(results)


if __name__ == "__main__":
    main()
