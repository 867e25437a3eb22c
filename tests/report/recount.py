"""The content of a page, and its figures recomputed from raw files by lvis-api."""

from __future__ import annotations

import copy
import functools
import math
from pathlib import Path

import numpy as np

from logn_d2.report.words import display_name

from ..analysis.tide_reference import SlowTide
from ..lvis.lvis_reference import run_lvis_api, write_json
from .small_runs import CALIBRATIONS, MAX_DETS, RESAMPLES, SmallRuns

NAMES = {display_name(calibration): calibration for calibration in CALIBRATIONS}
TASKS = ("bbox", "segm")
METRICS = ("AP", "AP50", "AP75", "APr", "APc", "APf", "AR", "AP fixed")
GROUPS = {"all": "all", "rare": "r", "common": "c", "frequent": "f"}
# The page's runs in its order: the baseline, then LogN.
ORDER = ("Uncalibrated", "LogN", "LogN, mean only", "NorCal, gamma 0.6")


def number(text: str) -> float:
    """Of a cell; NaN for a dash."""
    text = text.replace("−", "-").replace(",", "").replace("±", "").lstrip("★▲▼ ")
    return math.nan if text == "–" else float(text)


def read_cell(text: str) -> tuple[float, float, float]:
    """Value, low and high of "★ 12.3 [10.0, 14.6]"; NaN for what is not there."""
    value, _, ends = text.partition("[")
    low, high = ends.rstrip("]").split(", ") if ends else ("–", "–")
    return number(value.strip()), number(low), number(high)


def exhaustively_labelled(runs: SmallRuns, name: str) -> list[dict]:
    """Detections of a run with their kind, of pairs whose objects are all annotated."""
    partial = {
        (image["id"], category_id)
        for image in runs.content["images"]
        for category_id in image.get("not_exhaustive_category_ids", ())
    }
    slow = SlowTide(runs.content, runs.results[NAMES[name]], max_dets=MAX_DETS)
    return [d for d in slow.detections if (d["image_id"], d["category_id"]) not in partial]


def is_close(shown: float, expected: float, decimals: int = 1) -> bool:
    """Whether a number is shown rounded; a last bit may turn a half either way."""
    if math.isnan(shown) or math.isnan(expected):
        return math.isnan(shown) and math.isnan(expected)
    return abs(shown - expected) <= 0.5 * 10.0**-decimals + 1e-6


class SlowFigures:
    """lvis-api's numbers of the runs, in percent, on the images or on resamples of them."""

    def __init__(self, runs: SmallRuns, folder: Path) -> None:
        self._runs, self._folder = runs, folder
        self.figures = functools.cache(self._figures)

    def _figures(self, name: str, task: str, resample: int | None = None) -> dict[str, float]:
        """Of a run by its name on the page."""
        results = self._runs.results[NAMES[name]]
        content, results = self._resampled(results, resample)
        path = write_json(self._folder / f"{resample}.json", content)
        found = run_lvis_api(path, results, task, max_dets=MAX_DETS)
        figures = dict(found["metrics"])
        figures["AP fixed"] = run_lvis_api(path, results, task, max_dets=10**6)["metrics"]["AP"]
        return {k: math.nan if v == -1 else 100 * v for k, v in figures.items()}

    def class_ap(self, name: str, task: str) -> list[float]:
        """AP of each class."""
        results = self._runs.results[NAMES[name]]
        found = run_lvis_api(self._runs.json_file, results, task, max_dets=MAX_DETS)
        precision = found["precision"][..., 0].mean(axis=(0, 1))
        return [math.nan if ap == -1 else 100 * ap for ap in precision.tolist()]

    def _resampled(self, results: list[dict], resample: int | None) -> tuple[dict, list[dict]]:
        """The data set in which each image is there as often as it was drawn."""
        content = copy.deepcopy(self._runs.content)
        if resample is None:
            return content, results
        images = sorted(content["images"], key=lambda image: image["id"])
        rng = np.random.default_rng(0)
        for _ in range(resample + 1):
            drawn = rng.integers(len(images), size=len(images))
        made: dict[str, list[dict]] = {"images": [], "annotations": [], "results": []}
        for number, place in enumerate(sorted(drawn.tolist()), start=1):
            source = images[place]
            made["images"].append({**source, "id": number})
            for kind, entries in (("annotations", content["annotations"]), ("results", results)):
                mine = [e for e in entries if e["image_id"] == source["id"]]
                made[kind] += [{**each, "image_id": number} for each in mine]
        for number, annotation in enumerate(made["annotations"], start=1):
            annotation["id"] = number
        return {**content, **{k: made[k] for k in ("images", "annotations")}}, made["results"]

    def interval(self, names: tuple[str, ...], task: str, metric: str) -> tuple[float, float]:
        """Middle 95 % of the resamples of a run, or of what a second has more, centred."""

        def figure(resample: int | None) -> float:
            values = [self.figures(name, task, resample)[metric] for name in names]
            return values[-1] - (values[0] if len(values) == 2 else 0.0)

        samples = [figure(resample) for resample in range(RESAMPLES)]
        samples = [each for each in samples if not math.isnan(each)]
        if not samples or math.isnan(figure(None)):
            return math.nan, math.nan
        ends = np.quantile(samples, [0.025, 0.975]) + figure(None) - np.mean(samples)
        return tuple(np.clip(ends, -100.0 if len(names) == 2 else 0.0, 100.0).tolist())
