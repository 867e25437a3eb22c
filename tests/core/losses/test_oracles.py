"""Values worked out by hand, or by the methods' own code, on one small batch.

Tolerance 2e-6: they are printed to six decimals.
"""

import math

import pytest
import torch
from torch.nn import functional as F

from logn_d2.core import ClassCounts, StageStatistics, build_loss, logn

from .small_batch import COUNTS, GROUPED, LOGITS, NUM_CLASSES, OBJECTNESS, TARGETS, make

SOFTMAX = [[0.609460, 0.135989, 0.030343, 0.224208], [0.027788, 0.045814, 0.006200, 0.920198]]
SIGMOID = [[0.880797, 0.622459, 0.268941, 0.731059], [0.377541, 0.5, 0.119203, 0.952574]]


def close(found, expected):
    expected = torch.as_tensor(expected, dtype=torch.float64)
    torch.testing.assert_close(torch.as_tensor(found).double(), expected, rtol=0, atol=2e-6)


def put(loss, **buffers):
    for name, values in buffers.items():
        buffer = getattr(loss, name)
        buffer.copy_(torch.as_tensor(values, dtype=torch.float64))
    return loss


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("cross_entropy", 1.039174),
        ("sigmoid_cross_entropy", 2.104209),
        ("focal", 0.726722),
        ("focal(divide_by=positives)", 1.453443),
        ("focal(alpha=-1)", 0.991487),
        ("eql", 1.947579),
        ("balanced_sigmoid", 3.212155),
        ("balanced_softmax", 2.095488),
        ("ecm", 2.675167),
    ],
)
def test_losses_without_state(text, value):
    close(make(text)(LOGITS, TARGETS), value)


@pytest.mark.parametrize(
    ("text", "scores"),
    [
        ("cross_entropy", SOFTMAX),
        ("loce", SOFTMAX),
        ("inverse_logn", SOFTMAX),
        ("balanced_softmax", SOFTMAX),
        ("logit_norm(test_scores=raw)", SOFTMAX),
        ("sigmoid_cross_entropy", SIGMOID),
        ("federated", SIGMOID),
        ("focal", SIGMOID),
        ("eql", SIGMOID),
        ("balanced_sigmoid", SIGMOID),
        ("eql_v2", [[0.236883, 0.167405, 0.072329, 0.731059],
                    [0.017905, 0.023713, 0.005653, 0.952574]]),
    ],
)  # fmt: skip
def test_scores_at_test(text, scores):
    close(make(text).scores(LOGITS), scores)


def test_ecm_scores_margins_and_weights():
    loss = make("ecm")
    expected = [[0.236883, 0.167405, 0.072329], [0.017905, 0.023713, 0.005653]]
    close(loss.scores(LOGITS)[:, :3], expected)
    offset, weight = loss.margins()
    close(offset, [-0.490062, -1.095541, -1.847425, 0.461376])
    close(weight, [0.935571, 0.993802, 0.999691, 0.314651])


@pytest.mark.parametrize("name", ["sigmoid_cross_entropy", "focal", "eql", "balanced_sigmoid"])
def test_the_unused_column_changes_nothing(name):
    with_it, without = make(name), make(f"{name}(unused_column=False)")
    assert (with_it.num_outputs, without.num_outputs) == (NUM_CLASSES + 1, NUM_CLASSES)
    logits = LOGITS[:, :-1]
    assert torch.equal(without(logits, TARGETS), with_it(LOGITS, TARGETS))
    scores = without.scores(logits)
    assert torch.equal(scores[:, :-1], with_it.scores(LOGITS)[:, :-1])
    assert not scores[:, -1].any()


def test_balanced_softmax_of_classification():
    # A background logit that is far below all others leaves the three classes to themselves.
    logits = torch.cat([LOGITS[:1, :3], torch.full((1, 1), -1e4)], dim=1)
    close(make("balanced_softmax")(logits, TARGETS[:1]), 3.824896)


def test_balanced_softmax_is_menons_loss_of_any_strength():
    share = torch.as_tensor(COUNTS.instance_count / COUNTS.instance_count.sum())
    adjusted = LOGITS + 0.5 * torch.cat([share, torch.ones(1)]).log()
    loss = make("balanced_softmax(count=instance, tau=0.5)")
    close(loss(LOGITS, TARGETS), F.cross_entropy(adjusted, TARGETS))


@pytest.mark.parametrize("seed", range(6))
def test_federated_loss_of_the_drawn_classes(seed):
    loss = make("federated(classes=3)")  # the labels 1 and background, and one that is drawn
    loss.generator = torch.Generator().manual_seed(seed)
    value = loss(LOGITS, TARGETS).item()
    assert min(abs(value - 1.884115), abs(value - 0.803707)) < 2e-6


def test_federated_classes_are_drawn_by_the_root_of_their_images():
    loss = make("federated(classes=3)")
    loss.generator = torch.Generator().manual_seed(0)
    close(loss.class_weights(), [31.622777, 10.0, 2.236068])
    drawn = [loss(LOGITS, TARGETS).item() for _ in range(1000)]
    share = sum(value > 1.5 for value in drawn) / len(drawn)
    assert abs(share - 0.933959) < 4 * math.sqrt(0.934 * 0.066 / len(drawn))


def test_federated_loss_of_all_classes_is_sigmoid_cross_entropy():
    close(make("federated")(LOGITS, TARGETS), 2.104209)


def test_eql_v2():
    loss = put(make("eql_v2"), positive_gradient=[2, 1, 0.1], negative_gradient=[2.5, 4, 2])
    close(loss(LOGITS, TARGETS), 2.515578)
    close(loss.positive_gradient, [2, 2.885652, 0.1])
    close(loss.negative_gradient, [3.129169, 4.000679, 2.000048])
    close(loss.ratio, [0.639147, 0.721290, 0.049999])


def test_eql_v2_starts_as_sigmoid_cross_entropy_of_all_columns():
    targets = F.one_hot(TARGETS, 4).double()
    plain = F.binary_cross_entropy_with_logits(LOGITS, targets, reduction="none").sum() / 2
    # phi(100) is 1 in all digits.
    close(make("eql_v2")(LOGITS, TARGETS), plain)


def test_seesaw():
    logits = torch.cat([LOGITS[:, :3], OBJECTNESS], dim=1)
    loss = put(make("seesaw"), roi_count=[50, 20, 5, 1000])
    close(loss(logits, TARGETS), 2.255913 + 0.196076)
    assert loss.roi_count.tolist() == [50, 21, 5, 1001]
    close(loss.scores(logits), [[0.574317, 0.128148, 0.028594, 0.268941],
                                [0.026414, 0.043550, 0.005894, 0.924142]])  # fmt: skip


def test_seesaw_without_both_factors_is_two_cross_entropies():
    logits = torch.cat([LOGITS[:, :3], OBJECTNESS], dim=1)
    classes = F.cross_entropy(logits[:1, :3], TARGETS[:1]) / 2
    objectness = F.cross_entropy(logits[:, 3:], torch.tensor([0, 1]))
    close(make("seesaw(p=0, q=0)")(logits, TARGETS), classes + objectness)


def test_balanced_groups():
    loss = make("bags")
    assert loss.num_outputs == 9
    assert [group.tolist() for group in loss.groups()] == [[2], [], [1], [0]]
    close(loss(GROUPED, TARGETS), 0.596987)
    close(loss.scores(GROUPED), [[0.600203, 0.476065, 0.125869, 0.310026],
                                 [0.009382, 0.015736, 0.002249, 0.952574]])  # fmt: skip


def test_a_class_at_an_edge_is_in_the_group_above():
    edges = COUNTS.instance_count.tolist()  # 5000, 200, 8
    groups = make(f"bags(edges=[{edges[2]}, {edges[1]}])").groups()
    assert [group.tolist() for group in groups] == [[], [2], [0, 1]]


def test_balanced_groups_draw_as_many_others_as_asked():
    counts = ClassCounts(("a", "b"), COUNTS.image_count[:2], COUNTS.instance_count[:2], 2000)
    loss = build_loss("bags(others_ratio=2.5)", 2, counts)
    loss.generator = torch.Generator().manual_seed(0)
    labels = torch.tensor([1] * 10 + [0] * 2 + [2] * 20)
    for members, expected in [(labels == 0, 2 + 5), (labels == 1, 10 + 22), (labels == 9, 0)]:
        chosen = loss._choose(members)
        assert len(chosen) == expected == len(chosen.unique())
        assert members[chosen].sum() == members.sum()


def test_equilibrium():
    loss = put(make("loce").eval(), mean_score=[0.6, 0.3, 0.1, 0.01])
    close(loss(LOGITS, TARGETS), 1.893613)
    close(loss.roi_losses(LOGITS, TARGETS), [2.311814, 1.475411])


def test_equilibrium_with_equal_mean_scores_is_cross_entropy():
    close(make("loce").eval()(LOGITS, TARGETS), 1.039174)


def test_mean_score_moves_once_for_each_object():
    logits, targets = LOGITS[[0, 0, 1]], TARGETS[[0, 0, 1]]
    for objects, expected in [([7, 7, 0], 0.283599), ([7, 8, 0], 0.268838), (None, 0.268838)]:
        loss = put(make("loce"), mean_score=[0.6, 0.3, 0.1, 0.01])
        loss(logits, targets, None if objects is None else torch.tensor(objects))
        close(loss.mean_score, [0.6, expected, 0.1, 0.01])


def test_an_object_counts_with_the_mean_of_its_regions():
    logits = torch.cat([LOGITS, LOGITS.flip(0)])
    targets = torch.tensor([1, 1, 1, 3])
    loss = put(make("loce"), mean_score=[0.6, 0.3, 0.1, 0.01])
    loss(logits, targets, torch.tensor([0, 0, 1, 0]))
    first, second = (0.135989 + 0.045814) / 2, 0.045814
    close(loss.mean_score[1], 0.81 * 0.3 + 0.19 * (first + second) / 2)


@pytest.mark.parametrize(("options", "value"), [("beta=min", 2.411127), ("beta=none", 2.289434)])
def test_inverse_logn(options, value):
    loss = make(f"inverse_logn({options})").eval()
    put(loss, mean=[-2, -3, -5, 4], var=[4, 2.25, 1, 9])
    close(loss(LOGITS, TARGETS), value)


def test_inverse_logn_of_all_columns_takes_background_as_a_class():
    loss = make("inverse_logn(columns=all)").eval()
    put(loss, mean=[-2, -3, -5, 4], var=[4, 2.25, 1, 9])
    logits = torch.tensor([[2, -2.25, -6, 7], [-3, -3, -7, 13]], dtype=torch.float64)
    close(loss(LOGITS, TARGETS), F.cross_entropy(logits, TARGETS))


def test_inverse_logn_averages_batches_and_starts_as_cross_entropy():
    loss = make("inverse_logn(momentum=0.1)")
    close(loss.eval()(LOGITS, TARGETS), 1.039174)
    loss.train()(LOGITS, TARGETS)
    close(loss.mean, [0.075, 0.025, -0.15, 0.2])
    close(loss.var, [1.2125, 0.9125, 0.95, 1.1])
    logits = torch.tensor([[1, -1, -3, 2], [0, -2, -4, 5], [-2, -3, -5, 6]]).double()
    loss(logits, torch.tensor([3, 3, 3]))
    close(loss.mean, [0.034167, -0.1775, -0.535, 0.613333])
    close(loss.var, [1.324583, 0.92125, 0.955, 1.423333])


def test_inverse_logn_undoes_logn():
    mean, var = torch.tensor([-2.0, -3, -5, 4]).double(), torch.tensor([4, 2.25, 1, 9]).double()
    loss = put(make("inverse_logn(beta=min)").eval(), mean=mean, var=var)
    stage = StageStatistics(mean=mean, var=var, count=torch.full((4,), 9))
    torch.testing.assert_close(logn(stage)(loss.training_logits(LOGITS)), LOGITS)


def test_logit_norm_is_cross_entropy_of_scaled_directions():
    scaled = F.normalize(LOGITS, dim=1) / 0.04
    loss = make("logit_norm")
    torch.testing.assert_close(loss(LOGITS, TARGETS), F.cross_entropy(scaled, TARGETS))
    torch.testing.assert_close(loss.scores(LOGITS), scaled.softmax(dim=1))


def test_logit_norm_does_not_depend_on_the_length_of_logits():
    loss, logits = make("logit_norm"), LOGITS.clone().requires_grad_()
    torch.testing.assert_close(loss(30 * LOGITS, TARGETS), loss(LOGITS, TARGETS))
    (gradient,) = torch.autograd.grad(loss(logits, TARGETS), logits)
    assert (gradient * LOGITS).sum(dim=1).abs().max() < 1e-5 * gradient.abs().max()


@pytest.mark.parametrize("tau", [0.04, 0.2, 1.0])
def test_logit_norm_can_get_as_low_as_a_simplex_and_no_lower(tau):
    k = 21
    logits = torch.eye(k, dtype=torch.float64) - 1 / k
    expected = math.log1p((k - 1) * math.exp(-math.sqrt(k / (k - 1)) / tau))
    loss = build_loss(f"logit_norm(tau={tau})", k - 1)
    assert loss(logits, torch.arange(k)).item() == pytest.approx(expected, rel=1e-4)


def test_logit_norm_of_zeros_is_finite():
    logits = torch.zeros(2, 4, requires_grad=True)
    loss = make("logit_norm")(logits, TARGETS)
    assert loss.item() == pytest.approx(math.log(4))
    loss.backward()
    assert logits.grad.isfinite().all()
