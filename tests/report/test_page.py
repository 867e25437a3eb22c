"""The page: whole, valid, self-contained, and honest about what is missing."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from logn_d2.core import LogitStatistics
from logn_d2.report import (
    ClassInfo,
    Comparison,
    Report,
    build_report,
    figures,
    write_report,
)
from logn_d2.report.drawings import draw
from logn_d2.report.page import _class_columns, _environment

from .read_page import Page
from .small_runs import RESAMPLES

MAX_BYTES = 10 * 2**20


def _with_comparison(report: Report, **changes: object) -> Report:
    return dataclasses.replace(report, comparison=dataclasses.replace(report.comparison, **changes))


def test_page_is_valid_and_needs_nothing_else(page: Page, page_text: str) -> None:
    assert len(page_text.encode()) < MAX_BYTES
    assert len(page.ids) == len(set(page.ids))
    for link in page.links:
        assert link.startswith(("data:", "#")), link[:80]
        if link.startswith("#"):
            assert link[1:] in page.ids
    assert not re.search(r"url\(|@import|https?://", page_text)


def test_page_can_be_read_out(page: Page, page_text: str) -> None:
    assert all(image["alt"] for image in page.images)
    assert page.captions == len(page.tables)
    levels = [int(level) for level in re.findall(r"<h([1-6])", page_text)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after <= before + 1 for before, after in zip(levels, levels[1:]))
    assert '<html lang="en">' in page_text and "<main>" in page_text and "<nav" in page_text


def test_every_section_is_there(page: Page) -> None:
    expected = ("results", "images", "scores", "errors", "logits", "prior", "classes", "provenance")
    assert set(expected) <= set(page.ids)


@pytest.mark.usefixtures("undrawn")
def test_without_statistics_and_pictures_their_sections_are_left_out(report: Report) -> None:
    bare = dataclasses.replace(report, statistics={}, gallery=None, notes=("No pictures here.",))
    page = Page(build_report(bare))
    assert not {"images", "logits", "prior"} & set(page.ids) and "No pictures here." in page.text
    assert "Logit mean" not in page.tables["class-table"][0]


@pytest.mark.usefixtures("undrawn")
def test_the_study_of_the_statistics_pass_is_shown_where_it_was_made(
    report: Report, page: Page, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "statistics" not in page.ids
    values = {"mean": 21.25, "min": 20.0, "max": 22.0}
    rows = [
        {"images": images, "logn": {metric: values for metric in ("AP", "APr")}}
        for images in (100, 5000)
    ]
    baseline = {"AP": 20.0, "APr": float("nan")}
    study = {"passes": 3, "calibrations": ["logn"], "uncalibrated": baseline, "by_images": rows}
    monkeypatch.setattr(Report, "studies", [study])
    made = Page(build_report(report))
    assert "statistics" in made.ids and "3 passes" in made.text
    alts = [image["alt"] for image in made.images]
    assert any("100 images: LogN 21.2" in alt and "5,000 images" in alt for alt in alts)


@pytest.mark.usefixtures("undrawn")
def test_boxes_alone_are_shown_as_such(report: Report) -> None:
    comparison = report.comparison
    figures = {key: value for key, value in comparison.figures.items() if key[1] == "bbox"}
    page = Page(build_report(_with_comparison(report, figures=figures)))
    assert "Masks" not in page.text and "figures-segm" not in page.tables


def test_lvis_vocabulary_and_eight_runs_stay_below_ten_megabytes(report: Report) -> None:
    # Everything but the table of classes is as large for any vocabulary, so that is what grows.
    number = 1203
    classes = ClassInfo(
        names=tuple(f"a_rather_long_name_{index}" for index in range(number)),
        labels=tuple(f"a_rather_long_name_{index}" for index in range(number)),
        groups=("r",) * number,
        image_count=np.arange(number),
        instance_count=np.arange(number),
    )
    comparison = report.comparison
    runs = [dataclasses.replace(comparison.baseline, name=f"run {i}, a name") for i in range(8)]
    class_ap = np.linspace(0, 100, number)
    each = dataclasses.replace(
        comparison.figures[comparison.pair[0].name, "bbox"], class_ap=class_ap
    )
    large = dataclasses.replace(
        comparison,
        runs=tuple(runs),
        focus=runs[1],
        classes=classes,
        figures={(run.name, task): each for run in runs for task in ("bbox", "segm")},
    )
    table = (
        _environment()
        .get_template("sections/classes.html.j2")
        .render(
            comparison=large,
            classes=classes,
            class_columns=_class_columns(large, (class_ap, class_ap)),
            class_order=range(number),
        )
    )
    assert table.count("<tr>") == number + 1 and len(table.encode()) < MAX_BYTES // 4


@pytest.mark.usefixtures("undrawn")
def test_cascade_has_a_figure_for_each_stage(report: Report) -> None:
    (name, each), *_ = report.statistics.items()
    cascade = {name: dataclasses.replace(each, stages=each.stages * 3)}
    drawn = draw(report.comparison, cascade)
    assert [each["name"] for each in drawn.stages] == ["logits_1", "logits_2", "logits_3"]
    for number, each in enumerate(drawn.stages, start=1):
        assert f"Cascade stage {number}" in each["which"] and each["name"] in drawn.figures


def test_figures_are_files_for_print_too(
    report: Report, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved = []
    monkeypatch.setattr(figures, "save_figure", lambda figure, path: saved.append(path.name))
    monkeypatch.setattr(figures, "svg_data_uri", lambda figure: "data:,")
    write_report(tmp_path / "report.html", report, tmp_path / "figures")
    page = Page((tmp_path / "report.html").read_text(encoding="utf-8"))
    drawn_in_page = sum(image["src"] == "data:," for image in page.images)
    assert len(saved) == len(set(saved)) == 2 * drawn_in_page
    assert {"ap_boxes.svg", "errors_masks.png", "thresholds.svg", "prior.png"} <= set(saved)


def test_positives_are_drawn_beside_the_rois_that_calibrate(report: Report) -> None:
    (name, each), *_ = report.statistics.items()
    count = torch.arange(len(each.class_names) + 1)  # none of the first class
    stage = dataclasses.replace(each.stages[0], count=count)
    own = dataclasses.replace(each, stages=(stage,), population="positives", sampler="Repeating")
    drawn = draw(report.comparison, {"own": own, name: each})
    assert [each["name"] for each in drawn.stages] == ["logits_1"]
    assert list(drawn.populations) == ["positives", "sampled"]
    lines = drawn.figures["populations"].axes[0].lines
    assert [len(line.get_xdata()) for line in lines] == [len(count) - 2, len(count) - 1]
    rare = report.comparison.classes.is_rare
    share = count[:-1].numpy()[rare].sum() / count[:-1].sum().item()
    assert drawn.prior["sampled"] == pytest.approx(share) and drawn.prior["sampler"] == "Repeating"
    labels, sampled = drawn.figures["prior"].axes[0].lines
    assert sampled.get_linestyle() == ":" and np.nansum(sampled.get_ydata()) == pytest.approx(1)
    assert np.nansum(labels.get_ydata()) == pytest.approx(1)


@pytest.mark.usefixtures("undrawn")
def test_names_can_not_break_the_page(report: Report) -> None:
    classes = report.comparison.classes
    names = tuple(f"<script>{name}</script>&\"'" for name in classes.names)
    broken = dataclasses.replace(classes, names=names, labels=names)
    bare = dataclasses.replace(_without_statistics(report), title="<b>")
    page = Page(build_report(_with_comparison(bare, classes=broken)))
    assert names[0] in page.text and "<b>" in page.text


def _without_statistics(report: Report) -> Report:
    return dataclasses.replace(report, statistics={})


def test_provenance_and_command_are_told(page: Page, report: Report) -> None:
    assert "detector.pth" in page.text and "report_val" in page.text
    assert "logn report run --output <page>" in page.text
    assert f"{RESAMPLES} resamples, seed 0" in page.text and "It is not LogitNorm" in page.text
    assert f"at most {_most(report.comparison)} per image" in page.text


def _most(comparison: Comparison) -> int:
    ids = comparison.baseline.detections().image_id.tolist()
    return max(ids.count(each) for each in ids)


def test_limits_of_the_intervals_are_stated(page: Page) -> None:
    assert "another training can change the figures by more" in page.text


def test_statistics_of_other_classes_are_refused(report: Report) -> None:
    (each,) = report.statistics.values()
    other = LogitStatistics(each.stages, tuple(f"other {name}" for name in each.class_names))
    with pytest.raises(ValueError, match=r"statistics of run have 7 classes .*'other class"):
        dataclasses.replace(report, statistics={"run": other})


@pytest.mark.usefixtures("undrawn")
def test_a_page_that_can_not_be_built_leaves_the_old_one(report: Report, tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    write_report(path, report)
    before = path.read_text(encoding="utf-8")
    with pytest.raises(KeyError):
        write_report(path, _with_comparison(report, quality={}))
    assert path.read_text(encoding="utf-8") == before and list(tmp_path.iterdir()) == [path]
