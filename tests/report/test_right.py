"""Runs that are unfinished, from other data or with odd names are refused or shown correctly."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from logn_d2.errors import UserError
from logn_d2.report import (
    Report,
    ResultRow,
    Results,
    Settings,
    build_report,
    make_report,
    open_runs,
)
from logn_d2.report.compared import Value
from logn_d2.report.figures import change_figure, svg_data_uri
from logn_d2.report.figures.style import readable

from .read_page import Page
from .small_runs import SmallRuns, make_small_runs

HOSTILE = (
    "$x_$",
    "_hidden",
    'a<b>&"c"',
    "猫 🐱",
    "x\\frac{",
    "a/b:c\nd",
    "{{ 7 * 7 }}",
    "</script>",
)
FEW = Settings(resamples=2)


@pytest.fixture
def copied(small_runs: SmallRuns, tmp_path: Path) -> Path:
    """A run's folder that a test may damage."""
    shutil.copytree(small_runs.folder, tmp_path / "run")
    return tmp_path / "run"


def test_an_unfinished_sweep_is_refused(copied: Path) -> None:
    path = copied / "sweep" / "sweep.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "finished": False}))
    with pytest.raises(ValueError, match=r"unfinished.*--resume"):
        make_report(open_runs([str(copied)]), settings=FEW, pictures=0)


def test_a_sweep_without_its_chunks_is_refused(copied: Path) -> None:
    for path in (copied / "sweep").glob("*.npz"):
        path.unlink()
    with pytest.raises(ValueError):
        make_report(open_runs([str(copied)]), settings=FEW, pictures=0)


def test_annotations_of_other_images_are_refused(small_runs: SmallRuns, tmp_path: Path) -> None:
    content = small_runs.content
    more = {**content, "images": [*content["images"], {**content["images"][0], "id": 10**6}]}
    path = tmp_path / "more.json"
    path.write_text(json.dumps(more))
    with pytest.raises(ValueError, match=r"1 are missing in the sweep.*image 1000000"):
        runs = open_runs([str(small_runs.folder)])
        make_report(runs, settings=FEW, pictures=0, annotations=path)


def test_a_mistake_in_the_annotations_is_named(small_runs: SmallRuns, tmp_path: Path) -> None:
    content = small_runs.content
    first = {**content["annotations"][0], "bbox": [0, 0, -1, 4]}
    path = tmp_path / "wrong.json"
    path.write_text(json.dumps({**content, "annotations": [first, *content["annotations"][1:]]}))
    runs = open_runs([str(small_runs.folder)])
    with pytest.raises(UserError, match=r"wrong\.json: annotations\[0\].* has bbox"):
        make_report(runs, settings=FEW, pictures=0, annotations=path)


def test_results_of_other_classes_are_refused(
    copied: Path, small_runs: SmallRuns, report: Report
) -> None:
    classes = report.comparison.classes
    other = dataclasses.replace(classes, names=("other", *classes.names[1:]))
    rows = (ResultRow("uncalibrated", {"bbox": {"AP": 1.0}}),)
    Results(rows, {"data set": small_runs.dataset}, other).save(copied / "results.json")
    with pytest.raises(ValueError, match=r"first that differs is 'other'"):
        make_report(open_runs([str(copied)]), settings=FEW, pictures=0)


@pytest.mark.usefixtures("undrawn")
def test_fixed_ap_is_shown_only_where_an_image_exceeds_the_limit(small_runs: SmallRuns) -> None:
    texts = [f"{small_runs.folder}:{name}" for name in ("uncalibrated", "logn")]
    whole = Page(build_report(make_report(open_runs(texts), settings=FEW, pictures=0)))
    assert "AP fixed" not in whole.text and "are mostly noise" in whole.text
    limited = dataclasses.replace(FEW, max_dets=3)
    cut = Page(build_report(make_report(open_runs(texts), settings=limited, pictures=0)))
    assert "AP fixed" in cut.tables["figures-bbox"][0]


def test_spellings_of_one_calibration_are_told_apart(copied: Path) -> None:
    path = copied / "sweep" / "sweep.json"
    names = ["uncalibrated", "logn()", "logn", "groups(rare=norcal(gamma=0.4))"]
    path.write_text(json.dumps({**json.loads(path.read_text()), "names": names}))
    found = [run.name for run in open_runs([str(copied)])]
    assert found == ["Uncalibrated", "logn", "logn()", "Groups, rare NorCal (gamma 0.4)"]


def test_pictures_are_turned_as_the_trainer_turns_them(tmp_path: Path) -> None:
    runs = make_small_runs(tmp_path, "report_turned_val")
    for path in tmp_path.glob("*.jpg"):
        image = Image.open(path)
        exif = image.getexif()
        exif[0x0112] = 6  # a quarter turn
        image.transpose(Image.Transpose.ROTATE_90).save(path, exif=exif)
    entries = make_report(open_runs([str(runs.folder)]), settings=FEW).gallery.entries
    size = {image["id"]: (image["width"], image["height"]) for image in runs.content["images"]}
    assert entries and all((e.width, e.height) == size[e.image_id] for e in entries)


def test_names_of_any_characters_go_through_figures_and_page(report: Report) -> None:
    for name in HOSTILE:
        figure = change_figure({name: {"AP": Value(1.0, 0.5, 1.5), f"AP{name}": Value(1.0)}})
        assert svg_data_uri(figure)
        shown = [label.get_text() for label in figure.axes[0].get_yticklabels()]
        assert shown == [readable(name)]
    comparison = report.comparison
    number = len(comparison.classes)
    names = tuple(HOSTILE[index % len(HOSTILE)] + str(index) for index in range(number))
    groups = tuple(HOSTILE[index % 3] for index in range(number))
    classes = dataclasses.replace(comparison.classes, names=names, labels=names)
    odd = dataclasses.replace(
        report, comparison=dataclasses.replace(comparison, classes=classes), statistics={}
    )
    page = Page(build_report(odd))
    assert all(name.replace("_", " ") in page.text for name in names) and len(set(groups)) == 3
    assert "49" not in page.tables["class-table"][1][0]


def test_characters_without_a_font_are_written_as_code_points() -> None:
    assert readable("α ★ $") == "α ★ $" and readable("\U0010fffd") == "U+10FFFD"


def test_shown_detections_are_those_of_a_plain_suppression(small_runs: SmallRuns) -> None:
    from logn_d2.report.shown import shown_detections

    truth, run = small_runs.truth, open_runs([str(small_runs.folder)])[0]
    shown = shown_detections(truth, run.detections())
    again = shown_detections(truth, shown)
    assert len(shown) and np.array_equal(shown.box, again.box)
