"""Reports from run folders: finds annotations, class counts, statistics and images."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.detection_utils import read_image
from detectron2.utils.file_io import PathManager

from ..annotations import path_of, read_annotations
from ..core import LogitStatistics
from ..data import class_counts
from ..errors import MissingFileError, UserError
from ..frequency import frequency_groups
from ..lvis.ground_truth import LvisGroundTruth
from ..results import ClassInfo
from .compared import FEW_RESAMPLES, ComparedRuns, Settings
from .gallery import Gallery, make_gallery
from .image_numbers import compare_images
from .numbers import Comparison, compare
from .page import Report
from .runs import ImageRunFolder, Run, RunFolder, folders_of
from .words import plural

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Annotations:
    """The annotation json, parsed once for all parts of a report.

    Attributes:
        truth (LvisGroundTruth): the annotations.
        counts (tuple[ndarray, ndarray] | None): training images and objects of each class, if the
            json has them, as LVIS's validation json does.
        files (Mapping): image id -> path of the image, relative to `root`.
        root (str): folder of the images.
    """

    truth: LvisGroundTruth
    counts: tuple[np.ndarray, np.ndarray] | None
    files: Mapping[int | str, str]
    root: str

    @classmethod
    def read(cls, json_file: str, root: str) -> _Annotations:
        path = PathManager.get_local_path(json_file)
        if not os.path.isfile(path):
            raise MissingFileError(f"The annotation file '{path}' does not exist.")
        content = read_annotations(path)
        truth = LvisGroundTruth.from_dict(content, json_file=path)
        categories = sorted(content["categories"], key=lambda category: category["id"])
        names, counts = ("image_count", "instance_count"), None
        # A count missing for one class would make it look rare, so partial counts are not used.
        if all(name in category for category in categories for name in names):
            told = ([category[name] for category in categories] for name in names)
            counts = tuple(np.array(each, dtype=np.int64) for each in told)
        return cls(truth, counts, {i["id"]: path_of(i) for i in content["images"]}, root)


def make_report(
    runs: Sequence[Run],
    *,
    focus: str | None = None,
    settings: Settings | None = None,
    pictures: int = 16,
    statistics: Sequence[str | os.PathLike[str]] = (),
    annotations: str | os.PathLike[str] | None = None,
    images: str | os.PathLike[str] = "",
    command: str = "",
    title: str = "",
) -> Report:
    """Compute the content of a page about some runs.

    Args:
        runs (Sequence[Run]): see `open_runs`. Of image classifiers, pictures and annotations are
            not needed.
        focus (str): name or calibration of the run that the page is about; None for the second.
        settings (Settings): None for the defaults.
        pictures (int): number of images in the gallery; 0 for none.
        statistics (Sequence[PathLike]): statistics files in addition to those of the runs, such as
            one for positives only.
        annotations (PathLike): annotations of the runs' data set; None uses the registered set.
        images (PathLike): folder of its images, with `annotations`.
        command (str): the command that makes the page, to be shown on it.
        title (str): title of the page; "" names the data set.

    Returns:
        Report: for `write_report`.

    Raises:
        KeyError: no run is called `focus`.
        ValueError: a run is unfinished, or its images or classes differ from the annotations.
        FileNotFoundError: the annotation file does not exist.
    """
    settings = settings or Settings()
    folders, gallery = folders_of(runs), None
    dataset = folders[0].dataset
    if isinstance(folders[0], ImageRunFolder):  # its predictions have labels and class counts
        title = title or f"Image classifiers on {dataset}"
        comparison = compare_images(runs, focus=focus, settings=settings)
    else:
        title = title or f"Calibrations on {dataset}"
        place = (os.fspath(annotations), os.fspath(images)) if annotations else _registered(dataset)
        logger.info("Reading %s", place[0])
        known = _Annotations.read(*place)
        for folder in folders:
            folder.check(known.truth)
        classes = _class_info(known, folders, settings.groups)
        comparison = compare(runs, known.truth, classes, focus=focus, settings=settings)
    notes = _notes(comparison)
    if pictures > 0 and isinstance(comparison, Comparison):
        logger.info("Drawing %s", plural(pictures, "picture"))
        try:
            gallery = _gallery(comparison, known, pictures)
        except FileNotFoundError as error:
            # The figures took minutes and do not need the images, so the page is written anyway.
            notes.append(
                "The page has no pictures, because the images of the data set are missing."
            )
            logger.warning("The report has no pictures: %s", error)
    return Report(
        comparison,
        statistics=_statistics(folders) | {str(p): LogitStatistics.load(p) for p in statistics},
        gallery=gallery,
        notes=notes,
        command=command,
        title=title,
    )


def _notes(comparison: ComparedRuns) -> list[str]:
    """Reasons to doubt the page, which are logged as warnings too."""
    notes, resamples = [], comparison.settings.resamples
    if resamples < FEW_RESAMPLES:
        notes.append(
            f"Intervals from only {plural(resamples, 'resample')} are mostly noise; use 1,000 "
            "(--resamples 1000)."
        )
    numbers = comparison.empty_images if isinstance(comparison, Comparison) else {}
    empty = [f"{number:,} for {name}" for name, number in numbers.items() if number]
    if empty:
        notes.append(
            f"Images without any detection, of {comparison.num_images:,}: "
            f"{'; '.join(empty)}. Their objects count as missed."
        )
    for note in notes:
        logger.warning("%s", note)
    return notes


def _registered(dataset: str) -> tuple[str, str]:
    """Annotations and image folder of a registered data set."""
    if dataset not in DatasetCatalog.list():
        raise UserError(
            f"The runs were evaluated on '{dataset}', which is not registered. Register it as the "
            f"run did (its config, MODEL.LOGN.DATASETS), or give --annotations FILE."
        )
    metadata = MetadataCatalog.get(dataset)
    path = metadata.get("json_file", None)
    if path is None:
        raise UserError(
            f"The metadata of the data set '{dataset}' has no json_file. Give --annotations FILE."
        )
    return path, metadata.get("image_root", "")


def _class_info(
    annotations: _Annotations, folders: Sequence[RunFolder], groups: Sequence[str] | None
) -> ClassInfo:
    """The classes with their training counts, from the first source that has them."""
    truth = annotations.truth
    # The demo's results have drawn characters as labels, which no annotation file has.
    for folder in folders:
        known = None if folder.results is None else folder.results.classes
        if known is not None and known.names == truth.class_names:
            return known if groups is None else replace(known, groups=tuple(groups))
    images, objects = annotations.counts or _counts(truth, folders)
    if groups is None:
        groups = (truth.groups if truth.groups is not None else frequency_groups(images)).tolist()
    return ClassInfo(truth.class_names, truth.class_names, tuple(groups), images, objects)


def _counts(truth: LvisGroundTruth, folders: Sequence[RunFolder]) -> tuple[np.ndarray, np.ndarray]:
    """Training images and objects of each class, (K,) each, counted in the training set."""
    train_sets = next((folder.train_sets for folder in folders if folder.train_sets), ())
    if not train_sets:
        raise UserError(
            f"The annotations of {folders[0].dataset} do not give the number of training images "
            f"of each class, and no run names its training set. Give --config-file C.yaml, whose "
            "DATASETS.TRAIN names the training set."
        )
    counts = class_counts(train_sets)
    if counts.class_names != truth.class_names:
        raise UserError(
            f"{', '.join(train_sets)} has {len(counts.class_names)} classes, the annotations of "
            f"{folders[0].dataset} have {truth.num_classes}; names or order differ."
        )
    return counts.image_count, counts.instance_count


def _statistics(folders: Sequence[RunFolder]) -> dict[str, LogitStatistics]:
    """The statistics of each folder that has them."""
    found = {str(folder.path): folder.statistics for folder in folders}
    return {name: each for name, each in found.items() if each is not None}


def _gallery(comparison: Comparison, annotations: _Annotations, pictures: int) -> Gallery:
    def read(image_id: int | str) -> np.ndarray:
        path = Path(annotations.root, annotations.files[image_id])
        if not path.is_file():
            raise MissingFileError(f"The image '{path}' does not exist.")
        # Like the trainer, this applies the rotation in the image's Exif data.
        return read_image(str(path), "RGB")

    names = tuple(run.name for run in comparison.pair)
    return make_gallery(
        comparison.truth,
        *(comparison.shown[name] for name in names),
        read,
        comparison.classes,
        max_images=pictures,
        names=names,
    )
