"""EmaLogitMoments against the BatchNorm1d of the released LogN code."""

import math

import pytest
import torch

from logn_d2.core import EmaLogitMoments, NonFiniteLogitsError

BATCH_A = torch.tensor([[2.0, 0.5, -1.0, 1.0], [-0.5, 0.0, -2.0, 3.0]])
BATCH_B = torch.tensor([[1.0, -1, -3, 2], [0, -2, -4, 5], [-2, -3, -5, 6]])


def close(found, expected, tolerance=1e-6):
    expected = torch.as_tensor(expected, dtype=torch.float64)
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("momentum", [5e-5, 1e-4, 0.1, 1.0])
def test_equals_batch_norm_in_training_mode(momentum):
    layer = torch.nn.BatchNorm1d(7, eps=1e-5, momentum=momentum, affine=False).double().train()
    moments = EmaLogitMoments(7, momentum)
    generator = torch.Generator().manual_seed(0)
    used = 0
    for size in (512, 2, 0, 1, 30, 3, 1, 0, 2):
        logits = torch.randn(size, 7, generator=generator, dtype=torch.float64) * 3 - 5
        moments.update(logits)
        if size >= 2:  # BatchNorm1d has no variance of fewer
            layer(logits)
            used += size
    close(moments.mean, layer.running_mean, 1e-12)
    close(moments.var, layer.running_var, 1e-12)
    assert moments.steps == layer.num_batches_tracked == 5
    assert moments.count.tolist() == [used] * 7


def test_worked_example():
    moments = EmaLogitMoments(4, momentum=0.1)
    moments.update(BATCH_A)
    close(moments.mean, [0.075, 0.025, -0.15, 0.2])
    close(moments.var, [1.2125, 0.9125, 0.95, 1.1])
    moments.update(BATCH_B)
    close(moments.mean, [0.034167, -0.1775, -0.535, 0.613333], 1e-5)
    close(moments.var, [1.324583, 0.92125, 0.955, 1.423333], 1e-5)
    mean, var = moments.debiased()
    close(mean, [0.179825, -0.934211, -2.815789, 3.228070], 1e-5)
    close(var, [2.708333, 0.585526, 0.763158, 3.228070], 1e-5)


@pytest.mark.parametrize("momentum", [5e-5, 0.1, 1.0])
def test_debiased_average_of_equal_batches_is_that_batch(momentum):
    moments = EmaLogitMoments(4, momentum)
    for _ in range(3):
        moments.update(BATCH_B)
    mean, var = moments.debiased()
    close(mean, BATCH_B.double().mean(0), 1e-9)
    close(var, BATCH_B.double().var(0), 1e-9)


def test_debiased_variance_of_a_constant_logit_is_not_negative():
    moments = EmaLogitMoments(1, momentum=5e-5)
    for _ in range(1000):
        moments.update(torch.full((4, 1), -3.3))
        assert moments.debiased()[1] >= 0


def test_nothing_seen_leaves_the_start_value_and_nothing_to_debias():
    moments = EmaLogitMoments(2)
    moments.update(torch.zeros(0, 2))
    moments.update(torch.ones(1, 2))
    assert (moments.mean.tolist(), moments.var.tolist()) == ([0, 0], [1, 1])
    with pytest.raises(ValueError, match="No batch was seen"):
        moments.debiased()


def test_half_precision_logits_are_averaged_in_float64():
    moments = EmaLogitMoments(1, momentum=1.0)
    logits = torch.linspace(-9, 1, 4000).half().reshape(-1, 1)
    before = logits.clone()
    moments.update(logits)
    close(moments.mean, logits.double().mean(0), 1e-12)
    assert torch.equal(logits, before)


def test_non_finite_logits_leave_the_state_intact():
    moments = EmaLogitMoments(4, momentum=0.1)
    moments.update(BATCH_A)
    before = moments.state_dict()
    with pytest.raises(NonFiniteLogitsError, match=r"columns \(2\)"):
        moments.update(torch.tensor([[0, 0, math.inf, 0], [0, 0, 1.0, 0]]))
    assert all(torch.equal(before[name], v) for name, v in moments.state_dict().items())


def test_state_round_trip_continues_bit_for_bit():
    moments = EmaLogitMoments(4, momentum=0.1)
    moments.update(BATCH_A)
    copy = EmaLogitMoments.from_state_dict(moments.state_dict(), momentum=0.1)
    for each in (moments, copy):
        each.update(BATCH_B)
    assert all(torch.equal(copy.state_dict()[k], v) for k, v in moments.state_dict().items())


def test_wrong_use_is_explained():
    with pytest.raises(ValueError, match=r"\(R, 4\), found \(2, 3\)"):
        EmaLogitMoments(4).update(torch.zeros(2, 3))
    with pytest.raises(ValueError, match="exact estimator"):
        EmaLogitMoments(4).update(BATCH_A, BATCH_A > 0)
    for momentum in (0.0, 1.5, -0.1):
        with pytest.raises(ValueError, match=r"expected a value in \(0, 1\]"):
            EmaLogitMoments(4, momentum)


def test_a_batch_of_many_anchors_is_taken_in_blocks(monkeypatch):
    logits = torch.randn(1000, 5, generator=torch.Generator().manual_seed(0)).double() * 3 - 4
    whole, parts = EmaLogitMoments(5, 0.1), EmaLogitMoments(5, 0.1)
    whole.update(logits)
    monkeypatch.setattr("logn_d2.core.moments._BLOCK", 37 * 5)
    parts.update(logits)
    for name in ("mean", "var"):
        torch.testing.assert_close(
            getattr(parts, name), getattr(whole, name), rtol=1e-12, atol=1e-12
        )
    assert parts.count.equal(whole.count) and parts.steps.equal(whole.steps)
