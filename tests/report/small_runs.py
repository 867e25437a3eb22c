"""Small run folders in the programs' format, with their known content. No detector runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from logn_d2.analysis.bootstrap import BootstrapResult
from logn_d2.core import LogitStatistics, StageStatistics
from logn_d2.data import register_lvis_form
from logn_d2.lvis.detections import Detections
from logn_d2.lvis.ground_truth import LvisGroundTruth
from logn_d2.report import (
    ClassInfo,
    Comparison,
    Report,
    Run,
    RunFolder,
    Settings,
    make_report,
    open_runs,
)
from logn_d2.report.compared import TaskFigures
from logn_d2.report.words import display_name
from logn_d2.sweeps.detections_folder import ImageDetections, SweepWriter

from ..lvis.lvis_reference import random_detections, random_lvis, write_json

__all__ = [
    "CALIBRATIONS",
    "MAX_DETS",
    "RESAMPLES",
    "SmallRuns",
    "figures_comparison",
    "make_small_runs",
    "small_report",
]

CALIBRATIONS = ("uncalibrated", "logn_mean", "logn", "norcal(gamma=0.6)")
RESAMPLES = 8
MAX_DETS = 12
"""Fewer than some images have, so that fixed AP differs from AP."""


@dataclass(frozen=True)
class SmallRuns:
    """A data set and the folder of a sweep over it.

    Attributes:
        folder (Path): of the sweep.
        dataset (str): registered name.
        content (dict): of the annotations' json.
        json_file (Path): where these are.
        results (dict): calibration -> its detections in LVIS's result format.
        mean (ndarray): (K,) of the raw logits.
        std (ndarray): (K,) likewise.
    """

    folder: Path
    dataset: str
    content: dict[str, Any]
    json_file: Path
    results: dict[str, list[dict[str, Any]]]
    mean: np.ndarray
    std: np.ndarray

    @property
    def truth(self) -> LvisGroundTruth:
        """The annotations."""
        return LvisGroundTruth.from_json(self.json_file)


def make_small_runs(
    folder: Path,
    dataset: str,
    seed: int = 0,
    change: Callable[[dict[str, Any]], None] = lambda content: None,
) -> SmallRuns:
    """Draws annotations, images and detections, and registers the data set.

    Args:
        folder (Path): for all files.
        dataset (str): the name to register.
        seed (int): of the drawing.
        change (Callable): makes the annotations other than LVIS's, in place.
    """
    rng = np.random.default_rng(seed)
    content = random_lvis(rng, num_images=16)
    for index, category in enumerate(content["categories"]):
        category["instance_count"] = 3 * category["image_count"] + index
    change(content)
    json_file = write_json(folder / "annotations.json", content)
    for image in content["images"]:
        pixels = rng.integers(0, 255, (image["height"], image["width"], 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / image["file_name"])
    register_lvis_form(dataset, json_file, folder, replace=True)
    union = random_detections(rng, content)
    # Single precision, as a detector's scores are, and no two alike.
    draw = rng.permutation(len(CALIBRATIONS) * len(union)).astype(np.float32)
    scores = ((draw + 1) / np.float32(draw.size + 2)).reshape(len(CALIBRATIONS), -1)
    output = folder / "run"
    _write_sweep(output / "sweep", content, union, scores)
    (output / "config.yaml").write_text(
        f"DATASETS:\n  TEST: [{dataset}]\n  TRAIN: [{dataset}]\nMODEL:\n  WEIGHTS: detector.pth\n"
    )
    num_classes = len(content["categories"])
    mean, std = rng.normal(-4, 1, num_classes), rng.uniform(1, 2, num_classes)
    names = tuple(category["name"] for category in content["categories"])
    _statistics(mean, std, names).save(output / "logn_stats.safetensors")
    results = {
        name: [{**each, "score": float(s)} for each, s in zip(union, scores[row], strict=True)]
        for row, name in enumerate(CALIBRATIONS)
    }
    return SmallRuns(output, dataset, content, json_file, results, mean, std)


def _write_sweep(
    folder: Path, content: Mapping[str, Any], union: Sequence[dict], scores: np.ndarray
) -> None:
    category_ids = sorted(category["id"] for category in content["categories"])
    writer = SweepWriter(CALIBRATIONS, folder, "digest")
    writer.add(
        ImageDetections(
            image_ids=tuple(image["id"] for image in content["images"]),
            union=Detections.from_json_list(union, category_ids),
            index=tuple(np.arange(len(union)) for _ in CALIBRATIONS),
            score=tuple(scores),
        )
    )
    writer.finish()


def _statistics(mean: np.ndarray, std: np.ndarray, names: tuple[str, ...]) -> LogitStatistics:
    stage = StageStatistics(
        mean=torch.from_numpy(np.append(mean, 3.0)),
        var=torch.from_numpy(np.append(std, 1.0) ** 2),
        count=torch.full((len(names) + 1,), 500),
    )
    return LogitStatistics((stage,), names, num_images=10, num_rois=500)


def figures_comparison(
    figures: Mapping[str, Mapping[str, float]],
    *,
    tasks: Sequence[str] = ("bbox",),
    spread: float = 1.0,
) -> Comparison:
    """A comparison of given figures, for what looks at figures alone.

    Args:
        figures (Mapping): calibration -> metric -> percent; the first one is the baseline.
        tasks (Sequence[str]): that all have these figures.
        spread (float): half the width of intervals in points, 0 for none.
    """
    folder = RunFolder(Path("run"), Path("run"), "some_val")
    runs = tuple(Run(display_name(name), name, folder) for name in figures)
    made = {
        (run.name, task): TaskFigures(
            _result(figures[run.calibration], spread),
            _result(_less(figures[run.calibration], figures[runs[0].calibration]), spread),
            np.zeros(1),
        )
        for run in runs
        for task in tasks
    }
    truth = LvisGroundTruth.from_dict(
        {"images": [{"id": 1}], "categories": [{"id": 1, "name": "a"}], "annotations": []}
    )
    classes = ClassInfo(("a",), ("a",), ("r",), np.ones(1), np.ones(1))
    return Comparison(runs, runs[1], classes, Settings(), made, truth=truth)


def _less(figures: Mapping[str, float], first: Mapping[str, float]) -> dict[str, float]:
    return {metric: value - first[metric] for metric, value in figures.items()}


def _result(figures: Mapping[str, float], spread: float) -> BootstrapResult:
    shares = {metric: value / 100 for metric, value in figures.items()}
    offsets = np.linspace(-spread, spread, 41) / 100 if spread else np.full(1, np.nan)
    return BootstrapResult(
        estimate=shares,
        samples={metric: share + offsets for metric, share in shares.items()},
        per_class_estimate=np.zeros(1),
        per_class_samples=np.zeros((1, 1)),
        class_names=("a",),
        bounds=(-1.0, 1.0),
    )


def small_report(runs: SmallRuns, **changes: Any) -> Report:
    """A report of all calibrations, with few resamples and pictures."""
    settings = Settings(resamples=RESAMPLES, max_dets=MAX_DETS, score_threshold=0.6)
    return make_report(open_runs([str(runs.folder)]), settings=settings, pictures=4, **changes)
