"""Heads of the forms of MaskFormer and of CenterNet2, written here, through every verb."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch
from detectron2.modeling.proposal_generator import PROPOSAL_GENERATOR_REGISTRY
from detectron2.modeling.roi_heads import FastRCNNOutputLayers
from detectron2.structures import Boxes, Instances
from torch import Tensor, nn

from logn_d2 import attach, collect, fold
from logn_d2.core import AffineCalibration
from logn_d2.sites import LogitSite
from logn_d2.sweeps import sweep

from ..modeling.small_models import NUM_CLASSES, assert_same, detections, images, small_model

pytestmark = pytest.mark.usefixtures("one_thread")
CLASSES, QUERIES, WIDTH = NUM_CLASSES, 8, 16


class MaskQueries(nn.Module):
    """MaskFormer's form: each decoder layer's queries are classified, and each has a mask.

    The class layer is called once for each decoder layer, as in Mask2Former.
    """

    def __init__(self) -> None:
        super().__init__()
        self.pixels = nn.Conv2d(3, WIDTH, 8, stride=8)
        self.queries = nn.Embedding(QUERIES, WIDTH)
        self.decoders = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.class_embed = nn.Linear(WIDTH, CLASSES + 1)

    def forward(self, inputs: Sequence[Mapping[str, Any]]) -> list[dict[str, Instances]]:
        pixels = self.pixels(torch.stack([each["image"] for each in inputs]) / 255)
        state = self.queries.weight + pixels.mean(dim=(2, 3))[:, None]
        for layer in self.decoders:
            state = torch.tanh(layer(state))
            logits = self.class_embed(state)
        masks = torch.einsum("nqd,ndhw->nqhw", state, pixels) > 0
        return [self._detections(*each) for each in zip(inputs, logits, masks)]

    def _detections(
        self, image: Mapping[str, Any], logits: Tensor, masks: Tensor
    ) -> dict[str, Instances]:
        scores, index = logits.softmax(dim=-1)[:, :-1].flatten().topk(10)
        found = Instances(image["image"].shape[-2:], scores=scores, pred_classes=index % CLASSES)
        found.pred_masks = masks[index // CLASSES]
        found.pred_boxes = Boxes((index // CLASSES)[:, None] + torch.tensor([0.0, 0, 8, 8]))
        return {"instances": found}


@pytest.fixture(scope="module")
def queries() -> nn.Module:
    torch.manual_seed(0)
    model = MaskQueries().eval()
    nn.init.normal_(model.class_embed.weight)
    return model


def site_of(model: nn.Module) -> LogitSite:
    return LogitSite(
        [model.class_embed],
        num_classes=CLASSES,
        background="last",
        activation="softmax",
        axis=-1,
        calls="last",
        reused=[model.pixels, *model.decoders],
    )


def calibration() -> AffineCalibration:
    shift = torch.linspace(-1, 1, CLASSES)
    return AffineCalibration(0.5 + shift.abs(), shift)


def raw_logits(model: nn.Module, layer: nn.Module) -> list[Tensor]:
    """All outputs of a layer for two images, by a hook of the test's own."""
    kept = []
    handle = layer.register_forward_hook(lambda module, args, output: kept.append(output))
    detections(model, images(2))
    handle.remove()
    return kept


def check_attach_detach_and_fold(model: nn.Module, stages: int, **site: LogitSite) -> None:
    """Attached, detached and folded as any other detector."""
    before = detections(model, images(2))
    with attach(model, [calibration()] * stages, **site):
        attached = detections(model, images(2))
    assert not torch.equal(attached[0]["scores"], before[0]["scores"])
    assert_same(detections(model, images(2)), before)
    fold(model, [calibration()] * stages, **site)
    for one, other in zip(detections(model, images(2)), attached, strict=True):
        torch.testing.assert_close(one["scores"], other["scores"], rtol=1e-4, atol=1e-5)


def test_masks_of_queries_count_the_last_of_several_calls(queries):
    found = collect(queries, [images(2)], site=site_of(queries), population="proposals")
    calls = raw_logits(queries, queries.class_embed)
    assert len(calls) == 3 and found.num_rois == 2 * QUERIES
    expected = calls[-1].double().flatten(0, 1).mean(dim=0)
    torch.testing.assert_close(found.stages[0].mean, expected)


def test_masks_of_queries_are_calibrated_and_folded(queries):
    model = copy.deepcopy(queries)
    check_attach_detach_and_fold(model, stages=1, site=site_of(model))


def test_masks_of_queries_are_swept(queries):
    with attach(queries, calibration(), site=site_of(queries)):
        attached = detections(queries, images(2))
    batches = [[each] for each in images(2)]
    swept = sweep(queries, batches, {"one": [calibration()]}, site=site_of(queries))
    found = torch.as_tensor(swept.detections("one").score).sort().values
    expected = torch.cat([each["scores"] for each in attached]).sort().values
    torch.testing.assert_close(found, expected, check_dtype=False)


@PROPOSAL_GENERATOR_REGISTRY.register()
class DenseProposals(nn.Module):
    """CenterNet2's first stage: boxes with a probability, from no region proposal network."""

    def __init__(self, cfg: Any, input_shape: Any) -> None:
        super().__init__()

    def forward(
        self, images: Any, features: Mapping[str, Tensor], gt_instances: Any = None
    ) -> tuple[list[Instances], dict[str, Tensor]]:
        corner = torch.arange(0, 40, 8.0)
        y, x = (each.flatten() for each in torch.meshgrid(corner, corner, indexing="ij"))
        found = []
        for size in images.image_sizes:
            boxes = Boxes(torch.stack([x, y, x + 20, y + 20], dim=1))
            scores = torch.linspace(0.2, 0.9, len(x))
            found.append(Instances(size, proposal_boxes=boxes, objectness_logits=scores))
        return found, {}


class ProposalTimesClass(FastRCNNOutputLayers):
    """CenterNet2's second stages: sigmoid scores, times the probability of the proposal."""

    def predict_probs(self, predictions: Any, proposals: list[Instances]) -> Sequence[Tensor]:
        scores = predictions[0].sigmoid()
        if proposals[0].has("objectness_logits"):
            scores = (scores * torch.cat([p.objectness_logits for p in proposals])[:, None]).sqrt()
        return scores.split([len(p) for p in proposals])


def cascade() -> nn.Module:
    name = "MODEL__PROPOSAL_GENERATOR__NAME"
    model = small_model("CascadeROIHeads", MODEL__MASK_ON=False, **{name: "DenseProposals"})
    for predictor in model.roi_heads.box_predictor:
        predictor.__class__ = ProposalTimesClass
        predictor.use_sigmoid_ce = True
    return model


@pytest.mark.parametrize("population", ["sampled", "proposals"])
def test_every_stage_of_a_probabilistic_cascade_has_statistics(population):
    found = collect(cascade(), [images(2)], population=population)
    assert (len(found.stages), found.activation) == (3, "sigmoid")
    assert all(stage.mean.isfinite().all() for stage in found.stages)
    if population == "proposals":
        model = cascade()
        calls = raw_logits(model, model.roi_heads.box_predictor[0].cls_score)
        torch.testing.assert_close(found.stages[0].mean, calls[0].double().mean(dim=0))


def test_a_probabilistic_cascade_is_calibrated_and_folded():
    check_attach_detach_and_fold(cascade(), stages=3)
