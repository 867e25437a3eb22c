"""The page: whole, valid, self-contained, with every number of the results."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest

from logn_d2.core import LogitStatistics
from logn_d2.report import (
    Gallery,
    ReportInputs,
    ResultRow,
    Results,
    build_report,
    write_report,
)

VOID = {"img", "meta", "br", "hr", "col"}
MAX_BYTES = 10 * 2**20


class _Checker(HTMLParser):
    """Collects text, ids and links; refuses tags that are not closed in order."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.images: list[dict[str, str | None]] = []
        self.tables: list[set[str]] = []
        self.text: list[str] = []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        named = dict(attrs)
        assert len(named) == len(attrs), f"<{tag}> repeats an attribute"
        if "id" in named:
            self.ids.append(named["id"])
        self.links += [named[name] for name in ("src", "href") if name in named]
        if tag == "img":
            self.images.append(named)
        if tag == "table":
            self.tables.append(set())
        if tag == "caption":
            self.tables[-1].add("caption")
        if tag == "th":
            assert named.get("scope") in ("col", "row", "colgroup"), named
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open.pop() == tag, f"</{tag}> closes nothing"

    def handle_data(self, data: str) -> None:
        if not {"style", "script"} & set(self.open):
            self.text.append(data)


@pytest.fixture
def inputs(results: Results, statistics: LogitStatistics, gallery: Gallery) -> ReportInputs:
    return ReportInputs(results, statistics, gallery, foreground_share=0.2)


def test_page_is_valid_and_needs_nothing_else(inputs: ReportInputs) -> None:
    page = build_report(inputs)
    checker = _Checker(page)
    assert len(page.encode()) < MAX_BYTES
    assert len(checker.ids) == len(set(checker.ids))
    for link in checker.links:
        assert link.startswith(("data:image/", "#")), link[:80]
        if link.startswith("#"):
            assert link[1:] in checker.ids
    assert not re.search(r"url\(|@import|https?://", page)
    assert all(image["alt"] for image in checker.images)
    assert all("caption" in table for table in checker.tables)


def test_page_has_every_number_of_the_results(inputs: ReportInputs) -> None:
    text = " ".join(_Checker(build_report(inputs)).text)
    numbers = set(re.findall(r"\d+\.\d", text))
    for row in inputs.results.rows:
        for metrics in row.tasks.values():
            assert {f"{value:.1f}" for value in metrics.values()} <= numbers
    for tasks in inputs.results.class_ap.values():
        if tasks is inputs.results.class_ap["logn"]:
            assert {f"{value:.1f}" for value in tasks["bbox"]} <= numbers


def test_best_of_a_column_has_a_star_and_equals_all_have_none(inputs: ReportInputs) -> None:
    assert build_report(inputs).count("★ </span>") >= 8
    row = inputs.results.row("logn")
    same = Results((ResultRow("uncalibrated", row.tasks), row))
    assert "★ </span>" not in build_report(ReportInputs(same))


def test_page_without_options_still_has_the_table(results: Results) -> None:
    bare = ReportInputs(Results(results.rows, results.provenance))
    checker = _Checker(build_report(bare))
    text = "".join(checker.text)
    assert "What each calibration reaches" in text and "Every class" not in text
    assert "It is not LogitNorm" in text


def test_boxes_alone_and_missing_groups_are_shown_as_such(
    make_results: Callable[..., Results],
) -> None:
    results = make_results(num_classes=2, masks=False)
    assert math.isnan(results.row("logn").value("bbox", "APr"))
    text = "".join(_Checker(build_report(ReportInputs(results))).text)
    assert "Masks" not in text and "–" in text


def test_one_class_is_enough(
    make_results: Callable[..., Results], make_statistics: Callable[..., LogitStatistics]
) -> None:
    results = make_results(num_classes=1)
    _Checker(build_report(ReportInputs(results, make_statistics(results))))


def test_lvis_vocabulary_stays_below_ten_megabytes(
    make_results: Callable[..., Results], make_statistics: Callable[..., LogitStatistics]
) -> None:
    results = make_results(num_classes=1203)
    page = build_report(ReportInputs(results, make_statistics(results)))
    assert len(page.encode()) < MAX_BYTES


def test_cascade_has_a_figure_for_each_stage(
    results: Results, make_statistics: Callable[..., LogitStatistics]
) -> None:
    page = build_report(ReportInputs(results, make_statistics(results, num_stages=3)))
    assert [f"Cascade stage {stage}" in page for stage in (1, 2, 3, 4)] == [True] * 3 + [False]


def test_names_can_not_break_the_page(results: Results) -> None:
    names = tuple(f"<script>{name}</script>&\"'" for name in results.classes.names)
    classes = dataclasses.replace(results.classes, names=names, labels=names)
    broken = dataclasses.replace(results, classes=classes)
    checker = _Checker(build_report(ReportInputs(broken, title="<b>")))
    assert names[0].replace("_", " ") in "".join(checker.text)


def test_provenance_and_commands_are_told(inputs: ReportInputs) -> None:
    text = "".join(_Checker(build_report(inputs)).text)
    assert "A & B <processor>" in text and "python tools/demo.py --phase report" in text
    assert "commit" in text and "not known" in text


def test_statistics_of_other_classes_are_refused(
    results: Results, make_results: Callable[..., Results], make_statistics: Callable
) -> None:
    other = make_statistics(make_results(num_classes=7))
    with pytest.raises(ValueError, match="of 7 classes .* the results of 40"):
        build_report(ReportInputs(results, other))


def test_a_missing_calibration_is_named(results: Results) -> None:
    with pytest.raises(KeyError, match="tau_norm"):
        build_report(ReportInputs(results, calibration="tau_norm"))


def test_a_page_that_can_not_be_built_leaves_the_old_one(results: Results, tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    write_report(path, ReportInputs(results))
    before = path.read_text()
    with pytest.raises(KeyError):
        write_report(path, ReportInputs(results, calibration="tau_norm"))
    assert path.read_text() == before
    assert list(tmp_path.iterdir()) == [path]
