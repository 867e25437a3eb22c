"""The metrics equal scikit-learn's and pytorch-ood's, and hand-made counts."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pytorch_ood.metrics import functional as theirs
from sklearn import metrics as sk

from logn_d2.errors import UserError
from logn_d2.ood import evaluate_ood, metrics, ood_table, resample_ood

TIGHT = {"rtol": 0, "atol": 1e-12}


def cases():
    """Pairs of ID and OOD scores: many, few, tied, separated, reversed, one each."""
    rng = np.random.default_rng(0)
    normal = rng.normal(1.0, 1.0, 1000), rng.normal(0.0, 1.5, 700)
    yield "normal", *normal
    yield "ties", *(np.round(side) for side in normal)
    yield "all tied", np.ones(5), np.ones(3)
    yield "separated", np.arange(10.0) + 20, np.arange(7.0)
    yield "reversed", np.arange(7.0), np.arange(10.0) + 20
    yield "one each", np.array([0.3]), np.array([0.1])
    yield "infinite", np.array([np.inf, 2.0, 1.0]), np.array([1.5, -np.inf])
    for index in range(20):
        sizes = rng.integers(1, 40, 2)
        yield f"small {index}", *(rng.integers(0, 6, size).astype(float) for size in sizes)


ALL = [pytest.param(*sides, id=name) for name, *sides in cases()]


def labelled(known, unknown):
    return np.r_[np.ones(len(known)), np.zeros(len(unknown))], np.r_[known, unknown]


# scikit-learn refuses infinite scores.
@pytest.mark.parametrize(("known", "unknown"), [case for case in ALL if case.id != "infinite"])
def test_equal_to_scikit_learn(known, unknown):
    truth, score = labelled(known, unknown)
    result = evaluate_ood(known, unknown)
    np.testing.assert_allclose(result.auroc, sk.roc_auc_score(truth, score), **TIGHT)
    np.testing.assert_allclose(result.ap_in, sk.average_precision_score(truth, score), **TIGHT)
    expected = sk.average_precision_score(1 - truth, -score)
    np.testing.assert_allclose(result.ap_out, expected, **TIGHT)
    for found, (y, s) in ((result.aupr_in, (truth, score)), (result.aupr_out, (1 - truth, -score))):
        precision, recall, _ = sk.precision_recall_curve(y, s)
        np.testing.assert_allclose(found, sk.auc(recall, precision), **TIGHT)
    accepted_ood, accepted_id, _ = sk.roc_curve(truth, score, drop_intermediate=False)
    first = np.flatnonzero(accepted_id >= 0.95)[0]
    np.testing.assert_allclose(result.fpr95_id_pos, accepted_ood[first], **TIGHT)
    error = ((1 - accepted_id + accepted_ood) / 2).min()
    np.testing.assert_allclose(result.detection_error, error, **TIGHT)


@pytest.mark.parametrize(("known", "unknown"), ALL)
def test_equal_to_pytorch_ood_under_both_conventions(known, unknown):
    truth, score = labelled(known, unknown)
    # Theirs: an outlier score, and labels below 0 for OOD, the positive class.
    outlier, labels = torch.tensor(-score), torch.tensor(truth - 1)
    result = evaluate_ood(known, unknown)
    np.testing.assert_allclose(result.auroc, theirs.auroc(outlier, labels), **TIGHT)
    np.testing.assert_allclose(result.fpr95_ood_pos, theirs.fpr_at_tpr(outlier, labels), **TIGHT)
    np.testing.assert_allclose(result.aupr_out, theirs.aupr(outlier, labels, "ood"), **TIGHT)
    np.testing.assert_allclose(result.aupr_in, theirs.aupr(outlier, labels, "id"), **TIGHT)
    swapped = theirs.fpr_at_tpr(-outlier, -1 - labels)  # ID is their positive class now
    np.testing.assert_allclose(result.fpr95_id_pos, swapped, **TIGHT)


def test_hand_made_counts():
    known, unknown = [5, 4, 3, 2], [3, 1]
    # Eight pairs: 5 and 4 beat both, 3 ties with one and beats the other, 2 beats one.
    assert metrics.auroc(known, unknown) == (2 + 2 + 1.5 + 1) / 8
    assert metrics.fpr95_id_pos(known, unknown) == 1 / 2  # all ID kept from 2 on: 3 is kept too
    assert metrics.fpr95_id_pos(known, unknown, level=0.5) == 0.0
    assert metrics.fpr95_ood_pos(known, unknown) == 2 / 4  # all OOD flagged up to 3: 3 and 2 fall
    assert metrics.detection_error(known, unknown) == (0 + 0.5) / 2
    assert metrics.average_precision_in(known, unknown) == pytest.approx(
        1 / 2 + 3 / 4 / 4 + 4 / 5 / 4
    )


def test_perfect_reversed_and_tied():
    perfect, worst = evaluate_ood([2, 3], [0, 1]), evaluate_ood([0, 1], [2, 3])
    assert (perfect.auroc, perfect.fpr95_id_pos, perfect.fpr95_ood_pos) == (1, 0, 0)
    assert (worst.auroc, worst.fpr95_id_pos, worst.fpr95_ood_pos) == (0, 1, 1)
    tied = evaluate_ood(np.ones(9), np.ones(3))
    assert (tied.auroc, tied.fpr95_id_pos, tied.detection_error) == (0.5, 1, 0.5)
    assert tied.distinct == 1 / 12


def test_the_conventions_differ():
    rng = np.random.default_rng(1)
    result = evaluate_ood(rng.normal(1, 1, 500), rng.normal(0, 2, 500))
    assert abs(result.fpr95_id_pos - result.fpr95_ood_pos) > 0.05
    assert result.aupr_in != result.ap_in


METRICS = (
    *("auroc", "aupr_in", "aupr_out", "average_precision_in", "average_precision_out"),
    *("detection_error", "fpr95_id_pos", "fpr95_ood_pos", "roc_curve"),
)


@pytest.mark.parametrize("metric", METRICS)
def test_an_empty_side_and_nan_are_refused(metric):
    function = getattr(metrics, metric)
    with pytest.raises(UserError, match=r"OOD scores have shape \(0,\)"):
        function([1.0], [])
    with pytest.raises(UserError, match=r"^The ID scores have shape \(0,\)"):
        function([], [1.0])
    with pytest.raises(UserError, match="1 of 3 ID scores are NaN, the first is number 2"):
        function([1.0, 2.0, np.nan], [1.0])
    with pytest.raises(UserError, match=r"shape \(1, 1\)"):
        function([[1.0]], [1.0])


def test_resamples_are_evaluations_of_the_draws():
    rng = np.random.default_rng(3)
    known, unknown = rng.normal(1, 1, 60).round(1), rng.normal(0, 1, 25).round(1)
    found, draws = resample_ood(known, unknown, samples=5, seed=8), np.random.default_rng(8)
    for index in range(5):
        sides = [side[draws.integers(len(side), size=len(side))] for side in (known, unknown)]
        expected = evaluate_ood(*sides).as_dict()
        for name, values in found.items():
            assert values[index] == pytest.approx(expected[name], abs=1e-12)
    assert set(found) | {"num_id", "num_ood", "distinct"} == set(expected)
    with pytest.raises(UserError, match="OOD scores have shape"):
        resample_ood([1.0], [])


@pytest.mark.parametrize("level", [0, 1.5, np.nan])
def test_levels_outside_their_range(level):
    with pytest.raises(UserError, match="level"):
        metrics.fpr95_id_pos([1.0], [0.0], level)


def test_inputs_stay_as_they_are():
    known, unknown = np.array([3.0, 1.0]), np.array([2.0])
    evaluate_ood(known, unknown)
    assert known.tolist() == [3, 1] and unknown.tolist() == [2]


def test_table_has_a_line_for_each_row():
    table = ood_table({name: evaluate_ood([1.0, 0.0], [0.5]) for name in ("msp", "energy")})
    assert table.splitlines()[2].startswith("| msp | 50.00 |") and len(table.splitlines()) == 4
