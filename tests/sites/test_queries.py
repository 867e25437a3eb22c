"""A query-based detector of one's own, described in five lines, through every verb."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from logn_d2 import attach, collect, detach, fold
from logn_d2.core import AffineCalibration, LogitStatistics
from logn_d2.errors import UserError
from logn_d2.sites import SITE_REGISTRY, LogitSite, known_site

from ..modeling.small_models import assert_same, detections, images
from .small_queries import CLASSES, QUERIES, SmallDetr, matched, small_detr

pytestmark = pytest.mark.usefixtures("one_thread")
BOTH = pytest.mark.parametrize("no_object", [True, False])


def site_of(model: SmallDetr, **options: object) -> LogitSite:
    kinds = {True: ("last", "softmax"), False: ("none", "sigmoid")}
    background, activation = kinds[model.no_object]
    return LogitSite(
        [model.class_embed],
        num_classes=CLASSES,
        background=background,
        activation=activation,
        axis=-1,
        calls="last",
        matched=matched,
        **options,
    )


def batches(count: int = 3) -> list[list[dict]]:
    return [[image] for image in images(count, size=32)]


def all_logits(model: SmallDetr, count: int = 3) -> tuple[Tensor, Tensor]:
    """Logits (R, C) of the last decoder layer, and labels (R,), of all images."""
    inputs = [image for batch in batches(count) for image in batch]
    with torch.no_grad():
        return model.outputs(inputs)[0].flatten(0, 1), torch.cat(matched(model, inputs))


@BOTH
def test_statistics_are_of_the_last_decoder_layer_alone(no_object):
    model = small_detr(no_object)
    found = collect(model, batches(), site=site_of(model))
    logits, labels = all_logits(model)
    assert found.num_rois == 3 * QUERIES == len(logits)
    torch.testing.assert_close(found.stages[0].mean, logits.double().mean(dim=0))
    torch.testing.assert_close(found.stages[0].var, logits.double().var(dim=0))
    count = found.stages[0].posteriors.label_count
    columns = CLASSES + no_object
    assert count.tolist() == torch.bincount(labels, minlength=columns)[:columns].tolist()
    assert found.activation == ("softmax" if no_object else "sigmoid")


@BOTH
def test_a_foreground_population_leaves_out_queries_without_object(no_object):
    model = small_detr(no_object)
    found = collect(model, batches(), site=site_of(model), population="foreground")
    logits, labels = all_logits(model)
    assert found.num_rois == 3 * 3
    expected = logits[labels < CLASSES].double().mean(dim=0)
    torch.testing.assert_close(found.stages[0].mean, expected)


@BOTH
def test_all_verbs_take_the_site(no_object, tmp_path):
    model, inputs = small_detr(no_object), images(2, size=32)
    before, site = detections(model, inputs), site_of(model)
    collect(model, batches(), site=site).save(tmp_path / "s")
    attachment = attach(model, tmp_path / "s", site=site)
    calibration = attachment.calibrations[0]
    calibrated = detections(model, inputs)
    raw = all_logits(small_detr(no_object))[0]
    torch.testing.assert_close(all_logits(model)[0], calibration(raw))
    detach(model)  # which needs no site: the calibration says where it is
    assert_same(detections(model, inputs), before)
    fold(model, LogitStatistics.load(tmp_path / "s"), site=site)
    for one, other in zip(detections(model, inputs), calibrated):
        torch.testing.assert_close(one["scores"], other["scores"], rtol=1e-5, atol=1e-6)


def test_a_registered_site_needs_no_argument():
    @SITE_REGISTRY.register(f"{SmallDetr.__module__}.SmallDetr")
    def small_site(model: nn.Module) -> LogitSite:
        return site_of(model)

    try:
        model = small_detr(True)
        assert known_site(nn.Sequential(model)).layers == [model.class_embed]
        statistics = collect(model, batches())
        assert statistics.site == "SmallDetr"
        attach(model, statistics).detach()
    finally:
        del SITE_REGISTRY._entries[f"{SmallDetr.__module__}.SmallDetr"]


def test_an_error_about_a_wrong_description_names_the_expected_one():
    model = small_detr(True)
    with pytest.raises(UserError, match="has 5 outputs, expected a multiple of 4"):
        LogitSite([model.class_embed], num_classes=4, axis=-1)
    with pytest.raises(UserError, match="expected 'sigmoid' or 'softmax'"):
        LogitSite([model.class_embed], num_classes=5, axis=-1, activation="relu")
    with pytest.raises(UserError, match="at least one layer"):
        LogitSite([], num_classes=5)
    with pytest.raises(UserError, match="expected at least one layer|0 outputs"):
        LogitSite([nn.ReLU()], num_classes=5)


def test_without_a_matcher_there_are_candidates_as_at_test_alone():
    model = small_detr(True)
    site = LogitSite(
        [model.class_embed], num_classes=CLASSES, background="last", activation="softmax",
        axis=-1, calls="last",
    )  # fmt: skip
    with pytest.raises(UserError, match="does not define how candidates are matched"):
        collect(model, batches(), site=site)
    found = collect(model, batches(), site=site, population="proposals")
    assert found.num_rois == 3 * QUERIES


def test_weights_that_another_layer_shares_are_not_folded():
    model = small_detr(True)
    model.auxiliary = nn.Linear(16, CLASSES + 1)
    model.auxiliary.weight = model.class_embed.weight
    calibration = AffineCalibration.identity(CLASSES)
    with pytest.raises(UserError, match="shares its weights"):
        fold(model, calibration, site=site_of(model))


def test_the_error_for_an_unknown_detector_mentions_sites():
    with pytest.raises(UserError, match=r"docs/sites.md"):
        attach(small_detr(True), AffineCalibration.identity(CLASSES))
