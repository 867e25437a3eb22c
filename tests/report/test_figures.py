"""Figures of ordinary data and of its limits: one class, empty groups, nothing measured."""

from __future__ import annotations

import base64
import math
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence

import numpy as np
import pytest
from matplotlib.figure import Figure

from logn_d2.report import ClassInfo, Results
from logn_d2.report.compared import Value
from logn_d2.report.figures import change_figure, logit_figure, prior_figure, svg_data_uri
from logn_d2.report.numbers import label_prior

METRICS = ("AP", "APr", "APc", "APf")


def _svg(figure: Figure) -> str:
    head, _, content = svg_data_uri(figure).partition(",")
    assert head == "data:image/svg+xml;base64"
    text = base64.b64decode(content).decode("utf-8")
    ElementTree.fromstring(text)
    return text


def _classes(count: object, groups: Sequence[str]) -> ClassInfo:
    """Classes with as many objects as images."""
    names = tuple(f"class {index}" for index in range(len(groups)))
    return ClassInfo(names, names, tuple(groups), np.array(count), np.array(count))


@pytest.mark.parametrize("groups", ["r", "f", "rcf", "rrff", ["few", "many", "few"], range(9)])
def test_logit_figure_draws_one_class_and_empty_groups(groups: str) -> None:
    count, groups = np.arange(1, len(groups) + 1), [str(group) for group in groups]
    figure = logit_figure(-count / 2, count / 3, _classes(count, groups))
    points = sum(len(collection.get_offsets()) for collection in figure.axes[0].collections)
    assert points == len(groups)
    assert len(figure.axes[0].get_legend().get_texts()) == len(set(groups))
    _svg(figure)


def test_logit_figure_leaves_out_classes_without_images() -> None:
    figure = logit_figure(np.zeros(3), np.ones(3), _classes([0, 5, 9], "rrr"))
    assert sum(len(c.get_offsets()) for c in figure.axes[0].collections) == 2
    _svg(logit_figure(np.zeros(1), np.ones(1), _classes([0], "r")))


def test_logit_figure_shows_the_correlation() -> None:
    classes = _classes([1, 10, 100], "rcf")
    figure = logit_figure(np.array([-3.0, -2.0, -1.0]), np.array([3.0, 2.0, 1.0]), classes)
    notes = [text.get_text() for axis in figure.axes for text in axis.texts]
    assert notes == ["Spearman's ρ = +1.00", "Spearman's ρ = −1.00"]


@pytest.mark.parametrize("share", [None, 0.0, 0.14, 1.0])
@pytest.mark.parametrize("num_classes", [1, 30])
def test_prior_figure_draws_with_and_without_the_share(
    num_classes: int, share: float | None
) -> None:
    prior = label_prior(-np.arange(num_classes) / 5)
    count = np.arange(num_classes)[::-1]
    figure = prior_figure(prior, _classes(count, "c" * num_classes), share)
    assert len(figure.axes) == (1 if share is None else 2)
    _svg(figure)


def test_change_figure_draws_defined_values() -> None:
    changes = {
        "LogN": {metric: Value(1.0, 0.5, 1.5) for metric in METRICS},
        "NorCal, gamma 0.6": {metric: Value(math.nan) for metric in METRICS},
    }
    figure = change_figure(changes)
    labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert labels == ["LogN", "NorCal, gamma 0.6"]
    _svg(figure)


def test_figures_follow_the_page_and_repeat_byte_for_byte(results: Results) -> None:
    def draw() -> str:
        count = results.classes.image_count
        return _svg(logit_figure(np.log(count), np.log(count), results.classes))

    text = draw()
    assert "currentColor" in text and "#010203" not in text and "prefers-color-scheme" in text
    assert text == draw()
