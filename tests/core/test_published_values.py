"""Values published by the sources of the methods, or that determine the meaning of a result.

A default that moves changes a method without an error. Each row names the source of its value.
"""

import inspect

import numpy as np
import pytest
import torch

from logn_d2.core import (
    LOSS_REGISTRY,
    ClassCounts,
    EmaLogitMoments,
    StageStatistics,
    build_loss,
    class_balanced,
    fracal,
    import_batch_norm,
    logit_adjustment,
    logn,
    norcal,
    p2p,
    tau_norm,
)
from logn_d2.core.fingerprint import fingerprint_differences
from logn_d2.core.losses.base import SoftmaxLoss

NEEDED = inspect.Parameter.empty

PUBLISHED = {
    # MMDetection's SeesawLoss and its LVIS v1 configs.
    "seesaw": {"p": 0.8, "q": 2.0, "eps": 0.01},
    # EQL v2's repository: lambda of LVIS v1, the prior of the classifier's biases.
    "eql": {"threshold": 0.0011, "prior": 0.001, "unused_column": True},
    # ECM's repository: objects of background for each of a class, on LVIS v1.
    "ecm": {"background_share": 6.3313},
    "eql_v2": {"gamma": 12.0, "mu": 0.8, "alpha": 4.0, "prior": 0.001},
    # BalancedGroupSoftmax: groups of below 10, 100, 1000 and of more objects; others_ratio.
    "bags": {"edges": (10, 100, 1000), "others_ratio": 8.0},
    # Detectron2's FED_LOSS_NUM_CLASSES and FED_LOSS_FREQ_WEIGHT_POWER; biases from 0.
    "federated": {"classes": 50, "power": 0.5, "prior": 0.5, "unused_column": True},
    # Detectron2's USE_SIGMOID_CE.
    "sigmoid_cross_entropy": {"prior": 0.5, "unused_column": True},
    # BalancedMetaSoftmax-InstanceSeg; the paper's tau is 1.
    "balanced_sigmoid": {"prior": 0.001, "unused_column": True},
    "balanced_softmax": {"count": "image", "tau": 1.0},
    # MMDetection's FocalLoss; RetinaNet's prior.
    "focal": {
        "gamma": 2.0, "alpha": 0.25, "divide_by": "rois", "prior": 0.01, "unused_column": True,
    },
    # LOCE's repository.
    "loce": {"momentum": 0.9, "background_score": 0.01, "initial_score": 0.01},
    # LogitNorm's repository: t of CIFAR-10, eps of its norm.
    "logit_norm": {"tau": 0.04, "eps": 1e-7, "test_scores": "normalized"},
    # Ours: the paper gives no momentum. Its second variant, beta = 0, is the one that helps.
    "inverse_logn": {"columns": "foreground", "beta": "none", "momentum": 1e-4},
    "cross_entropy": {},
}  # fmt: skip

CALIBRATIONS = {
    # Eq. 2 of the paper.
    logn: {
        "use_mean": True, "use_std": True, "beta": "min", "std_power": 1.0, "std_reference": "none",
        "source": "all",
    },
    # The paper divides by the whole prior, of all data. Centred: of ours.
    p2p: {"alpha": 1.0, "source": "all", "centre": "mean", "offset": 0.0},
    # No gamma is published for LVIS v1.
    norcal: {"gamma": NEEDED, "centre": "none", "offset": 0.0},
    class_balanced: {"gamma": NEEDED},
    # FRACAL's class default and both of its configs; its csv column of images.
    fracal: {"lam": 2.0, "count": "image"},
    logit_adjustment: {"tau": 1.0},
    # Kang et al.'s normalisation; detectors keep the bias.
    tau_norm: {"tau": 1.0, "keep_bias": True},
}  # fmt: skip


def options(function, without=("counts", "background", "unlabelled")):
    parameters = inspect.signature(function).parameters.values()
    keywords = [each for each in parameters if each.kind is each.KEYWORD_ONLY]
    return {each.name: each.default for each in keywords if each.name not in without}


def test_losses_have_the_published_defaults():
    assert {name: options(LOSS_REGISTRY.get(name)) for name in LOSS_REGISTRY} == PUBLISHED


def test_calibrations_have_the_published_defaults():
    assert {function: options(function) for function in CALIBRATIONS} == CALIBRATIONS


def test_released_logn_configs_have_this_momentum():
    for function in (EmaLogitMoments, import_batch_norm):
        assert inspect.signature(function).parameters["momentum"].default == 5e-5


def test_a_class_at_eqls_threshold_is_not_rare():
    """methods: T_c = 1[f_c < lambda], with f = 0.0025 in both."""
    counts = ClassCounts(("a", "b"), np.array([5, 5]), np.array([5, 5]), 2000)
    logits, targets = torch.zeros(1, 3), torch.tensor([0])
    plain = build_loss("sigmoid_cross_entropy", 2)(logits, targets)
    at, above = (
        build_loss(f"eql(threshold={value})", 2, counts)(logits, targets)
        for value in (0.0025, 0.00251)
    )
    assert at == plain and above < plain


def test_seen_in_all_images_is_half_an_image_short_of_it():
    """Balanced sigmoid: the offset of f = 1 would be infinite."""
    counts = ClassCounts(("a", "b"), np.array([10, 0]), np.array([10, 0]), 10)
    loss = build_loss("balanced_sigmoid", 2, counts)
    close = {"rtol": 0, "atol": 1e-6}
    found = loss(torch.zeros(1, 3), torch.tensor([0]))
    expected = -2 * torch.tensor(0.95).log()  # f = 0.95 and 0.05
    torch.testing.assert_close(found, expected, **close)


@pytest.mark.parametrize(
    ("var", "count", "usable"),
    [
        (0.99e-11, 9, False), (1.01e-11, 9, True),  # the released code's clamp
        (1.0, 1, False), (1.0, 2, True),
    ],
)  # fmt: skip
def test_a_class_is_usable_from_two_logits_and_the_released_clamp(var, count, usable):
    one = torch.ones(1, dtype=torch.float64)
    stage = StageStatistics(one, one * var, one.long() * count)
    assert stage.usable.item() is usable


def test_weights_differ_from_an_rms_of_one_percent():
    """Between a bfloat16 copy, 0.2 %, and another training, 6 %."""
    expected = torch.ones(100, dtype=torch.float64)
    for share, differs in ((0.009, False), (0.011, True)):
        assert fingerprint_differences(expected, expected * (1 + share)).any() == differs


def test_published_schedule_keeps_29_percent_of_the_start_value():
    """One epoch over 99,388 LVIS v1 images on four processes, one image a step."""
    moments = EmaLogitMoments(1)
    moments.update(torch.tensor([[1.0], [3.0]]))
    left = 1 - moments.mean.item() / 2
    assert left ** (99_388 // 4) == pytest.approx(0.2887, abs=1e-4)


def test_autocast_does_not_round_scores():
    class Rotated(SoftmaxLoss):
        def probabilities(self, logits):
            return super().probabilities(logits @ rotation)

    rotation = torch.randn(4, 4, generator=torch.Generator().manual_seed(0))
    logits = torch.randn(50, 4, generator=torch.Generator().manual_seed(1))
    loss = Rotated(3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert (logits @ rotation).dtype == torch.bfloat16
        under_autocast = loss.scores(logits)
    assert torch.equal(under_autocast, loss.scores(logits))
