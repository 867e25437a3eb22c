"""The fingerprint recognises other weights, and survives the conversions of checkpoints."""

import math

import pytest
import torch

from logn_d2.core import classifier_fingerprint
from logn_d2.core.fingerprint import fingerprint_differences


def draw_classifier(seed=0, columns=1204, channels=1024, spread=10.0, bias=0.1):
    """Row norms of a long-tailed classifier differ by a factor of ``spread``."""
    generator = torch.Generator().manual_seed(seed)
    norms = spread ** -torch.rand(columns, 1, generator=generator)
    weight = 0.1 * norms * torch.randn(columns, channels, generator=generator)
    return weight, bias * torch.randn(columns, generator=generator)


def differs(one, two):
    return fingerprint_differences(classifier_fingerprint(*one), classifier_fingerprint(*two))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("spread", [1.0, 10.0, 100.0])
@pytest.mark.parametrize("bias", [0.0, 0.1, 7.0])
def test_a_cast_to_half_precision_is_the_same_classifier(dtype, spread, bias):
    for seed in range(3):
        weight, bias_vector = draw_classifier(seed, spread=spread, bias=bias)
        cast = weight.to(dtype), bias_vector.to(dtype)
        assert not differs((weight, bias_vector), cast).any()


@pytest.mark.parametrize("columns", [2, 81, 1204])
def test_another_training_is_another_classifier(columns):
    one = draw_classifier(0, columns)
    assert differs(one, draw_classifier(1, columns)).float().mean() > 0.9


@pytest.mark.parametrize("spread", [1.0, 10.0])
def test_a_few_replaced_classes_are_found(spread):
    weight, bias = draw_classifier(spread=spread)
    changed = weight.clone()
    changed[600:603] = changed[600:603].flip(1)
    found = differs((weight, bias), (changed, bias))
    assert found.any() and not found[:600].any() and not found[603:].any()


def test_a_single_replaced_class_of_small_norm_is_found():
    weight, _ = draw_classifier()
    fingerprint = classifier_fingerprint(weight)
    # Among 1204 columns this one moves the root mean square by less than 1 %.
    rare = int((fingerprint.abs() / fingerprint.square().mean().sqrt() - 0.15).abs().argmin())
    changed = weight.clone()
    changed[rare] *= -1
    assert differs((weight,), (changed,)).nonzero().flatten().tolist() == [rare]


def test_a_changed_bias_is_another_classifier():
    weight, bias = draw_classifier()
    assert differs((weight, bias), (weight, bias + 1)).all()
    assert differs((weight, bias), (weight, None)).any()


def test_a_folded_classifier_is_another_classifier():
    weight, bias = draw_classifier(spread=1.0)
    assert differs((weight, bias), (weight / 1.5, bias)).any()


def test_other_shapes_and_nan_differ_everywhere():
    expected = torch.ones(4)
    assert fingerprint_differences(expected, torch.ones(5)).tolist() == [True] * 4
    assert fingerprint_differences(expected, torch.full((4,), torch.nan)).all()


def test_an_untrained_classifier_of_zeros_is_itself():
    assert not fingerprint_differences(torch.zeros(4), torch.zeros(4)).any()


def test_a_convolution_has_one_too():
    weight = torch.randn(5, 8, 1, 1)
    assert torch.equal(classifier_fingerprint(weight), classifier_fingerprint(weight.flatten(1)))


def test_formula_stays_as_it_is_in_files_that_people_have():
    weight, bias = torch.arange(6.0).reshape(2, 3), torch.tensor([0.5, -0.5])
    expected = [
        sum(w * math.cos(index + 1) for index, w in enumerate(row)) + b
        for row, b in zip(weight.tolist(), bias.tolist())
    ]
    assert classifier_fingerprint(weight, bias).tolist() == pytest.approx(expected, abs=1e-12)
