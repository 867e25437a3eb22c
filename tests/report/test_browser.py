"""The page in a real browser: sorting, search and sliders, by mouse and keyboard."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from .browser import find_browser, run_in_browser
from .read_page import Page

# Never skipped where the machine is ours: a script that nobody runs is not tested.
pytestmark = pytest.mark.skipif(
    find_browser() is None and os.environ.get("CI") != "true",
    reason="no Chromium or Chrome here (apt-get install chromium)",
)

SCRIPT = """
const table = document.querySelector("#class-table");
const heads = [...table.tHead.rows[0].cells];
const column = (title) => heads.findIndex((head) => head.textContent === title);
const shown = () => [...table.tBodies[0].rows].filter((row) => !row.hidden);
const read = (index) => shown().map((row) => row.cells[index].textContent);
const click = (title) => heads[column(title)].querySelector("button").click();
const set = (input, value, type) => {
  input.value = value;
  input.dispatchEvent(new Event(type, { bubbles: true }));
};
const sorts = {};
for (const title of ["Box AP, LogN", "Images", "Class"]) {
  sorts[title] = [1, 2].map(() => {
    click(title);
    const marks = heads.map((head) => head.getAttribute("aria-sort"));
    return [marks[column(title)], marks.filter((mark) => mark).length, read(column(title))];
  });
}
const search = document.querySelector(".find input");
const group = document.querySelector(".find select");
const found = document.querySelector(".find output");
const all = read(0);
set(search, " " + all[0].toUpperCase(), "input");
const searched = [read(0), found.textContent];
set(search, "", "input");
set(group, "rare", "change");
const grouped = [read(1), found.textContent];
set(search, "no such class", "input");
const nothing = [shown().length, found.textContent];
set(search, "", "input");
set(group, "", "change");
const slider = document.querySelector("input[type=range]");
const pair = document.querySelector(".pair");
const clip = () => getComputedStyle(pair.querySelector(".after")).clipPath;
const slides = ["0", "80"].map((value) => {
  set(slider, value, "input");
  return [clip(), slider.getAttribute("aria-valuetext")];
});
const focusable = [...document.querySelectorAll("button, input, select, a, [tabindex]")];
return {
  sorts, searched, grouped, nothing, slides, all,
  labels: [...document.querySelectorAll("input, select")].map((each) => each.labels.length),
  unreachable: focusable.filter((each) => { each.focus(); return document.activeElement !== each; })
    .length,
  sliders: document.querySelectorAll("input[type=range]").length,
  pairs: document.querySelectorAll(".pair").length,
  wide: document.documentElement.scrollWidth - document.documentElement.clientWidth,
};
"""


@pytest.fixture(scope="module")
def seen(page_text: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the script found; the browser starts once."""
    return run_in_browser(page_text, SCRIPT, tmp_path_factory.mktemp("browser"))


def _numbers(cells: list[str]) -> list[float]:
    return [float(cell.replace("−", "-").replace(",", "")) for cell in cells if cell != "–"]


@pytest.mark.parametrize("title", ["Box AP, LogN", "Images"])
def test_numbers_are_sorted_both_ways_and_gaps_stay_last(seen: dict, title: str) -> None:
    (first, alone, falling), (second, _, rising) = seen["sorts"][title]
    assert (first, second, alone) == ("descending", "ascending", 1)
    assert _numbers(falling) == sorted(_numbers(falling), reverse=True)
    assert _numbers(rising) == sorted(_numbers(rising))
    for cells in (falling, rising):
        gaps = [cell == "–" for cell in cells]
        assert gaps == sorted(gaps)
    assert len(set(_numbers(falling))) > 1


def test_names_are_sorted_from_the_first(seen: dict, page: Page) -> None:
    (first, _, rising), (second, _, falling) = seen["sorts"]["Class"]
    assert (first, second) == ("ascending", "descending") and falling == rising[::-1]
    assert sorted(rising) == sorted(row[0] for row in page.tables["class-table"][1:])


def test_a_class_is_found_by_its_name_and_group(seen: dict, page: Page) -> None:
    rows = page.tables["class-table"][1:]
    total, name = len(rows), seen["all"][0]
    fits = [row[0] for row in rows if name.lower() in row[0].lower()]
    assert sorted(seen["searched"][0]) == sorted(fits)
    assert seen["searched"][1] == f"{len(fits)} of {total} classes"
    rare = [row[1] for row in rows if row[1] == "rare"]
    assert seen["grouped"] == [rare, f"{len(rare)} of {total} classes"]
    assert seen["nothing"] == [0, f"0 of {total} classes"]


def test_a_slider_moves_the_line_and_shows_its_position(seen: dict) -> None:
    assert seen["sliders"] == seen["pairs"] > 0
    (left, left_said), (right, right_said) = seen["slides"]
    assert "0%" in left and "80%" in right
    assert left_said == "left 0 % Uncalibrated, otherwise LogN" and "left 80 %" in right_said


def test_every_control_has_a_label_and_takes_the_focus(seen: dict) -> None:
    assert set(seen["labels"]) == {1} and seen["unreachable"] == 0


def test_nothing_is_wider_than_the_window(seen: dict) -> None:
    assert seen["wide"] <= 0


def test_nothing_is_wider_than_a_phone(page_text: str, tmp_path: Path) -> None:
    # A window has a least width, a frame has not.
    source = page_text.replace("&", "&amp;").replace('"', "&quot;")
    frame = f'<iframe srcdoc="{source}" width="390" height="800"></iframe>'
    script = """
const inner = document.querySelector("iframe").contentDocument.documentElement;
return [inner.scrollWidth, inner.clientWidth, inner.textContent.length];
"""
    outer = f"<!DOCTYPE html><html><head></head><body>{frame}</body></html>"
    scrolled, width, letters = run_in_browser(outer, script, tmp_path)
    assert scrolled <= width <= 390 and letters > 1000
