"""Calibrations computed from a classifier's weights: tau_norm and lws, by name."""

import pytest
import torch

from logn_d2.core import (
    CalibrationInputs,
    build_calibration,
    fold_linear,
    learned_scales,
    lws,
    stage_calibrations,
    tau_norm,
)

WEIGHT = torch.tensor([[2.0, -0.5], [0.5, 0.0], [-1.0, -2.0], [1.0, 3.0]])
BIAS = torch.tensor([0.1, 0.2, 0.3, 0.4])
X = torch.tensor([[1.0, 1.0]])
SCALE = torch.tensor([0.5, 1.0, 2.0, 1.0])


def logits(weight=WEIGHT, bias=BIAS):
    return X @ weight.T + bias


def inputs(**options):
    return CalibrationInputs(3, classifier=lambda: (WEIGHT, BIAS), **options)


def checkpoint(path, **tensors):
    torch.save({"model": tensors, "iteration": 3}, path)
    return str(path)


def test_lws_is_the_weight_only_form():
    expected = torch.tensor([[0.85, 0.7, -5.7, 4.4]])  # EQL v2's decoupled configs
    torch.testing.assert_close(lws(SCALE, BIAS)(logits()), expected)


def test_lws_without_bias_scales_the_logits():
    torch.testing.assert_close(lws(SCALE)(logits()), logits() * SCALE)


def test_background_column_is_untouched():
    found = lws(torch.full((4,), 3.0), BIAS)(logits())
    assert torch.equal(found[:, -1], logits()[:, -1])


def test_folded_lws_is_the_scaled_weight():
    weight, bias = fold_linear(WEIGHT, BIAS, lws(SCALE, BIAS))
    torch.testing.assert_close(weight, WEIGHT * SCALE[:, None])
    torch.testing.assert_close(bias, BIAS)


def test_tau_norm_by_name_is_the_function():
    found = build_calibration("tau_norm(tau=0.5, keep_bias=False)", inputs())(logits())
    expected = tau_norm(WEIGHT, BIAS, tau=0.5, keep_bias=False)(logits())
    assert torch.equal(found, expected)


@pytest.mark.parametrize("text", ["tau_norm", "lws(checkpoint=a)"])
def test_weights_that_are_not_known_are_an_error(text):
    with pytest.raises(ValueError, match="needs the weights of the classifier"):
        build_calibration(text, CalibrationInputs(3))


def test_weights_are_read_only_when_they_are_needed():
    def never():
        raise AssertionError

    stage_calibrations("temperature(temperature=2)", num_classes=3, classifiers=[never])


def test_lws_by_name_reads_its_stage(tmp_path):
    names = [f"roi_heads.box_predictor.{stage}.cls_score.class_scale" for stage in range(2)]
    path = checkpoint(tmp_path / "a.pth", **{names[1]: SCALE, names[0]: torch.ones(4)})
    first, second = stage_calibrations(
        f"lws(checkpoint={path!r})",
        num_classes=3,
        num_stages=2,
        classifiers=[lambda: (WEIGHT, BIAS)] * 2,
    )
    assert torch.equal(first(logits()), logits())
    assert torch.equal(second(logits()), lws(SCALE, BIAS)(logits()))


def test_scales_of_another_head_are_refused(tmp_path):
    path = checkpoint(tmp_path / "a.pth", **{"cls_score.class_scale": torch.ones(6)})
    with pytest.raises(ValueError, match=r"scales of \[6\] columns.*head with 4"):
        build_calibration(f"lws(checkpoint={path!r})", inputs())
    path = checkpoint(tmp_path / "b.pth", **{"cls_score.class_scale": torch.ones(4)})
    with pytest.raises(ValueError, match="this is stage 1"):
        build_calibration(f"lws(checkpoint={path!r})", inputs(stage_index=1))


def test_checkpoint_is_read_again_only_after_a_change(tmp_path, monkeypatch):
    reads, load = [], torch.load
    monkeypatch.setattr(torch, "load", lambda *args, **kw: reads.append(args) or load(*args, **kw))
    path = checkpoint(tmp_path / "a.pth", **{"cls_score.class_scale": SCALE})
    first, again = learned_scales(path), learned_scales(path)
    assert torch.equal(first[0], SCALE) and torch.equal(again[0], SCALE) and len(reads) == 1
    checkpoint(tmp_path / "a.pth", **{"cls_score.class_scale": torch.ones(7)})
    assert torch.equal(learned_scales(path)[0], torch.ones(7)) and len(reads) == 2


def test_gain_of_a_folded_calibration_is_not_learnt(tmp_path):
    path = checkpoint(tmp_path / "a.pth", **{"cls_score.gain": SCALE})
    with pytest.raises(ValueError, match=r"has no cls_score\.class_scale"):
        learned_scales(path)


def test_checkpoint_without_scales_is_named(tmp_path):
    path = checkpoint(tmp_path / "a.pth", **{"cls_score.weight": WEIGHT})
    with pytest.raises(ValueError, match=r"a\.pth has no cls_score\.class_scale"):
        learned_scales(path)
    with pytest.raises(FileNotFoundError):
        learned_scales(tmp_path / "none.pth")
    (tmp_path / "text.pth").write_text("no checkpoint")
    with pytest.raises(ValueError, match="can't be read"):
        learned_scales(tmp_path / "text.pth")
