"""Every number in sentences, captions, alternative texts and curves, recomputed from raw files."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest

from logn_d2.report import Report

from ..analysis.tide_reference import iou_of
from ..lvis.lvis_reference import run_lvis_api
from .read_page import Page
from .recount import (
    GROUPS,
    METRICS,
    NAMES,
    ORDER,
    exhaustively_labelled,
    is_close,
    number,
)
from .small_runs import MAX_DETS, RESAMPLES, SmallRuns

SHOWN = ("AP", "APr", "APc", "APf")
WORDS = {"bbox": "boxes", "segm": "masks"}


def _cells(page: Page, table: str, name: str) -> dict[str, str]:
    """Of a run, without marks; `test_page_numbers` recomputes them."""
    (row,) = [row for row in page.tables[table] if row[0] == name]
    return dict(zip(METRICS, (cell.lstrip("★▲▼ ") for cell in row[1:]), strict=True))


def _alt(page: Page, start: str) -> list[str]:
    return [image["alt"] for image in page.images if image["alt"].startswith(start)]


def test_the_headline_is_in_the_table(page: Page) -> None:
    cells = _cells(page, "changes-bbox", "LogN")
    said = f"LogN against Uncalibrated, boxes: APr {cells['APr']}, AP {cells['AP']}."
    assert said in page.text


def test_masks_are_told_as_in_their_table(page: Page) -> None:
    cells = _cells(page, "changes-segm", "LogN")
    assert f"For masks: {', '.join(f'{m} {cells[m]}' for m in SHOWN)}." in page.text


def test_data_are_told(page: Page, small_runs: SmallRuns) -> None:
    content = small_runs.content
    objects = sum(annotation["area"] > 0 for annotation in content["annotations"])
    assert f"{len(content['images'])} images with {objects} objects of 7 classes" in page.text
    assert f"{RESAMPLES} bootstrap resamples of the {len(content['images'])}" in page.text


def test_charts_and_tables_agree(page: Page) -> None:
    bars, dots = _alt(page, "Bar chart. "), _alt(page, "Dot plot")
    for task, bar, dot in zip(WORDS, bars, dots, strict=True):
        for name in ORDER[:2]:
            cells = _cells(page, f"figures-{task}", name)
            assert f"{name}: {', '.join(f'{m} {cells[m]}' for m in SHOWN)}." in bar
        for name in ORDER[1:]:
            cells = _cells(page, f"changes-{task}", name)
            values = (f"{m} {cells[m].partition(' ')[0]}" for m in SHOWN)
            assert f"{name}: {', '.join(values)}." in dot
    (said,) = _alt(page, "Reliability")
    quality = {row[0]: row[4] for row in page.tables["quality"][1:]}
    assert f"error: {', '.join(f'{n} {quality[n]} %' for n in ORDER[:2])}." in said


def test_the_threshold_sentence_is_in_the_table(page: Page) -> None:
    (row,) = [row for row in page.tables["thresholds"] if row[0] == "LogN"]
    _, before, unchanged, new, after = row
    assert before == after
    for shown in (before, unchanged, new):
        assert re.search(rf"threshold of .*\b{re.escape(shown)}\b", page.text), shown


def test_curves_are_those_of_the_detections_above_each_threshold(
    page: Page, report: Report, small_runs: SmallRuns
) -> None:
    (said,) = _alt(page, "Curves of AP")
    num_images = len(small_runs.content["images"])
    for name, curve in report.comparison.curves.items():
        results = small_runs.results[NAMES[name]]
        best = _best_of_each_image(results)
        for place, threshold in enumerate(curve.threshold.tolist()):
            kept = [each for each in best if each["score"] > threshold]
            assert curve.per_image[place] == pytest.approx(len(kept) / num_images)
            if threshold not in (0, 0.05, 0.5, 0.9):  # lvis-api takes its time
                continue
            found = run_lvis_api(small_runs.json_file, kept, "bbox", max_dets=MAX_DETS)["metrics"]
            for metric in SHOWN:
                assert curve.metrics[metric][place] == pytest.approx(found[metric])
            if threshold != 0.9:
                assert f"{100 * found['AP']:.1f} above {threshold:g}" in said


def _best_of_each_image(results: list[dict]) -> list[dict]:
    images = {each["image_id"] for each in results}
    ranked = {i: sorted((r for r in results if r["image_id"] == i), key=_falling) for i in images}
    return [each for rows in ranked.values() for each in rows[:MAX_DETS]]


def _falling(result: dict) -> float:
    return -result["score"]


def test_reliability_and_histograms_are_counted(report: Report, small_runs: SmallRuns) -> None:
    group_of = {c["id"]: c["frequency"] for c in small_runs.content["categories"]}
    for name in ORDER[:2]:
        quality = report.comparison.quality[name]
        labelled = exhaustively_labelled(small_runs, name)
        for group in GROUPS.values():
            mine = [d for d in labelled if group in ("all", group_of[d["category_id"]])]
            confidence, precision = quality.reliability(group)
            for place, (low, high) in enumerate(zip(quality.edges, quality.edges[1:])):
                inside = [d for d in mine if low < d["score"] <= high]
                hits = [d["kind"] == "TP" for d in inside]
                kinds = [d["kind"] for d in inside]
                counts = {"count": len(inside), "hits": sum(hits), "background": kinds.count("Bkg")}
                for column, expected in counts.items():
                    assert quality.histogram(column, group)[place] == expected
                if inside:
                    assert precision[place] == pytest.approx(np.mean(hits))
                    assert confidence[place] == pytest.approx(np.mean([d["score"] for d in inside]))


def test_logits_and_prior_are_told(page: Page, small_runs: SmallRuns) -> None:
    categories = sorted(small_runs.content["categories"], key=lambda category: category["id"])
    images, objects = (
        [category[name] for category in categories] for name in ("image_count", "instance_count")
    )
    (said,) = _alt(page, "Two scatter plots")
    shown = [number(text) for text in re.findall(r"[+−][0-9.]+", said)]
    for value, logits in zip(shown, (small_runs.mean, small_runs.std), strict=True):
        assert is_close(value, _rank_correlation(images, logits.tolist()), 2)
    weights = [math.exp(mean) for mean in small_runs.mean]
    rare = [category["frequency"] == "r" for category in categories]
    labels, prior = (
        100 * sum(v for v, is_rare in zip(values, rare) if is_rare) / sum(values)
        for values in (objects, weights)
    )
    correlation = f"{_rank_correlation(objects, weights):+.2f}".replace("-", "−")
    assert (
        f"Rare classes hold {labels:.2g} % of the labels; the model's prior gives them "
        f"{prior:.2g} %. Rank correlation of prior and labels over classes: {correlation}."
    ) in page.text
    assert "over 500 RoIs of 10 training images" in page.text


def _rank_correlation(x: list[float], y: list[float]) -> float:
    def ranks(values: list[float]) -> list[float]:
        return [sum(o < v for o in values) + (values.count(v) - 1) / 2 for v in values]

    return float(np.corrcoef(ranks(x), ranks(y))[0, 1])


def test_the_gallery_counts_found_objects(page: Page, small_runs: SmallRuns) -> None:
    content = small_runs.content
    objects = [a for a in content["annotations"] if a["area"] > 0 and not a.get("ignore")]
    letter = {c["id"]: c["frequency"] for c in content["categories"]}
    before, after = (_found(small_runs, name) for name in ORDER[:2])
    rare = {a["id"] for a in objects if letter[a["category_id"]] == "r"}
    known = {a["id"] for a in objects}
    gained, lost = (after - before) & known, (before - after) & known
    assert gained or lost
    (said,) = re.findall(r"Of the \d+ objects? of rare.*?loses \d+", page.text, re.S)
    counts = [len(rare), len(content["images"]), len(gained & rare), len(lost & rare)]
    counts += [len(objects), len(gained), len(lost)]
    assert [int(number) for number in re.findall(r"\d+", said)] == counts


def _found(runs: SmallRuns, name: str) -> set[int]:
    """Ids of the objects that the n best detections of each image find, n being all objects."""
    found = set()
    for image in runs.content["images"]:
        objects = [
            a for a in runs.content["annotations"] if a["image_id"] == image["id"] and a["area"] > 0
        ]
        mine = [r for r in runs.results[NAMES[name]] if r["image_id"] == image["id"]]
        shown: list[dict] = []
        for each in sorted(mine, key=_falling):
            if all(iou_of(each, other, "bbox", (0, 0)) <= 0.5 for other in shown):
                shown.append(each)
        for each in shown[: len(objects)]:
            found |= {
                a["id"]
                for a in objects
                if a["category_id"] == each["category_id"]
                and iou_of(each, a, "bbox", (0, 0)) >= 0.5
            }
    return found
