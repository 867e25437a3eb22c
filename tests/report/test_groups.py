"""Groups of classes: LVIS's, others that the annotations name, training counts, a user's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from logn_d2.report import Report, Settings, build_report, make_report, open_runs

from .read_page import Page
from .small_runs import MAX_DETS, SmallRuns, make_small_runs

SHOTS = {"r": "few", "c": "medium", "f": "many"}


def _report(runs: SmallRuns, **settings: Any) -> Report:
    return make_report(
        open_runs([f"{runs.folder}:{name}" for name in ("uncalibrated", "logn")]),
        settings=Settings(resamples=2, max_dets=MAX_DETS, **settings),
        pictures=2,
    )


def _group_means(page: Page, column: str, members: dict[str, set[str]]) -> list[float]:
    """Mean AP of the classes of each group, from the table of every class."""
    head, *rows = page.tables["class-table"]
    place = head.index(column)
    values = {row[0]: row[place].replace("–", "nan") for row in rows}
    return [np.nanmean([float(values[name]) for name in names]) for names in members.values()]


def _shown(page: Page, run: str, metrics: list[str]) -> list[float]:
    head, *rows = page.tables["figures-bbox"]
    (row,) = [row for row in rows if row[0] == run]
    cells = (row[head.index(metric)] for metric in metrics)
    return [float(cell.lstrip("★ ").partition(" [")[0].replace("–", "nan")) for cell in cells]


@pytest.fixture(scope="module")
def shots(tmp_path_factory: pytest.TempPathFactory) -> SmallRuns:
    """A set whose annotations name other groups than LVIS's."""

    def rename(content: dict[str, Any]) -> None:
        for category in content["categories"]:
            category["frequency"] = SHOTS[category["frequency"]]

    return make_small_runs(tmp_path_factory.mktemp("shots"), "report_shots_val", change=rename)


@pytest.mark.usefixtures("undrawn")
def test_groups_of_the_annotations_take_the_place_of_lvis_groups(shots: SmallRuns) -> None:
    report = _report(shots)
    page = Page(build_report(report))
    metrics = ["APfew", "APmedium", "APmany"]  # fewest images first
    assert page.tables["figures-bbox"][0] == [
        *("Run", "AP", "AP50", "AP75", *metrics, "AR", "AP fixed")
    ]
    members: dict[str, set[str]] = {name: set() for name in SHOTS.values()}
    for category in shots.content["categories"]:
        members[category["frequency"]].add(category["name"])
    for run in ("Uncalibrated", "LogN"):
        expected = _group_means(page, f"Box AP, {run}", members)
        assert _shown(page, run, metrics) == pytest.approx(expected, abs=0.11)
    assert [row[0] for row in page.tables["thresholds"][1:]] == [
        *("LogN", "LogN, few", "LogN, medium", "LogN, many")
    ]
    labels = [row[0] for row in page.tables["errors-bbox"][1:]]
    assert [label.partition(",")[0] for label in labels[::2]] == ["all", *SHOTS.values()]
    assert page.tables["quality"][0][-3:] == ["ECE, few", "ECE, medium", "ECE, many"]
    assert "LogN against Uncalibrated, boxes: APfew" in page.text
    assert 'objects of classes of "few" in' in page.text and 'Classes of "few" hold' in page.text
    assert "rare" not in page.text.replace("rarely", "")


@pytest.mark.usefixtures("undrawn")
def test_groups_of_a_user_come_behind_the_others(small_runs: SmallRuns) -> None:
    categories = small_runs.content["categories"]
    pets = [categories[0]["name"], categories[3]["id"]]
    page = Page(build_report(_report(small_runs, class_groups={"pets": pets})))
    assert page.tables["figures-bbox"][0][4:8] == ["APr", "APc", "APf", "APpets"]
    members = {"pets": {categories[0]["name"], categories[3]["name"]}}
    expected = _group_means(page, "Box AP, LogN", members)
    assert _shown(page, "LogN", ["APpets"]) == pytest.approx(expected, abs=0.11)
    assert "LogN, pets" in [row[0] for row in page.tables["thresholds"]]


@pytest.mark.usefixtures("undrawn")
def test_groups_can_be_given_in_place_of_those_of_the_annotations(small_runs: SmallRuns) -> None:
    number = len(small_runs.content["categories"])
    page = Page(build_report(_report(small_runs, groups=["one"] * number)))
    (ap, of_group) = (_shown(page, "LogN", [metric])[0] for metric in ("AP", "APone"))
    assert ap == of_group and "APr" not in page.tables["figures-bbox"][0]


@pytest.mark.usefixtures("undrawn")
def test_coco_form_has_groups_by_training_images_and_pictures(tmp_path: Path) -> None:
    def strip(content: dict[str, Any]) -> None:
        for image in content["images"]:
            del image["neg_category_ids"], image["not_exhaustive_category_ids"]
        for category in content["categories"]:
            for name in ("frequency", "image_count", "instance_count"):
                del category[name]

    runs = make_small_runs(tmp_path, "report_coco_val", change=strip)
    report = _report(runs)
    images: dict[str, set[Any]] = {category["name"]: set() for category in _sorted(runs)}
    names = {category["id"]: category["name"] for category in _sorted(runs)}
    for annotation in runs.content["annotations"]:
        images[names[annotation["category_id"]]].add(annotation["image_id"])
    counts = [len(each) for each in images.values()]
    classes = report.comparison.classes
    assert classes.image_count.tolist() == counts
    assert classes.groups == tuple("r" if count <= 10 else "c" for count in counts)
    page = Page(build_report(report))
    assert "images" in page.ids and report.gallery is not None


def _sorted(runs: SmallRuns) -> list[dict[str, Any]]:
    return sorted(runs.content["categories"], key=lambda category: category["id"])
