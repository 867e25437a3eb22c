"""Export of folded models on the CPU; docs/your_project.md has the table."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
import torch
from detectron2.export import TracingAdapter, scripting_with_instances
from detectron2.structures import Boxes
from torch import Tensor, nn

from logn_d2.core import AffineCalibration
from logn_d2.modeling import find_box_predictors, fold

from .small_models import CHANNELS, NUM_CLASSES, images, small_model

pytestmark = [
    pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning"),
    # Raised inside torch's own exporters.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]


def folded_model(head: str, **options: object) -> nn.Module:
    model = small_model(head, MODEL__MASK_ON=False, **options)
    torch.manual_seed(2)
    calibrations = [
        AffineCalibration(0.5 + torch.rand(NUM_CLASSES), torch.randn(NUM_CLASSES))
        for _ in find_box_predictors(model)
    ]
    return fold(model, calibrations)


def detect(model: nn.Module, inputs: list[dict]) -> list[dict]:
    return [{"instances": model.inference(inputs, do_postprocess=False)[0]}]


def traced(model: nn.Module) -> tuple[TracingAdapter, torch.jit.ScriptModule]:
    adapter = TracingAdapter(model, [{"image": images(1)[0]["image"]}], detect)
    return adapter, torch.jit.trace(adapter, adapter.flattened_inputs, check_trace=False)


def scores_of(model: nn.Module, image: Tensor) -> Tensor:
    with torch.no_grad():
        return detect(model, [{"image": image}])[0]["instances"].scores


@pytest.mark.parametrize(
    ("head", "classifier"),
    [
        ("StandardROIHeads", "linear"),
        ("Res5ROIHeads", "linear"),
        ("CascadeROIHeads", "linear"),
        ("LogNROIHeads", "cosine"),
    ],
)
def test_trace_equals_the_model_on_images_of_other_sizes(head, classifier):
    model = folded_model(head, MODEL__LOGN__CLASSIFIER=classifier)
    adapter, trace = traced(model)
    for size in (64, 96):
        image = images(1, seed=3, size=size)[0]["image"]
        found = adapter.outputs_schema(trace(image))[0]["instances"]
        expected = scores_of(model, image)
        assert len(expected) and torch.equal(found.scores, expected)


@pytest.mark.parametrize("head", ["StandardROIHeads", "Res5ROIHeads"])
def test_trace_can_be_saved(head):
    model = folded_model(head)
    adapter, trace = traced(model)
    file = io.BytesIO()
    torch.jit.save(trace, file)
    file.seek(0)
    image = images(1, seed=3)[0]["image"]
    found = adapter.outputs_schema(torch.jit.load(file)(image))[0]["instances"]
    assert torch.equal(found.scores, scores_of(model, image))


def test_folded_standard_model_can_be_scripted():
    model = folded_model("StandardROIHeads")
    fields = {
        "proposal_boxes": Boxes,
        "objectness_logits": Tensor,
        "pred_boxes": Boxes,
        "scores": Tensor,
        "pred_classes": Tensor,
    }
    scripted = scripting_with_instances(model, fields)
    image = images(1, seed=3)[0]["image"]
    found = scripted.inference([{"image": image}], do_postprocess=False)[0]
    assert torch.equal(found.scores, scores_of(model, image))


class BoxBranch(nn.Module):
    """Pooled features to probabilities and box deltas: what an engine of one's own would run."""

    def __init__(self, roi_heads: nn.Module) -> None:
        super().__init__()
        self.box_head = roi_heads.box_head
        self.box_predictor = roi_heads.box_predictor

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        logits, deltas = self.box_predictor(self.box_head(features))
        return logits.softmax(dim=-1), deltas


@pytest.fixture(params=["linear", "cosine"])
def branch(request: pytest.FixtureRequest) -> BoxBranch:
    head = "StandardROIHeads" if request.param == "linear" else "LogNROIHeads"
    return BoxBranch(folded_model(head, MODEL__LOGN__CLASSIFIER=request.param).roi_heads).eval()


def features(rois: int) -> Tensor:
    return torch.randn(rois, CHANNELS, 3, 3, generator=torch.Generator().manual_seed(rois))


def test_exported_box_branch_takes_any_number_of_rois(branch):
    shapes = {"features": {0: torch.export.Dim("rois")}}
    program = torch.export.export(branch, (features(7),), dynamic_shapes=shapes)
    for rois in (3, 30):
        for found, expected in zip(program.module()(features(rois)), branch(features(rois))):
            assert torch.equal(found, expected)


def test_onnx_box_branch_gives_the_same_probabilities(branch, tmp_path: Path):
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    path = tmp_path / "branch.onnx"
    torch.onnx.export(
        branch,
        (features(7),),
        path,
        input_names=["features"],
        output_names=["probabilities", "deltas"],
        dynamic_shapes={"features": {0: torch.export.Dim("rois")}},
        dynamo=True,
        verbose=False,
    )
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    for rois in (3, 30):
        found = session.run(None, {"features": features(rois).numpy()})
        for mine, theirs in zip(found, branch(features(rois))):
            torch.testing.assert_close(torch.from_numpy(mine), theirs, rtol=0, atol=1e-6)
