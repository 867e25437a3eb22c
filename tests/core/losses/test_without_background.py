"""Each loss's form for K classes alone, against its formula written out for K columns."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from logn_d2.core import AffineCalibration, ClassCounts
from logn_d2.core.losses import (
    LOSS_REGISTRY,
    LossWithoutBackground,
    SoftmaxLoss,
    build_loss,
    build_loss_without_background,
)
from logn_d2.errors import UserError

K = 4
NAMES = tuple("abcd")
IMAGES = np.array([50, 20, 4, 1])
COUNTS = ClassCounts(NAMES, IMAGES, IMAGES, int(IMAGES.sum()))
WITHOUT_FORM = {"bags", "ecm", "federated"}
WITH_FORM = sorted(set(LOSS_REGISTRY) - WITHOUT_FORM)


def build(text):
    return build_loss_without_background(text, K, COUNTS)


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(12, K, generator=generator, dtype=torch.float64)
    return logits.requires_grad_(), torch.arange(12) % K


def softmax_of(adjust):
    return lambda z, y: F.cross_entropy(adjust(z), y)


def sigmoid_of(z, y, weight=1.0):
    truth = F.one_hot(y, K).to(z)
    cost = F.binary_cross_entropy_with_logits(z, truth, reduction="none")
    return (cost * weight).sum(1).mean()


def seesaw(z, y):
    """Written out as in Wang et al., CVPR 2021, Eq. 3 to 7, for the batch as the first one."""
    count = torch.bincount(y, minlength=K).double().clamp(min=1)
    probability, total = z.detach().softmax(1), 0.0
    for row, label, sigma in zip(z, y, probability):
        scale = torch.minimum(torch.ones(K), count / count[label]) ** 0.8
        scale = scale * torch.clamp(sigma / sigma[label].clamp(min=0.01), min=1) ** 2.0
        scale[label] = 1.0
        total = total - (row[label] - (row + scale.log()).logsumexp(0))
    return total / len(z)


def loce(z, y):
    score = z.detach().softmax(1)
    mean = torch.full((K,), 0.01, dtype=torch.float64)
    for c in range(K):
        own = score[y == c, c]
        kept = 0.9 ** len(own)
        mean[c] = kept * 0.01 + (1 - kept) * own.mean()
    return F.cross_entropy(z + mean.log(), y)


def inverse_logn(z, y):
    mean, var = 0.5 * z.detach().mean(0), 0.5 + 0.5 * z.detach().var(0)
    return F.cross_entropy(var.sqrt() * z + mean, y)


def focal(z, y):
    truth = F.one_hot(y, K).bool()
    p = torch.where(truth, z.sigmoid(), (-z).sigmoid())
    alpha = torch.where(truth, 0.25, 0.75)
    return (-alpha * (1 - p) ** 2 * p.log()).sum(1).mean()


PRIOR = torch.tensor(IMAGES / IMAGES.sum())
EXPECTED = {
    "cross_entropy": softmax_of(lambda z: z),
    "logit_norm(tau=0.1)": softmax_of(lambda z: z / (0.1 * (z.norm(dim=1, keepdim=True) + 1e-7))),
    "balanced_softmax": softmax_of(lambda z: z + PRIOR.log()),
    "seesaw": seesaw,
    "loce": loce,
    "inverse_logn(momentum=0.5)": inverse_logn,
    "focal": focal,
    "sigmoid_cross_entropy": sigmoid_of,
    "eql_v2": lambda z, y: sigmoid_of(
        z, y, torch.where(F.one_hot(y, K).bool(), 1 + 4 * (1 - torch.tensor(1.0)), 1.0)
    ),
    "balanced_sigmoid": lambda z, y: sigmoid_of(z + PRIOR.logit(), y),
    "eql(threshold=0.1)": lambda z, y: sigmoid_of(
        z, y, torch.where((PRIOR < 0.1) & ~F.one_hot(y, K).bool(), 0.0, 1.0)
    ),
}


def test_every_loss_is_covered_here():
    assert {text.partition("(")[0] for text in EXPECTED} == set(WITH_FORM)


@pytest.mark.parametrize("text", EXPECTED)
def test_equals_its_formula_without_background(text, batch):
    logits, labels = batch
    loss = build(text)
    found = loss(logits, labels)
    expected = EXPECTED[text](logits, labels)
    torch.testing.assert_close(found, expected.to(found), rtol=1e-6, atol=1e-9)
    gradients = [torch.autograd.grad(each, logits)[0] for each in (found, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("name", WITH_FORM)
def test_scores_are_of_k_classes(name, batch):
    loss = build(name)
    scores = loss.scores(batch[0].float())
    assert loss.num_outputs == K and scores.shape == (12, K)
    assert ((scores >= 0) & (scores <= 1)).all()
    if isinstance(loss.inner, SoftmaxLoss) or name == "seesaw":
        torch.testing.assert_close(scores.sum(1), torch.ones(12))
    assert torch.equal(scores.argmax(1), batch[0].argmax(1))


@pytest.mark.parametrize("name", WITH_FORM)
def test_steps_leave_finite_state_that_a_checkpoint_brings_back(name, batch):
    loss, again = build(name), build_loss_without_background(name, K)
    for _ in range(3):
        loss(batch[0].float(), batch[1]).backward()
    assert all(value.isfinite().all() for value in loss.state_dict().values())
    again.load_state_dict(loss.state_dict())
    torch.testing.assert_close(again.eval()(batch[0], batch[1]), loss.eval()(batch[0], batch[1]))


@pytest.mark.parametrize("name", WITH_FORM)
def test_no_inputs_and_half_precision(name):
    loss = build(name)
    empty = torch.zeros(0, K, requires_grad=True)
    loss(empty, torch.zeros(0, dtype=torch.int64)).backward()
    assert empty.grad.shape == (0, K)
    half = loss(torch.randn(3, K).half(), torch.tensor([0, 1, 3]))
    assert half.dtype == torch.float32 and half.isfinite()


@pytest.mark.parametrize("name", sorted(WITHOUT_FORM))
def test_losses_that_need_background_are_refused(name):
    with pytest.raises(UserError, match="no form without background.*cross_entropy.*seesaw"):
        build(name)
    with pytest.raises(UserError, match="no form without background"):
        LossWithoutBackground(build_loss(name, K, COUNTS))


def test_calibrations_of_each():
    obstacles = {name for name in WITH_FORM if not build(name).calibratable}
    assert obstacles == {"logit_norm"}
    build("logit_norm(test_scores=raw)").check_calibratable()
    with pytest.raises(UserError, match="normalised after it"):
        build("logit_norm").check_calibratable()
    for loss in (build("seesaw"), build("eql_v2")):
        assert all(each.calibratable for each in loss.modules() if each is not loss)


def test_calibrated_seesaw_is_the_softmax_of_calibrated_logits(batch):
    logits = batch[0].detach().float()
    calibration = AffineCalibration(
        torch.tensor([1.0, 0.5, 2.0, 1.0]), torch.arange(4.0), background="none"
    )
    found = build("seesaw").scores(calibration(logits))
    torch.testing.assert_close(found, calibration(logits).softmax(1))


def test_shapes_and_numbers_of_classes():
    with pytest.raises(UserError, match=r"expects logits of shape \(R, 4\), found \(2, 5\)"):
        build("cross_entropy")(torch.zeros(2, 5), torch.zeros(2, dtype=torch.int64))
    with pytest.raises(UserError, match="at least 2"):
        build_loss_without_background("cross_entropy", 1)
