"""A report from run folders: finds annotations, class counts, statistics and images."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from logn_d2.core import LogitStatistics, frequency_groups
from logn_d2.data import class_counts
from logn_d2.evaluation.lvis_ground_truth import LvisGroundTruth

from .comparison import Comparison, Settings, compare
from .gallery import Gallery, make_gallery
from .page import Report
from .results import ClassInfo
from .run_folder import Run, RunFolder

__all__ = ["make_report"]

logger = logging.getLogger(__name__)


def make_report(
    runs: Sequence[Run],
    *,
    focus: str | None = None,
    settings: Settings | None = None,
    pictures: int = 16,
    statistics: Sequence[str | os.PathLike[str]] = (),
    command: str = "",
    title: str = "",
) -> Report:
    """Computes all that a page tells of some runs.

    Args:
        runs (Sequence[Run]): see `open_runs`; their data set is registered.
        focus (str): name or calibration of the run that the page is about; None for the second.
        settings (Settings): None for the default ones.
        pictures (int): images in the gallery; 0 for none.
        statistics (Sequence[PathLike]): files beside those of the runs, such as one of positives
            alone.
        command (str): that makes the page, which tells it.
        title (str): of the page; "" names the data set.

    Returns:
        Report: for `write_report`.

    Raises:
        KeyError: no run is called `focus`.
        ValueError: the annotations do not fit the runs.
        FileNotFoundError: there are no annotations.
    """
    dataset = runs[0].folder.dataset
    truth = LvisGroundTruth.from_json(_annotations(dataset))
    settings = settings or Settings()
    classes = _class_info(truth, [run.folder for run in runs], settings.groups)
    comparison = compare(runs, truth, classes, focus=focus, settings=settings)
    gallery, notes = None, []
    if pictures > 0:
        try:
            gallery = _gallery(comparison, dataset, pictures)
        except FileNotFoundError as error:
            notes.append("There are no pictures: the images of the data set are not here.")
            logger.warning("The report has no pictures: %s", error)
    return Report(
        comparison,
        statistics=_statistics(runs) | {str(p): LogitStatistics.load(p) for p in statistics},
        gallery=gallery,
        notes=notes,
        command=command,
        title=title or f"Calibrations on {dataset}",
    )


def _annotations(dataset: str) -> str:
    """The json file of a registered data set."""
    if dataset not in DatasetCatalog.list():
        raise ValueError(
            f"The runs are of the data set '{dataset}', which is not registered. Register it as "
            "the run did (its config, MODEL.LOGN.DATASETS), or give --annotations FILE."
        )
    path = MetadataCatalog.get(dataset).get("json_file", None)
    if path is None:
        raise ValueError(
            f"The metadata of the data set '{dataset}' has no json_file. Give --annotations FILE."
        )
    return path


def _class_info(
    truth: LvisGroundTruth, folders: Sequence[RunFolder], groups: Sequence[str] | None
) -> ClassInfo:
    """The classes with their counts in training, from where these are known first."""
    for folder in folders:
        known = None if folder.results is None else folder.results.classes
        if known is not None and known.names == truth.class_names:
            return known if groups is None else replace(known, groups=tuple(groups))
    images, objects = _counts(truth, folders)
    if groups is None:
        groups = (truth.groups if truth.groups is not None else frequency_groups(images)).tolist()
    return ClassInfo(truth.class_names, truth.class_names, tuple(groups), images, objects)


def _counts(truth: LvisGroundTruth, folders: Sequence[RunFolder]) -> tuple[np.ndarray, np.ndarray]:
    """Training images and objects of each class, (K,) each: as the annotations say, or counted.

    LVIS's annotations of the validation set tell the counts of the training set.
    """
    with open(truth.json_file, encoding="utf-8") as file:
        categories = sorted(json.load(file)["categories"], key=lambda category: category["id"])
    names = ("image_count", "instance_count")
    if all(name in category for category in categories for name in names):
        told = [[category[name] for category in categories] for name in names]
        return tuple(np.array(each, dtype=np.int64) for each in told)
    train_sets = next((folder.train_sets for folder in folders if folder.train_sets), ())
    if not train_sets:
        raise ValueError(
            f"The annotations of {folders[0].dataset} do not tell in how many training images each "
            "class is, and no run says what it was trained on. Give --config-file C.yaml, whose "
            "DATASETS.TRAIN names the training set."
        )
    counts = class_counts(train_sets)
    if counts.class_names != truth.class_names:
        raise ValueError(
            f"{', '.join(train_sets)} has {len(counts.class_names)} classes, the annotations of "
            f"{folders[0].dataset} have {truth.num_classes}, or in another order."
        )
    return counts.image_count, counts.instance_count


def _statistics(runs: Sequence[Run]) -> dict[str, LogitStatistics]:
    """Of each folder that has some."""
    folders = {str(run.folder.path): run.folder for run in runs}
    found = {name: folder.statistics for name, folder in folders.items()}
    return {name: each for name, each in found.items() if each is not None}


def _gallery(comparison: Comparison, dataset: str, pictures: int) -> Gallery:
    files = {record["image_id"]: record["file_name"] for record in DatasetCatalog.get(dataset)}

    def read_image(image_id: int | str) -> np.ndarray:
        path = Path(files[image_id])
        if not path.is_file():
            raise FileNotFoundError(f"There is no image {path}.")
        return np.asarray(Image.open(path).convert("RGB"))

    return make_gallery(
        comparison.truth,
        *(run.detections for run in comparison.pair),
        read_image,
        comparison.classes,
        max_images=pictures,
        names=tuple(run.name for run in comparison.pair),
    )
