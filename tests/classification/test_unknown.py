"""Unknown images as an evaluator: the figures of the arrays' functions."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from detectron2.evaluation import inference_on_dataset

from logn_d2.classification import OODEvaluator
from logn_d2.classification.logits import collect_logits
from logn_d2.core import AffineCalibration
from logn_d2.ood import OOD_SCORES, evaluate_ood, score_logits

from .small import K, images, small_model


def loader(seed, number=6):
    return [images(number, seed)[first : first + 2] for first in range(0, number, 2)]


@pytest.mark.parametrize("calibrated", [False, True])
def test_figures_are_those_of_both_sets_of_logits(calibrated):
    model = small_model()
    known, unknown = (collect_logits(model, loader(seed)) for seed in (0, 1))
    calibration = None
    if calibrated:
        scale, bias = torch.linspace(0.5, 2, K), torch.linspace(1, -1, K)
        calibration = AffineCalibration(scale, bias, background="none")
    evaluator = OODEvaluator(known, calibration=calibration)
    found = inference_on_dataset(model, loader(1), evaluator)["ood"]
    sides = [z.logits if calibration is None else calibration(z.logits) for z in (known, unknown)]
    for name in OOD_SCORES:
        expected = evaluate_ood(*(score_logits(name, side.numpy()) for side in sides))
        assert found[f"{name} auroc"] == 100 * expected.auroc
        assert found[f"{name} num_ood"] == 6
    assert len(found) == len(OOD_SCORES) * len(expected.as_dict())


def test_the_documented_example_runs(capsys):
    page = (Path(__file__).parents[2] / "docs" / "ood.md").read_text()
    blocks = re.findall(r"^```python\n(.*?)^```$", page, flags=re.M | re.S)
    (block,) = (block for block in blocks if "OODEvaluator" in block)
    names = {"my_classifier": small_model(), "my_known_loader": loader(0)}
    exec(compile(block, "ood.md", "exec"), {**names, "my_unknown_loader": loader(1)})
    printed = capsys.readouterr().out.splitlines()[-1]
    assert all(0 <= float(figure) <= 100 for figure in printed.split())


def test_a_score_that_does_not_exist_and_a_set_without_images_are_refused():
    model = small_model()
    known = collect_logits(model, loader(0))
    with pytest.raises(KeyError, match="msp"):
        inference_on_dataset(model, loader(1), OODEvaluator(known, scores=["mps"]))
    evaluator = OODEvaluator(known)
    evaluator.reset()
    with pytest.raises(ValueError, match="The evaluation had no images"):
        evaluator.evaluate()
