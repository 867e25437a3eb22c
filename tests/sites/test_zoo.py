"""Detectron2's models, with random weights, through every verb that needs no training.

See `zoo_models` for which; ``pytest -v`` prints the matrix of models and verbs.
"""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from logn_d2 import attach, collect, fold
from logn_d2.core import LogitStatistics
from logn_d2.errors import UserError
from logn_d2.sites import known_site

from ..modeling.small_models import assert_same, detections
from .zoo_models import NAMES, build, image, is_refused

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]
SUPPORTED = [name for name in NAMES if not is_refused(name)]
REFUSED = [name for name in NAMES if is_refused(name)]
# Three branches in training and one in evaluation: RoIs of the one can't be sampled by the other.
UNSAMPLED = {"TridentNet": "several branches"}


@pytest.fixture(scope="module", params=SUPPORTED, ids=str)
def model(request: pytest.FixtureRequest) -> nn.Module:
    found = build(request.param)
    found.name = request.param
    return found


@pytest.fixture(scope="module")
def before(model: nn.Module) -> list[dict[str, Tensor]]:
    return outputs(model)


@pytest.fixture(scope="module")
def statistics(model: nn.Module) -> LogitStatistics:
    return collect(model, [[image()]], population="proposals")


@pytest.fixture(scope="module")
def attached(model: nn.Module, statistics: LogitStatistics) -> list[dict[str, Tensor]]:
    with attach(model, statistics):
        return outputs(model)


def outputs(model: nn.Module) -> list[dict[str, Tensor]]:
    """All detections of an image, or the scores of its pixels."""
    site = known_site(model)
    if site is None or site.results == "instances":
        return detections(model, [image()])
    with torch.no_grad():
        return [{"scores": model([image()])[0]["sem_seg"].flatten()}]


def best_scores(found: list[dict[str, Tensor]]) -> Tensor:
    return found[0]["scores"].sort(descending=True).values


def test_collect_at_test(statistics):
    assert statistics.num_rois > 0


def test_collect_as_in_training(model, before):
    reason = next((why for project, why in UNSAMPLED.items() if project in model.name), None)
    if reason is not None:
        with pytest.raises(UserError, match=reason):
            collect(model, [[image()]])
        return
    found = collect(model, [[image()]])
    assert found.num_rois > 0
    assert found.stages[0].mean.isfinite().all()


def test_attach(before, attached):
    assert not torch.equal(best_scores(attached), best_scores(before))


def test_detach_bit_for_bit(model, before, attached):
    assert_same(outputs(model), before)


def test_fold(model, statistics, attached):
    folded = outputs(fold(copy.deepcopy(model), statistics))
    torch.testing.assert_close(best_scores(folded), best_scores(attached), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", REFUSED, ids=str)
def test_refused_in_a_sentence(name):
    model = build(name)
    for verb in (attach, fold):
        with pytest.raises(UserError, match=r"docs/sites.md"):
            verb(model, "temperature(temperature=2)")
    with pytest.raises(UserError, match=r"docs/sites.md"):
        collect(model, [[image()]], population="proposals")
