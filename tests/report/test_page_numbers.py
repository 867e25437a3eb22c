"""Every number in the tables, recomputed from raw files by lvis-api or with plain loops."""

from __future__ import annotations

import copy
import functools
import json
import math
from pathlib import Path

import numpy as np
import pytest

from logn_d2.evaluation.errors import ERROR_TYPES
from logn_d2.report.summary import display_name

from ..evaluation.lvis_reference import run_lvis_api, write_json
from ..evaluation.tide_reference import SlowTide
from .read_page import Page
from .small_runs import CALIBRATIONS, MAX_DETS, RESAMPLES, SmallRuns

NAMES = {display_name(calibration): calibration for calibration in CALIBRATIONS}
TASKS = ("bbox", "segm")
METRICS = ("AP", "AP50", "AP75", "APr", "APc", "APf", "AR", "AP fixed")
GROUPS = {"all": "all", "rare": "r", "common": "c", "frequent": "f"}
# The page's runs in its order: the baseline, then LogN.
ORDER = ("Uncalibrated", "LogN", "LogN, mean only", "NorCal, gamma 0.6")


def _number(text: str) -> float:
    """Of a cell; NaN for a dash."""
    text = text.replace("−", "-").replace(",", "").replace("±", "").lstrip("★▲▼ ")
    return math.nan if text == "–" else float(text)


def _cell(text: str) -> tuple[float, float, float]:
    """Value, low and high of "★ 12.3 [10.0, 14.6]"; NaN for what is not there."""
    value, _, ends = text.partition("[")
    low, high = ends.rstrip("]").split(", ") if ends else ("–", "–")
    return _number(value.strip()), _number(low), _number(high)


def _close(shown: float, expected: float, decimals: int = 1) -> bool:
    """Whether a number is shown rounded; a last bit may turn a half either way."""
    if math.isnan(shown) or math.isnan(expected):
        return math.isnan(shown) and math.isnan(expected)
    return abs(shown - expected) <= 0.5 * 10.0**-decimals + 1e-6


class _Truth:
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


@pytest.fixture(scope="module")
def truth(small_runs: SmallRuns, tmp_path_factory: pytest.TempPathFactory) -> _Truth:
    return _Truth(small_runs, tmp_path_factory.mktemp("resamples"))


@pytest.mark.parametrize("task", TASKS)
def test_figures_are_those_of_lvis_api(page: Page, truth: _Truth, task: str) -> None:
    head, *rows = page.tables[f"figures-{task}"]
    assert tuple(head) == ("Run", *METRICS) and tuple(row[0] for row in rows) == ORDER
    for name, *cells in rows:
        expected = truth.figures(name, task)
        for metric, cell in zip(METRICS, cells, strict=True):
            assert _close(_cell(cell)[0], expected[metric]), (name, metric, cell)
    assert any(truth.figures(n, task)["AP"] != truth.figures(n, task)["AP fixed"] for n in ORDER)


@pytest.mark.parametrize("task", TASKS)
def test_differences_are_those_of_lvis_api(page: Page, truth: _Truth, task: str) -> None:
    head, *rows = page.tables[f"changes-{task}"]
    assert tuple(head) == ("Run", *METRICS) and tuple(row[0] for row in rows) == ORDER[1:]
    first = truth.figures(ORDER[0], task)
    for name, *cells in rows:
        second = truth.figures(name, task)
        for metric, cell in zip(METRICS, cells, strict=True):
            assert _close(_cell(cell)[0], second[metric] - first[metric]), (name, metric, cell)


def test_intervals_are_those_of_resampled_data_sets(page: Page, truth: _Truth) -> None:
    for table, names in (("figures", ("LogN",)), ("changes", ("Uncalibrated", "LogN"))):
        (row,) = [row for row in page.tables[f"{table}-bbox"] if row[0] == "LogN"]
        for metric, cell in zip(METRICS, row[1:], strict=True):
            expected = truth.interval(names, "bbox", metric)
            for shown, end in zip(_cell(cell)[1:], expected, strict=True):
                assert _close(shown, end), (table, metric, cell, expected)


def test_marks_say_whether_an_interval_leaves_out_zero(page: Page) -> None:
    for task in TASKS:
        for row in page.tables[f"changes-{task}"][1:]:
            for cell in row[1:]:
                _, low, high = _cell(cell)
                if low > 0 or high < 0:
                    assert cell.startswith("▲" if low > 0 else "▼"), cell
                elif low < 0 < high:
                    assert "▲" not in cell and "▼" not in cell, cell


def test_classes_have_their_counts_logits_and_ap(
    page: Page, small_runs: SmallRuns, truth: _Truth
) -> None:
    head, *rows = page.tables["class-table"]
    shown = {row[0]: dict(zip(head, row, strict=True)) for row in rows}
    categories = sorted(small_runs.content["categories"], key=lambda c: c["id"])
    assert set(shown) == {category["name"] for category in categories}
    box = {name: truth.class_ap(name, "bbox") for name in ORDER}
    masks = {name: truth.class_ap(name, "segm") for name in ORDER[:2]}
    words = {letter: word for word, letter in GROUPS.items()}
    for index, category in enumerate(categories):
        row = shown[category["name"]]
        assert row["Group"] == words[category["frequency"]]
        expected = {"Images": category["image_count"], "Objects": category["instance_count"]}
        expected |= {"Logit mean": small_runs.mean[index], "Logit std": small_runs.std[index]}
        for title, ap in (("Box AP", box), ("Mask AP", masks)):
            expected |= {f"{title}, {name}": values[index] for name, values in ap.items()}
            expected[f"{title}, difference"] = ap["LogN"][index] - ap["Uncalibrated"][index]
        assert set(row) == {"Class", "Group", *expected}
        for column, value in expected.items():
            decimals = {"Images": 0, "Objects": 0, "Logit mean": 2, "Logit std": 2}.get(column, 1)
            assert _close(_number(row[column]), value, decimals), (column, row[column], value)


@pytest.mark.parametrize("task", TASKS)
def test_errors_are_those_of_tide_written_out(page: Page, small_runs: SmallRuns, task: str) -> None:
    head, *rows = page.tables[f"errors-{task}"]
    group_of = {c["id"]: c["frequency"] for c in small_runs.content["categories"]}
    group_of = [group_of[key] for key in sorted(group_of)]
    slow = {
        name: SlowTide(small_runs.content, small_runs.results[NAMES[name]], task, max_dets=MAX_DETS)
        for name in ORDER[:2]
    }
    ap = {
        (n, error): np.array(s.ap(error)) for n, s in slow.items() for error in (None, *ERROR_TYPES)
    }
    assert [row[0] for row in rows] == [f"{g}, {n}" for g in GROUPS for n in ORDER[:2]]
    for label, *cells in rows:
        group, _, name = label.partition(", ")
        mine = np.array([GROUPS[group] in ("all", each) for each in group_of])
        before = ap[name, None][mine]
        expected = [np.nanmean(before)]
        expected += [np.nanmean(ap[name, error][mine] - before) for error in ERROR_TYPES]
        for cell, value in zip(cells, expected):
            assert _close(_number(cell), 100 * value), (label, cells, expected)
        assert cells[-1].endswith(f" of {np.count_nonzero(~np.isnan(before))}")


def test_reliability_is_that_of_the_labelled_detections(page: Page, small_runs: SmallRuns) -> None:
    group_of = {c["id"]: c["frequency"] for c in small_runs.content["categories"]}
    for name, *cells in page.tables["quality"][1:]:
        results = small_runs.results[NAMES[name]]
        labelled = SlowTide(small_runs.content, results, max_dets=MAX_DETS).detections
        hits = [each["kind"] == "TP" for each in labelled]
        expected = [100 * np.mean(hits), 100 * np.mean([each["score"] for each in labelled])]
        for group in GROUPS.values():
            mine = [d for d in labelled if group in ("all", group_of[d["category_id"]])]
            expected.append(100 * _ece(mine))
        assert cells[0] == f"{len(labelled):,}"
        for cell, value in zip(cells[1:], expected, strict=True):
            assert _close(_number(cell), value), (name, cells, expected)


def _ece(detections: list[dict], num_bins: int = 15) -> float:
    bins: dict[int, list[dict]] = {}
    for each in detections:
        bins.setdefault(max(math.ceil(each["score"] * num_bins), 1), []).append(each)
    gaps = (abs(sum(d["score"] - (d["kind"] == "TP") for d in b)) for b in bins.values())
    return sum(gaps) / len(detections) if detections else math.nan


def test_thresholds_keep_the_number_of_boxes(page: Page, small_runs: SmallRuns) -> None:
    group_of = {c["id"]: c["frequency"] for c in small_runs.content["categories"]}
    num_images = len(small_runs.content["images"])

    def above(name: str, group: str, score: float) -> float:
        found = (
            r["score"] > score and group in ("all", group_of[r["category_id"]])
            for r in small_runs.results[NAMES[name]]
        )
        return sum(found) / num_images

    rows = page.tables["thresholds"][1:]
    assert [row[0] for row in rows][:4] == ["LogN", "LogN, rare", "LogN, common", "LogN, frequent"]
    for label, *cells in rows:
        name = next(name for name in sorted(ORDER, key=len, reverse=True) if label.startswith(name))
        group = GROUPS[label.removeprefix(name).lstrip(", ") or "all"]
        before, unchanged, new, after = (_number(cell) for cell in cells)
        assert _close(before, above("Uncalibrated", group, 0.6), 2)
        assert _close(unchanged, above(name, group, 0.6), 2)
        assert _close(after, above("Uncalibrated", group, 0.6), 2)
        # The threshold as shown, rounded, keeps about as many.
        assert abs(above(name, group, new) - after) <= 1 / num_images + 0.005


def test_the_headline_is_in_the_table(page: Page) -> None:
    (row,) = [row for row in page.tables["changes-bbox"] if row[0] == "LogN"]
    cells = dict(zip(METRICS, (cell.lstrip("▲▼ ") for cell in row[1:]), strict=True))
    said = f"LogN against Uncalibrated, boxes: APr {cells['APr']}, AP {cells['AP']}."
    assert said in page.text


def test_data_are_told(page: Page, small_runs: SmallRuns) -> None:
    objects = sum(annotation["area"] > 0 for annotation in small_runs.content["annotations"])
    assert f"{len(small_runs.content['images'])} images with {objects} objects" in page.text
    assert json.dumps(small_runs.dataset).strip('"') in page.text
