"""Every number in the tables, recomputed from raw files by lvis-api or with plain loops."""

from __future__ import annotations

import math

import numpy as np
import pytest

from logn_d2.analysis.errors import ERROR_TYPES

from ..analysis.tide_reference import SlowTide
from .read_page import Page
from .recount import (
    GROUPS,
    METRICS,
    NAMES,
    ORDER,
    TASKS,
    SlowFigures,
    exhaustively_labelled,
    is_close,
    number,
    read_cell,
)
from .small_runs import MAX_DETS, SmallRuns


@pytest.mark.parametrize("task", TASKS)
def test_figures_are_those_of_lvis_api(page: Page, slow_figures: SlowFigures, task: str) -> None:
    head, *rows = page.tables[f"figures-{task}"]
    assert tuple(head) == ("Run", *METRICS) and tuple(row[0] for row in rows) == ORDER
    for name, *cells in rows:
        expected = slow_figures.figures(name, task)
        for metric, cell in zip(METRICS, cells, strict=True):
            assert is_close(read_cell(cell)[0], expected[metric]), (name, metric, cell)
    assert any(
        slow_figures.figures(n, task)["AP"] != slow_figures.figures(n, task)["AP fixed"]
        for n in ORDER
    )


@pytest.mark.parametrize("task", TASKS)
def test_differences_are_those_of_lvis_api(
    page: Page, slow_figures: SlowFigures, task: str
) -> None:
    head, *rows = page.tables[f"changes-{task}"]
    assert tuple(head) == ("Run", *METRICS) and tuple(row[0] for row in rows) == ORDER[1:]
    first = slow_figures.figures(ORDER[0], task)
    for name, *cells in rows:
        second = slow_figures.figures(name, task)
        for metric, cell in zip(METRICS, cells, strict=True):
            assert is_close(read_cell(cell)[0], second[metric] - first[metric]), (
                name,
                metric,
                cell,
            )


@pytest.mark.parametrize("task", TASKS)
def test_intervals_are_those_of_resampled_data_sets(
    page: Page, slow_figures: SlowFigures, task: str
) -> None:
    for table, baseline in (("figures", ()), ("changes", ORDER[:1])):
        for name, *cells in page.tables[f"{table}-{task}"][1:]:
            for metric, cell in zip(METRICS, cells, strict=True):
                expected = slow_figures.interval((*baseline, name), task, metric)
                for shown, end in zip(read_cell(cell)[1:], expected, strict=True):
                    assert is_close(shown, end), (table, name, metric, cell, expected)


def test_the_best_of_a_column_has_a_star(page: Page) -> None:
    for task in TASKS:
        for column in list(zip(*page.tables[f"figures-{task}"][1:], strict=True))[1:]:
            values = [read_cell(cell)[0] for cell in column]
            best = max(values) if len(set(values)) > 1 else math.inf
            assert [cell.startswith("★") for cell in column] == [each == best for each in values]


def test_marks_show_intervals_without_zero(page: Page) -> None:
    for task in TASKS:
        for row in page.tables[f"changes-{task}"][1:]:
            for cell in row[1:]:
                _, low, high = read_cell(cell)
                if low > 0 or high < 0:
                    assert cell.startswith("▲" if low > 0 else "▼"), cell
                elif low < 0 < high:
                    assert "▲" not in cell and "▼" not in cell, cell


def test_classes_have_their_counts_logits_and_ap(
    page: Page, small_runs: SmallRuns, slow_figures: SlowFigures
) -> None:
    head, *rows = page.tables["class-table"]
    shown = {row[0]: dict(zip(head, row, strict=True)) for row in rows}
    categories = sorted(small_runs.content["categories"], key=lambda c: c["id"])
    assert set(shown) == {category["name"] for category in categories}
    box = {name: slow_figures.class_ap(name, "bbox") for name in ORDER}
    masks = {name: slow_figures.class_ap(name, "segm") for name in ORDER[:2]}
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
            assert is_close(number(row[column]), value, decimals), (column, row[column], value)


@pytest.mark.parametrize("task", TASKS)
def test_errors_are_those_of_tide_written_out(page: Page, small_runs: SmallRuns, task: str) -> None:
    head, *rows = page.tables[f"errors-{task}"]
    of = {c["id"]: c["frequency"] for c in small_runs.content["categories"]}
    group_of = [of[key] for key in sorted(of)]
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
            assert is_close(number(cell), 100 * value), (label, cells, expected)
        objects = [a for a in slow[name].objects if GROUPS[group] in ("all", of[a["category_id"]])]
        to_find = {a["category_id"] for a in objects}
        found = {a["category_id"] for a in objects if a["id"] in slow[name].found}
        assert cells[-1] == f"{len(to_find - found)} of {len(to_find)}"


def test_reliability_is_that_of_the_labelled_detections(page: Page, small_runs: SmallRuns) -> None:
    group_of = {c["id"]: c["frequency"] for c in small_runs.content["categories"]}
    for name, *cells in page.tables["quality"][1:]:
        labelled = exhaustively_labelled(small_runs, name)
        hits = [each["kind"] == "TP" for each in labelled]
        expected = [100 * np.mean(hits), 100 * np.mean([each["score"] for each in labelled])]
        for group in GROUPS.values():
            mine = [d for d in labelled if group in ("all", group_of[d["category_id"]])]
            expected.append(100 * _ece(mine))
        assert cells[0] == f"{len(labelled):,}"
        for cell, value in zip(cells[1:], expected, strict=True):
            assert is_close(number(cell), value), (name, cells, expected)


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
        before, unchanged, new, after = (number(cell) for cell in cells)
        assert is_close(before, above("Uncalibrated", group, 0.6), 2)
        assert is_close(unchanged, above(name, group, 0.6), 2)
        assert is_close(after, above("Uncalibrated", group, 0.6), 2)
        # The threshold as shown, rounded, keeps about as many.
        assert abs(above(name, group, new) - after) <= 1 / num_images + 0.005
