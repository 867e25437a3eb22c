"""A folded classifier gives the calibrated logits."""

import pytest
import torch

from logn_d2.core import AffineCalibration, StageStatistics, fold_cosine, fold_linear, logn

STAGE = StageStatistics(
    mean=torch.tensor([-2.0, -3.0, -5.0, 4.0]),
    var=torch.tensor([4.0, 2.25, 1.0, 9.0]),
    count=torch.full((4,), 9),
)
WEIGHT = torch.tensor([[2, -0.5], [0.5, 0], [-1, -2], [1, 3]])
BIAS = torch.tensor([0.1, 0.2, 0.3, 0.4])
BACKGROUNDS = ["last", "first", "none"]


def close(found, expected, tolerance=1e-5):
    expected = torch.as_tensor(expected, dtype=torch.float64)
    torch.testing.assert_close(found.double(), expected, rtol=tolerance, atol=tolerance)


def draw(background, num_classes=7, channels=16):
    generator = torch.Generator().manual_seed(0)
    columns = num_classes + (background != "none")
    calibration = AffineCalibration(
        torch.rand(num_classes, generator=generator) + 0.1,
        torch.randn(num_classes, generator=generator) * 5,
        background=background,
    )
    weight = torch.randn(columns, channels, generator=generator)
    bias = torch.randn(columns, generator=generator)
    return calibration, weight, bias, torch.randn(20, channels, generator=generator)


def normed_linear(x, weight, bias, temperature):
    """MMDetection's NormedLinear, in float64."""
    x, weight = (
        each.double() / (each.double().norm(dim=1, keepdim=True) + 1e-6) for each in (x, weight)
    )
    return x @ weight.T * temperature + bias.double()


def test_linear_worked_example():
    weight, bias = fold_linear(WEIGHT, BIAS, logn(STAGE))
    close(weight, [[1, -0.25], [0.333333, 0], [-1, -2], [1, 3]])
    close(bias, [-1.45, -1.2, 0.3, 0.4])
    close(torch.eye(2) @ weight.T + bias, [[-0.45, -0.866667, -0.7, 1.4], [-1.7, -1.2, -1.7, 3.4]])


def test_cosine_worked_example():
    x, weight = torch.tensor([[3.0, 4.0]]), torch.tensor([[1.0, 0], [0, 2], [1, 1], [-1, 0]])
    bias = torch.tensor([0, 0, 0, 0.5])
    close(normed_linear(x, weight, bias, 20.0), [[11.999986, 15.999989, 19.798972, -11.499986]])
    gain, folded = fold_cosine(20.0, bias, logn(STAGE), num_columns=4)
    close(gain, [10, 20 / 1.5, 20, 20])
    found = normed_linear(x, weight, folded, gain.double())
    close(found, [[4.499993, 9.333326, 19.798972, -11.499986]])
    # The other fold: a plain linear layer on the normalised feature.
    plain = fold_linear(
        20.0 * weight / (weight.norm(dim=1, keepdim=True) + 1e-6), bias, logn(STAGE)
    )
    close((x / (x.norm() + 1e-6)) @ plain[0].T + plain[1], found)


@pytest.mark.parametrize("background", BACKGROUNDS)
@pytest.mark.parametrize("has_bias", [True, False])
def test_folded_linear_gives_the_calibrated_logits(background, has_bias):
    calibration, weight, bias, x = draw(background)
    bias = bias if has_bias else torch.zeros_like(bias)
    folded_weight, folded_bias = fold_linear(weight, bias if has_bias else None, calibration)
    expected = calibration.double()((x @ weight.T + bias).double())
    close(x @ folded_weight.T + folded_bias, expected)


@pytest.mark.parametrize("background", BACKGROUNDS)
@pytest.mark.parametrize("has_bias", [True, False])
def test_folded_cosine_gives_the_calibrated_logits(background, has_bias):
    calibration, weight, bias, x = draw(background)
    bias = bias if has_bias else torch.zeros_like(bias)
    gain, folded = fold_cosine(20.0, bias if has_bias else None, calibration, len(weight))
    expected = calibration.double()(normed_linear(x, weight, bias, 20.0))
    close(normed_linear(x, weight, folded, gain.double()), expected)


@pytest.mark.parametrize("background", ["last", "first"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_background_row_is_untouched_bit_for_bit(background, dtype):
    calibration, weight, bias, _ = draw(background)
    weight, bias = weight.to(dtype), bias.to(dtype)
    index = -1 if background == "last" else 0
    folded_weight, folded_bias = fold_linear(weight, bias, calibration)
    gain, cosine_bias = fold_cosine(20.0, bias, calibration, len(weight))
    assert torch.equal(folded_weight[index], weight[index])
    assert torch.equal(folded_bias[index], bias[index])
    assert gain[index] == 20 and torch.equal(cosine_bias[index], bias[index])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_type_is_kept_and_rounded_once(dtype):
    calibration, weight, bias, _ = draw("last")
    weight, bias = weight.to(dtype), bias.to(dtype)
    folded_weight, folded_bias = fold_linear(weight, bias, calibration)
    assert folded_weight.dtype == folded_bias.dtype == dtype
    # The float64 fold, rounded: a fold in the weights' own type would round on the way.
    exact_weight, exact_bias = fold_linear(weight.double(), bias.double(), calibration)
    assert torch.equal(folded_weight, exact_weight.to(dtype))
    assert torch.equal(folded_bias, exact_bias.to(dtype))
    x = torch.randn(20, 16, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    logits = x @ weight.double().T + bias.double()
    torch.testing.assert_close(
        x @ exact_weight.T + exact_bias, calibration(logits), rtol=1e-12, atol=1e-10
    )
    gain, cosine_bias = fold_cosine(20.0, bias, calibration, len(weight))
    assert gain.dtype == cosine_bias.dtype == dtype


def test_nothing_is_changed_in_place_and_nothing_is_shared():
    calibration, weight, bias, _ = draw("last")
    weight.requires_grad_()
    before = weight.detach().clone(), bias.clone(), calibration.shift.clone()
    for result in (
        *fold_linear(weight, bias, calibration),
        *fold_linear(weight, None, calibration),
        *fold_cosine(1.0, None, calibration, len(weight)),
    ):
        assert not result.requires_grad
        result.zero_()
    assert torch.equal(weight, before[0]) and torch.equal(bias, before[1])
    assert torch.equal(calibration.shift, before[2])


def test_identity_folds_to_the_same_classifier():
    _, weight, bias, _ = draw("last")
    folded = fold_linear(weight, bias, AffineCalibration.identity(7))
    assert torch.equal(folded[0], weight) and torch.equal(folded[1], bias)


def test_wrong_number_of_columns_is_an_error():
    calibration, weight, bias, _ = draw("last")
    with pytest.raises(ValueError, match="has 7 columns, but the calibration 'affine' has 8"):
        fold_linear(weight[:-1], bias[:-1], calibration)
    with pytest.raises(ValueError, match="has 9 columns"):
        fold_cosine(20.0, bias, calibration, num_columns=9)
    with pytest.raises(ValueError, match="has 5 columns"):
        fold_cosine(20.0, bias[:5], calibration, num_columns=8)


def test_folds_into_the_cosine_classifier_of_this_package():
    pytest.importorskip("detectron2")
    from logn_d2.modeling import CosineLinear

    calibration, weight, bias, x = draw("last")
    plain = CosineLinear(16, 8, temperature=20.0)
    plain.load_state_dict({"weight": weight, "bias": bias})
    gain, folded_bias = fold_cosine(1.0, bias, calibration, num_columns=8)
    folded = CosineLinear(16, 8, temperature=20.0)
    folded.load_state_dict({"weight": weight, "bias": folded_bias, "gain": gain})
    close(folded(x), calibration(plain(x)).double())
