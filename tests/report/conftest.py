"""Run folders, results and images for the report: no detector runs."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from logn_d2.core import frequency_groups
from logn_d2.lvis.detections import Detections
from logn_d2.lvis.ground_truth import LvisGroundTruth
from logn_d2.report import (
    ClassInfo,
    Gallery,
    Report,
    ResultRow,
    Results,
    build_report,
    figures,
    make_gallery,
)

from .read_page import Page
from .recount import SlowFigures
from .small_runs import SmallRuns, make_small_runs, small_report

CALIBRATIONS = (
    "uncalibrated",
    "logn",
    "logn_mean",
    "logn_std",
    "logn_beta",
    "logn_no_beta",
    "norcal(gamma=0.6)",
    "logit_adjustment",
)


def _class_info(num_classes: int) -> ClassInfo:
    image_count = np.maximum(1, (900 / np.arange(1, num_classes + 1) ** 1.6).astype(int))
    return ClassInfo(
        names=tuple(f"letter_{index}" for index in range(num_classes)),
        labels=tuple(chr(0x3B1 + index % 24) for index in range(num_classes)),
        groups=tuple(frequency_groups(image_count)),
        image_count=image_count,
        instance_count=2 * image_count,
    )


def _mean(values: np.ndarray) -> float:
    return float(np.mean(values)) if len(values) else math.nan


@pytest.fixture
def make_results() -> Callable[..., Results]:
    """A function that makes results whose rows are the means of their per-class AP."""

    def make(num_classes: int = 40, shift: float = 1.5, masks: bool = True) -> Results:
        generator = np.random.default_rng(3)
        classes, groups = _class_info(num_classes), np.array(_class_info(num_classes).groups)
        base = 12 + 10 * np.log10(classes.image_count) + generator.normal(0, 4, num_classes)
        rows = []
        for number, name in enumerate(CALIBRATIONS):
            gain = shift * math.sin(number) * np.where(groups == "r", 2.0, -0.5)
            noise = generator.normal(0, 2, num_classes) * (number > 0)
            ap = {"bbox": np.clip(base + gain + noise, 0, 100)}
            if masks:
                ap["segm"] = 0.8 * ap["bbox"]
            metrics = {
                task: {
                    "AP": _mean(values),
                    "AP50": _mean(values) + 11.1,
                    **{f"AP{group}": _mean(values[groups == group]) for group in "rcf"},
                }
                for task, values in ap.items()
            }
            rows.append(ResultRow(name, metrics))
        provenance = {
            "seed": 0,
            "machine": {"cpu": "A & B <processor>", "cores": 2},
            "seconds": {"train": 61.5},
            "commit": None,
            "commands": ["make demo", "logn demo --phase report"],
        }
        return Results(tuple(rows), provenance, classes)

    return make


@pytest.fixture
def results(make_results: Callable[..., Results]) -> Results:
    return make_results()


def read_image(image_id: int) -> np.ndarray:
    """An image that depends on its id alone, (64, 96, 3) uint8."""
    return np.random.default_rng(image_id).integers(0, 255, (64, 96, 3), dtype=np.uint8)


@pytest.fixture
def truth(results: Results) -> LvisGroundTruth:
    """Six images of two objects each: a frequent class and a rare one."""
    classes = results.classes
    rare = classes.groups.index("r")
    box = [[8, 8, 20, 24], [50, 20, 24, 24]]
    return LvisGroundTruth.from_dict(
        {
            "images": [
                {
                    "id": image,
                    "height": 64,
                    "width": 96,
                    "neg_category_ids": [],
                    "not_exhaustive_category_ids": [],
                }
                for image in range(1, 7)
            ],
            "categories": [
                {"id": index + 1, "name": name, "frequency": group}
                for index, (name, group) in enumerate(
                    zip(classes.names, classes.groups, strict=True)
                )
            ],
            "annotations": [
                {
                    "id": 2 * image + which,
                    "image_id": image,
                    "category_id": (0, rare)[which] + 1,
                    "bbox": box[which],
                    "area": box[which][2] * box[which][3],
                    "segmentation": [_outline(*box[which])],
                }
                for image in range(1, 7)
                for which in (0, 1)
            ],
        }
    )


def _outline(x: float, y: float, width: float, height: float) -> list[float]:
    return [x, y, x + width, y, x + width, y + height, x, y + height]


@pytest.fixture
def detections(truth: LvisGroundTruth) -> tuple[Detections, Detections]:
    """Before: the rare object of image 1 alone is missed; after: that of image 2 alone."""

    def detect(missed: int) -> Detections:
        keep = ~((truth.image == missed - 1) & (truth.category > 0))
        box = truth.box[keep] + np.array([1.0, 0.0, 0.0, 0.0])
        return Detections(
            image_id=truth.image_ids[truth.image[keep]],
            category=truth.category[keep],
            score=np.linspace(0.9, 0.5, keep.sum()),
            box=box,
            masks=truth.masks.take(keep),
        )

    return detect(1), detect(2)


@pytest.fixture
def gallery(
    truth: LvisGroundTruth, detections: tuple[Detections, Detections], results: Results
) -> Gallery:
    return make_gallery(truth, *detections, read_image, results.classes)


@pytest.fixture(scope="session")
def small_runs(tmp_path_factory: pytest.TempPathFactory) -> SmallRuns:
    """A sweep over a small data set."""
    return make_small_runs(tmp_path_factory.mktemp("runs"), "report_val")


@pytest.fixture(scope="session")
def slow_figures(small_runs: SmallRuns, tmp_path_factory: pytest.TempPathFactory) -> SlowFigures:
    """lvis-api's figures of that sweep; what was computed is kept."""
    return SlowFigures(small_runs, tmp_path_factory.mktemp("resamples"))


@pytest.fixture(scope="session")
def report(small_runs: SmallRuns) -> Report:
    """The report of that sweep."""
    return small_report(small_runs, command="logn report run --output <page>")


@pytest.fixture(scope="session")
def page_text(report: Report) -> str:
    """Its page."""
    return build_report(report)


@pytest.fixture(scope="session")
def page(page_text: str) -> Page:
    """What the page holds."""
    return Page(page_text)


@pytest.fixture
def page_file(page_text: str, tmp_path: Path) -> Path:
    """The page as a file."""
    path = tmp_path / "report.html"
    path.write_text(page_text, encoding="utf-8")
    return path


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages without figures, which take most of the time."""
    monkeypatch.setattr(figures, "svg_data_uri", lambda figure: "data:,")
