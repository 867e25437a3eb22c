"""The files of a run: detections or predictions of each calibration, statistics, provenance.

A run is a calibration in a folder that `logn train`, `logn evaluate`, `logn sweep` or `logn demo`
has written; its text form is ``FOLDER:CALIBRATION``, or ``FOLDER`` for all its calibrations.
"""

from __future__ import annotations

import functools
import glob
import itertools
import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.config import CfgNode

from .. import UNCALIBRATED
from ..classification.predictions import StoredPredictions, predictions_name
from ..core import LogitStatistics
from ..errors import MissingFileError, UserError, check_known
from ..lvis.detections import Detections
from ..lvis.ground_truth import LvisGroundTruth
from ..results import Results
from ..sweeps.detections_folder import SweepDetections
from .words import display_name

_SWEEP, _DETECTIONS = "sweep.json", "detections.npz"
_STATISTICS, _STUDY = "logn_stats.safetensors", "statistics_images.json"
# These calibrations of a folder come first: the baseline, and the subject of the page.
_FIRST = (UNCALIBRATED, "logn")


@dataclass(frozen=True, eq=False)
class RunFolder:
    """A folder with the detections on one data set.

    Attributes:
        path (Path): the user's name for it.
        source (Path): its subfolder with sweep.json or detections.npz.
        dataset (str): registered name of the evaluated data set.
        train_sets (tuple[str, ...]): registered names; empty if unknown.
        results (Results): content of results.json; None without that file.
        config (dict): content of config.yaml; empty without that file.
    """

    path: Path
    source: Path
    dataset: str
    train_sets: tuple[str, ...] = ()
    results: Results | None = None
    config: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        dataset: str | None = None,
        train_sets: Sequence[str] = (),
    ) -> RunFolder:
        """Find the files in a folder.

        Args:
            path (PathLike): folder of the run.
            dataset (str): registered name; None takes it from the run.
            train_sets (Sequence[str]): registered names, used if the run names none.

        Raises:
            FileNotFoundError: the folder has no detections.
            ValueError: detections of several data sets, or of an unknown one.
        """
        path = Path(path)
        source = cls._find(path, dataset)
        config = _read_config(path)
        results = _find_results(source, path)
        name = dataset or cls._dataset_of(source, config, results)
        if name is None:
            raise UserError(
                f"'{path}' does not name the data set of its detections: there is neither a "
                f"results.json that names it nor a config.yaml. Give --dataset NAME."
            )
        trained_on = tuple(config.get("DATASETS", {}).get("TRAIN", ()) or train_sets)
        return cls(path, source, name, trained_on, results, config)

    @staticmethod
    def _find(path: Path, dataset: str | None) -> Path:
        """The folder with the detections."""
        inference = path / "inference"
        below = sorted(inference.glob("*")) if inference.is_dir() else []
        if dataset is not None:
            below = [folder for folder in below if folder.name in (dataset, "sweep")]
        places = [path, path / "sweep", inference]
        places += [each for folder in below for each in (folder / "sweep", folder)]
        found = [p for p in places if (p / _SWEEP).is_file() or (p / _DETECTIONS).is_file()]
        if not found:
            raise MissingFileError(
                f"'{path}' has no detections (sweep/{_SWEEP} or inference/.../{_DETECTIONS}), nor "
                f"predictions of an image classifier ({predictions_name('SET')}). Make them with "
                "logn evaluate, logn sweep or logn demo."
            )
        if len(found) > 1 and dataset is None:
            listed = ", ".join(str(place.relative_to(path)) for place in found)
            raise UserError(
                f"'{path}' has several folders of detections: {listed}. Choose with --dataset NAME."
            )
        # With --dataset, the folder of that set comes last in `places`.
        return found[-1]

    @staticmethod
    def _dataset_of(source: Path, config: Mapping[str, Any], results: Results | None) -> str | None:
        """The evaluated data set: from the folder's name, else from the results or the config."""
        # inference/DATASET/ of a training, with a folder for the sweep or a calibration below.
        for folder in (source, *source.parents[:2]):
            if folder.parent.name == "inference":
                return folder.name
        provenance = {} if results is None else results.provenance
        named = provenance.get("data set")
        tested = config.get("DATASETS", {}).get("TEST", ())
        return named if isinstance(named, str) else next(iter(tested), None)

    @property
    def calibrations(self) -> tuple[str, ...]:
        """Calibrations with detections: first uncalibrated, then LogN, then the others."""
        return (UNCALIBRATED,) if self._sweep is None else _in_order(self._sweep.names)

    @property
    def provenance(self) -> Mapping[str, Any]:
        """Origin of the figures, as far as the run records it."""
        known = {} if self.results is None else dict(self.results.provenance)
        # Without results that name the weights, the run's config does.
        model = self.config.get("MODEL", {})
        if "weights" not in known and model.get("WEIGHTS"):
            known["weights"] = model["WEIGHTS"]
        return known

    @functools.cached_property
    def statistics(self) -> LogitStatistics | None:
        """The statistics of the run's calibrations; None if it has none."""
        # As named by the sweep, by the config of the evaluation, or where a training puts them.
        named = self.provenance.get("statistics")
        named = named if isinstance(named, str) else ""
        named = named or self.config.get("MODEL", {}).get("LOGN", {}).get("STATISTICS", "")
        for path in (Path(named) if named else None, self.path / _STATISTICS):
            if path is not None and path.is_file():
                return LogitStatistics.load(path)
        return None

    @functools.cached_property
    def statistics_study(self) -> Mapping[str, Any] | None:
        """Results of benchmarks/statistics_images.py; None if it was not run."""
        path = self.path / _STUDY
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None

    def detections(self, calibration: str) -> Detections:
        """Return the detections with a calibration.

        Raises:
            KeyError: the run has no such calibration; the message lists the existing ones.
        """
        self.check_has(calibration)
        if self._sweep is None:
            return Detections.load(self.source / _DETECTIONS)
        return self._sweep.detections(calibration)

    def check_has(self, calibration: str) -> None:
        """Refuse a calibration that the run does not have.

        Raises:
            KeyError: the message lists the existing ones.
        """
        check_known("calibration", calibration, self.calibrations, f" in '{self.path}'")

    def has_masks(self, calibration: str) -> bool:
        """Whether all masks that an evaluation needs are stored."""
        if self._sweep is not None:
            return self._sweep.has_masks and not self._sweep.missing_masks(calibration)
        # The names alone: an npz file reads an array only when it is asked for.
        with np.load(self.source / _DETECTIONS, allow_pickle=False) as file:
            return "mask_counts" in file.files

    def check(self, truth: LvisGroundTruth) -> None:
        """Refuse detections whose images or classes differ from those of the annotations.

        Raises:
            ValueError: the message names missing and extra images or classes, and the remedy.
        """
        known = None if self.results is None else self.results.classes
        if known is not None and known.names != truth.class_names:
            names = itertools.zip_longest(known.names, truth.class_names)
            first = next((ours, theirs) for ours, theirs in names if ours != theirs)
            raise UserError(
                f"'{self.path}' was evaluated with {len(known)} classes, the annotations of "
                f"{self.dataset} have {truth.num_classes}; the first that differs is "
                f"{first[0]!r} in the run and {first[1]!r} there. "
                "Give the annotations that the run was evaluated with (--annotations)."
            )
        if self._sweep is None:
            return
        if not self._sweep.finished:
            raise UserError(
                f"The sweep in '{self.source}' is unfinished: images are missing, which would "
                "count as missed objects. Repeat its command with --resume."
            )
        found = self._sweep.image_ids
        missing = np.setdiff1d(truth.image_ids, found)
        extra = np.setdiff1d(found, truth.image_ids)
        if len(missing) or len(extra):
            first = missing[0] if len(missing) else extra[0]
            raise UserError(
                f"The sweep in '{self.source}' has {len(found):,} images, the annotations of "
                f"{self.dataset} have {truth.num_images:,}: {len(missing):,} are missing in the "
                f"sweep and {len(extra):,} in the annotations, the first is image {first}. Sweep "
                "again, or give the annotations of these images (--annotations)."
            )

    @functools.cached_property
    def _sweep(self) -> SweepDetections | None:
        # `logn evaluate` writes a single file of detections, a sweep a folder of chunks.
        found = (self.source / _SWEEP).is_file()
        return SweepDetections.load(self.source) if found else None


class ImageRunFolder(RunFolder):
    """A folder with the predictions of an image classifier; `source` is their file."""

    @staticmethod
    def _find(path: Path, dataset: str | None) -> Path:
        found = _predictions_in(path, dataset)
        if len(found) > 1:
            listed = ", ".join(str(each.relative_to(path)) for each in found)
            raise UserError(
                f"'{path}' has predictions on several sets: {listed}. Choose with --dataset NAME."
            )
        return found[0]

    @staticmethod
    def _dataset_of(source: Path, config: Mapping[str, Any], results: Results | None) -> str:
        before, after = predictions_name("/").split("/")
        return source.name.removeprefix(before).removesuffix(after)

    @functools.cached_property
    def predictions(self) -> StoredPredictions:
        """The predictions under all calibrations."""
        return StoredPredictions.load(self.source)

    @property
    def calibrations(self) -> tuple[str, ...]:
        """Calibrations with predictions: first uncalibrated, then LogN, then the others."""
        return _in_order(self.predictions.calibrations)


@dataclass(frozen=True, eq=False)
class Run:
    """One of the runs that a report compares.

    Attributes:
        name (str): its name in the report, unique there.
        calibration (str): as written, for example "norcal(gamma=0.6)".
        folder (RunFolder): its folder.
    """

    name: str
    calibration: str
    folder: RunFolder

    def detections(self) -> Detections:
        """Read all detections, with masks if there are any; not cached, to save memory."""
        return self.folder.detections(self.calibration)

    @property
    def has_masks(self) -> bool:
        """Whether mask AP can be evaluated."""
        return self.folder.has_masks(self.calibration)


def folders_of(runs: Sequence[Run]) -> list[RunFolder]:
    """The folders of runs, each once and in order."""
    # By identity: all calibrations of a folder share one object.
    return list(dict.fromkeys(run.folder for run in runs))


def open_runs(
    texts: Sequence[str], dataset: str | None = None, train_sets: Sequence[str] = ()
) -> list[Run]:
    """Find runs by their text form.

    Args:
        texts (Sequence[str]): ``FOLDER`` or ``FOLDER:CALIBRATION``.
        dataset (str): registered name of the evaluated data set; None takes it from the runs.
        train_sets (Sequence[str]): registered names, for runs that don't name their training set.

    Returns:
        list[Run]: in the order of the texts, each once.

    Raises:
        FileNotFoundError: a folder without detections.
        KeyError: a calibration that a folder does not have.
        ValueError: runs on different data sets, or fewer than two runs.
    """
    folders: dict[str, RunFolder] = {}
    found: dict[tuple[str, str], RunFolder] = {}
    for text in texts:
        path, calibration = split_run(text)
        key = os.path.realpath(path)
        kind = ImageRunFolder if _predictions_in(Path(path), dataset) else RunFolder
        folder = folders.setdefault(key, kind.open(path, dataset, train_sets))
        for name in (calibration,) if calibration else folder.calibrations:
            folder.check_has(name)
            found[key, name] = folder
    _check_same_data(list(found.values()))
    # Counted after all folders are open: one folder may have many calibrations.
    if len(found) < 2:
        raise UserError(
            f"{', '.join(texts)} is a single run, and a report compares at least two. Evaluate "
            f"with a calibration as well, or name another run."
        )
    return list(_named(found))


def split_run(text: str) -> tuple[str, str]:
    """Folder and calibration ("" for all); either may contain a colon."""
    if os.path.isdir(text):
        return text, ""
    # The first colon after an existing folder separates: "C:" is none, and a grid has colons too.
    for place in (place for place, letter in enumerate(text) if letter == ":"):
        if os.path.isdir(text[:place]):
            return text[:place], text[place + 1 :]
    raise MissingFileError(
        f"The folder '{text.partition(':')[0]}' does not exist. Name a folder that logn evaluate, "
        "logn sweep or logn demo has written."
    )


def _named(found: Mapping[tuple[str, str], RunFolder]) -> Iterator[Run]:
    """Runs with unique names."""
    several = len({key for key, _ in found}) > 1
    short = Counter(Path(key).name for key in {key for key, _ in found})
    titles = Counter((key, display_name(calibration)) for key, calibration in found)
    for (key, calibration), folder in found.items():
        name, place = display_name(calibration), Path(key).name
        if titles[key, name] > 1:  # such as of "logn" and "logn()"
            name = calibration
        if several:
            name = f"{place if short[place] == 1 else folder.path}: {name}"
        yield Run(name, calibration, folder)


def _check_same_data(folders: Sequence[RunFolder]) -> None:
    for folder in folders[1:]:
        if folder.dataset != folders[0].dataset:
            raise UserError(
                f"'{folders[0].path}' was evaluated on {folders[0].dataset}, '{folder.path}' on "
                f"{folder.dataset}. Only runs on the same images can be compared; name the data "
                "set that all were evaluated on with --dataset."
            )


def _predictions_in(path: Path, dataset: str | None) -> list[Path]:
    """Files of predictions of an image classifier."""
    name = predictions_name("*" if dataset is None else glob.escape(dataset))
    return sorted([*path.glob(name), *path.glob(f"inference/*/{name}")])


def _in_order(names: Sequence[str]) -> tuple[str, ...]:
    """First uncalibrated, then LogN, then the others."""
    first = [name for name in _FIRST if name in names]
    return (*first, *(name for name in names if name not in first))


def _find_results(source: Path, path: Path) -> Results | None:
    for place in (source, source.parent, path):
        if (place / "results.json").is_file():
            return Results.load(place / "results.json")
    return None


def _read_config(path: Path) -> dict[str, Any]:
    """The content of config.yaml, which Detectron2 writes into a training's folder."""
    file = path / "config.yaml"
    if not file.is_file():
        return {}
    content = CfgNode.load_yaml_with_base(str(file))
    return content if isinstance(content, dict) else {}
