"""The cosine classifier against its definition, written out."""

import pytest
import torch
from detectron2.layers import ShapeSpec
from torch import nn

from logn_d2.modeling import CosineConv2d, CosineLinear, CosineMaskHead

from .small_models import assert_same, detections, images, small_config, small_model


def by_definition(layer: CosineLinear, x: torch.Tensor) -> torch.Tensor:
    """Row by row, in float64."""
    x, weight = x.double(), layer.weight.detach().double()
    rows = []
    for row in x:
        unit = row / (row.square().sum().sqrt() + 1e-6)
        units = [w / (w.square().sum().sqrt() + 1e-6) for w in weight]
        rows.append(torch.stack([layer.temperature * (unit * w).sum() for w in units]))
    return torch.stack(rows) + layer.bias.detach().double()


def test_logits_are_scaled_cosine_similarities_plus_bias():
    torch.manual_seed(0)
    layer = CosineLinear(7, 4, temperature=13.0)
    nn.init.normal_(layer.bias)
    x = torch.randn(5, 7) * 100
    torch.testing.assert_close(layer(x).double(), by_definition(layer, x), rtol=1e-5, atol=1e-5)


def test_logits_equal_the_reference_implementation():
    # NormedLinear of MMDetection on this input.
    layer = CosineLinear(2, 4)
    layer.weight.data = torch.tensor([[1.0, 0], [0, 2], [1, 1], [-1, 0]])
    layer.bias.data = torch.tensor([0, 0, 0, 0.5])
    expected = torch.tensor([[11.999986, 15.999989, 19.798972, -11.499986]])
    torch.testing.assert_close(layer(torch.tensor([[3.0, 4.0]])), expected, rtol=0, atol=5e-6)


def test_length_of_features_and_weights_has_no_effect():
    layer, x = CosineLinear(6, 3), torch.randn(4, 6)
    before = layer(x)
    layer.weight.data *= 50
    torch.testing.assert_close(layer(x * 30), before, rtol=1e-3, atol=1e-3)


def test_zero_features_give_the_bias():
    layer = CosineLinear(6, 3)
    nn.init.normal_(layer.bias)
    assert torch.equal(layer(torch.zeros(1, 6))[0], layer.bias)


def test_half_precision_features_do_not_overflow():
    layer = CosineLinear(64, 3)
    x = torch.full((2, 64), 3000.0)  # 64 * 3000^2 is beyond float16
    expected = layer(x)
    for logits in (layer(x.half()), layer.half()(x.half())):
        assert logits.dtype == torch.float32
        torch.testing.assert_close(logits, expected, rtol=0.01, atol=0.02)


def test_autocast_does_not_round_the_logits():
    layer, x = CosineLinear(64, 3), torch.randn(2, 64)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under_autocast = layer(x)
    assert under_autocast.dtype == torch.float32
    assert torch.equal(under_autocast, layer(x))


@pytest.mark.parametrize("rows", [0, 1])
def test_few_rows_work_and_input_is_unchanged(rows):
    x = torch.randn(rows, 6)
    copy = x.clone()
    assert CosineLinear(6, 3)(x).shape == (rows, 3)
    assert torch.equal(x, copy)


def test_gain_scales_the_similarity_and_not_the_bias():
    torch.manual_seed(0)
    plain = CosineLinear(6, 3)
    nn.init.normal_(plain.bias)
    scaled = CosineLinear(6, 3, gain=torch.tensor([0.5, 1.0, 2.0]))
    scaled.load_state_dict({**plain.state_dict(), "gain": scaled.gain.clone()})
    x = torch.randn(4, 6)
    expected = (plain(x) - plain.bias) * scaled.gain + plain.bias
    torch.testing.assert_close(scaled(x), expected)


def test_gain_is_in_a_checkpoint_only_where_there_is_one():
    plain = CosineLinear(6, 3)
    assert set(plain.state_dict()) == {"weight", "bias"}
    scaled = CosineLinear(6, 3, gain=torch.tensor([0.5, 1.0, 2.0]))
    plain.load_state_dict(scaled.state_dict())
    x = torch.randn(4, 6)
    assert torch.equal(plain(x), scaled(x))


def test_convolution_is_the_linear_layer_at_each_pixel():
    torch.manual_seed(0)
    convolution, linear = CosineConv2d(6, 3, 9.0), CosineLinear(6, 3, 9.0)
    nn.init.normal_(linear.bias)
    state = linear.state_dict()
    convolution.load_state_dict({**state, "weight": state["weight"][:, :, None, None]})
    x = torch.randn(2, 6, 4, 5)
    expected = linear(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    torch.testing.assert_close(convolution(x), expected)
    assert convolution(x[:0]).shape == (0, 3, 4, 5)


def test_mask_head_takes_its_temperature_from_the_config():
    options = {"MODEL__ROI_MASK_HEAD__NAME": "CosineMaskHead", "MODEL__LOGN__TEMPERATURE": 7.0}
    model = small_model("StandardROIHeads", **options)
    head = model.roi_heads.mask_head
    assert isinstance(head, CosineMaskHead)
    assert isinstance(head.predictor, CosineConv2d) and head.predictor.temperature == 7.0
    assert detections(model, images(1))[0]["pred_masks"].dtype == torch.bool


def test_mask_head_differs_from_detectron2_in_its_predictor_only():
    plain = small_model("StandardROIHeads").roi_heads.mask_head
    options = {"MODEL__ROI_MASK_HEAD__NAME": "CosineMaskHead"}
    cosine = small_model("StandardROIHeads", **options).roi_heads.mask_head
    assert list(plain.state_dict()) == list(cosine.state_dict())
    assert [n for n, _ in plain.named_children()] == [n for n, _ in cosine.named_children()]


def test_training_moves_the_mask_predictor():
    options = {"MODEL__ROI_MASK_HEAD__NAME": "CosineMaskHead"}
    config = small_config("StandardROIHeads", **options)
    head = CosineMaskHead(config, _shape(4))
    head.layers(torch.randn(2, 4, 3, 3)).square().sum().backward()
    assert head.predictor.weight.grad.abs().sum() > 0


def _shape(channels: int) -> ShapeSpec:
    return ShapeSpec(channels=channels, width=3, height=3)


def test_repeated_calls_agree():
    model = small_model("LogNROIHeads", MODEL__LOGN__CLASSIFIER="cosine")
    assert_same(detections(model, images()), detections(model, images()))


def test_plain_weights_bring_no_gain_with_them():
    plain, folded = CosineLinear(6, 3), CosineLinear(6, 3, gain=torch.tensor([0.5, 1.0, 2.0]))
    folded.load_state_dict(plain.state_dict())
    x = torch.randn(4, 6)
    assert torch.equal(folded(x), plain(x))
