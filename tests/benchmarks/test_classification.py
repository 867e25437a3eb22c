"""What all methods share, and paired differences in the tables."""

from __future__ import annotations

import json

import pytest
from detectron2.data import DatasetCatalog

from logn_d2.classification import register_images
from logn_d2.config import config_file
from logn_d2.core import expand_grid, parse_calibration
from logn_d2.core.losses import build_loss_without_background

from ..load_script import load_script


@pytest.fixture(scope="module")
def tool():
    return load_script("benchmarks/classification.py")


@pytest.fixture
def args(tool, tmp_path):
    return tool.parse_args(["--output", str(tmp_path), "--iterations", "30"])


@pytest.mark.parametrize("name", ["glyphs", "fashion", "digits"])
def test_methods_of_a_seed_share_data_seed_and_length_and_second_stages_their_first(
    tool, args, name
):
    args.set = name
    for head in tool.HEADS:
        configs = {n: tool.config_of(args, head, 7, n) for n, m in tool.METHODS.items()}
        first = configs["softmax"]
        for name, cfg in configs.items():
            assert cfg.DATASETS.TRAIN == (f"{args.set}7_train",) and cfg.SEED == 7
            assert head == cfg.MODEL.LOGN.CLASSIFIER and not cfg.MODEL.LOGN.CALIBRATION
            stage = bool(tool.METHODS[name].stage)
            assert cfg.SOLVER.MAX_ITER == (10 if stage else 30)
            expected = f"{first.OUTPUT_DIR}/model_final.pth" if stage else ""
            assert expected == cfg.MODEL.WEIGHTS
        assert first.MODEL.LOGN.COLLECT.ENABLED
    assert len({cfg.OUTPUT_DIR for cfg in configs.values()}) == len(configs)


def test_what_is_evaluated_is_registered_and_has_a_seed_where_it_depends_on_one(tool):
    for data in tool.SETS.values():
        for name, source in data.entries(7):
            register_images(name, source)
            assert "{" not in source and name in DatasetCatalog.list()
        assert "seed=7" in dict(data.entries(7))[data.name("train", 7)]
        assert {n for n in data.unknown.values() if n not in data.sources} <= set(
            DatasetCatalog.list()
        )


def test_every_loss_and_calibration_has_a_form_for_images(tool):
    for method in tool.METHODS.values():
        build_loss_without_background(method.loss.format(few=0.01) or "cross_entropy", 60)
        assert {parse_calibration(name)[0] for name in method.after} <= {
            *("logit_adjustment", "logn", "logn_mean", "logn_std", "norcal", "p2p", "auto")
        }
    assert len(expand_grid(tool.TAU_NORM)) == 21
    # The paper's rows, but for LogN and LogA, which are calibrations.
    rows = {"focal", "eql", "seesaw", "balanced_softmax", "crt", "lws", "softmax"}
    assert rows <= set(tool.METHODS) and config_file("classification/glyphs_lt_cosine.yaml")


def write(args, seed, name, values, ood=None):
    rows = {
        label: {"many": 50.0, "medium": 40.0, "few": few, "acc": acc, "ECE": 4.0, "ECE_T": 2.0}
        for label, (acc, few) in values.items()
    }
    folder = args.output / "linear" / f"seed{seed}" / name
    folder.mkdir(parents=True)
    found = {"rows": rows, "seconds": 10.0, **({"ood": ood} if ood else {})}
    (folder / "measured.json").write_text(json.dumps(found))


def cells(text, *first):
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines()]
    (found,) = (line for line in lines if line[: len(first)] == list(first))
    return found


def test_differences_are_taken_seed_by_seed(tool, args):
    write(args, 0, "softmax", {"uncalibrated": (40.0, 10.0), "logn": (43.0, 12.0)})
    write(args, 1, "softmax", {"uncalibrated": (60.0, 10.0), "logn": (61.0, 9.0)})
    write(args, 1, "seesaw", {"uncalibrated": (59.0, 11.0)})
    text = tool.write(args)
    assert text == (args.output / "classification.md").read_text()
    softmax, logn, seesaw = (cells(text, title) for title in ("Softmax", "LogN", "Seesaw"))
    assert softmax[1] == "2" and softmax[5] == "50.0 ± 14.1" and softmax[-2:] == ["", ""]
    assert logn[-2:] == ["+2.0 ± 1.4 (2)", "+0.5 ± 2.1 (1)"]
    assert seesaw[1] == "1" and seesaw[-2:] == ["-1.0 (0)", "+1.0 (1)"]
    assert "cosine" not in text


def test_separation_is_compared_with_msp_of_softmax(tool, args):
    def ood(msp, energy):
        by_score = {
            score: {metric: value for metric in tool.OOD_METRICS}
            for score, value in (("msp", msp), ("energy", energy))
        }
        return {"near": by_score}

    write(args, 0, "softmax", {"uncalibrated": (40.0, 10.0)}, ood(80.0, 70.0))
    write(args, 0, "logit_norm_0.04", {"uncalibrated": (41.0, 10.0)}, ood(85.0, 75.0))
    text = tool.write(args)
    assert cells(text, "near", "Softmax", "msp")[-1] == ""
    assert cells(text, "near", "Softmax", "energy")[-1] == "-10.0 (0)"
    assert cells(text, "near", "LogitNorm, tau 0.04", "msp")[-1] == "+5.0 (1)"
