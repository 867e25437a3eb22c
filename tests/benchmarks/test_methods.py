"""The comparison of methods: settings of each training, and the table. Trainings are stand-ins."""

from __future__ import annotations

import json
import types
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from logn_d2.core.losses import parse_loss
from logn_d2.engine import Trainer, load_config
from logn_d2.engine.checks import check_calibration
from logn_d2.engine.runs import check_training
from logn_d2.lvis import Detections, LvisGroundTruth, evaluate_fixed_ap, evaluate_lvis

from ..load_script import load_script
from ..lvis.lvis_reference import random_detections, random_lvis
from ..small_backbone import GLYPHS_CONFIG

compared = load_script("benchmarks/compared_methods.py")
AFTER, AFTER_LINEAR, LINEAR = compared.AFTER, compared.AFTER_LINEAR, compared.LINEAR


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    """The script; the detector of size tiny has few weights."""
    script = load_script("benchmarks/methods.py")
    tiny, config_file = script.SIZES["tiny"].config, script.config_file
    script.config_file = lambda name: str(GLYPHS_CONFIG) if name == tiny else config_file(name)
    return script


@pytest.fixture(scope="module", autouse=True)
def _glyphs(tiny_root: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DETECTRON2_DATASETS", str(tiny_root))
        yield


def arguments(tool, tmp_path, *more):
    return tool.parse_args(["--size", "tiny", "--output", str(tmp_path), *more])


@pytest.fixture
def trainings(tool, monkeypatch):
    """Stand-ins for trainings: a model that has learnt nothing, and an evaluation."""
    started = []

    def start(command, **options):
        path = Path(command[command.index("--config-file") + 1])
        started.append(path.parent.name)
        cfg = tool.load_config(path)
        (path.parent / "config.yaml").write_text(path.read_text())
        torch.manual_seed(cfg.SEED)
        torch.save(
            {"model": Trainer.build_model(cfg).state_dict()}, path.parent / "model_final.pth"
        )
        lines = [{"time": 0.5, "iteration": 1}, {"time": 0.5}, {"iteration": 2}]
        (path.parent / "metrics.json").write_text("\n".join(map(json.dumps, lines)))
        metrics = {"AP": 10.0 + cfg.SEED, "APr": None, "APc": 2.0, "APf": 3.0}
        results = path.parent / "inference" / cfg.DATASETS.TEST[0] / "results.json"
        results.parent.mkdir(parents=True)
        rows = [{"calibration": "uncalibrated", "bbox": metrics}]
        results.write_text(json.dumps({"rows": rows}))
        return type("Done", (), {"returncode": 0})

    def figures(job, rows):
        return {row.label: dict.fromkeys((*tool.METRICS, *tool.FIXED), 1.0) for row in rows}

    monkeypatch.setattr(tool.subprocess, "run", start)
    monkeypatch.setattr(tool, "figures", figures)
    return started


def test_every_method_can_be_trained(tool, tmp_path):
    args = arguments(tool, tmp_path, "--iterations", "12")
    for name in tool.METHODS:
        job = tool.make_job(args, "rfs", 3, name)
        cfg = job.cfg.clone()
        assert cfg.SEED == 3 and cfg.DATALOADER.REPEAT_THRESHOLD == 0.3
        if cfg.MODEL.LOGN.SECOND_STAGE:
            first = job.folder.parent / tool.METHODS[name].first
            assert cfg.MODEL.WEIGHTS == str(first / "model_final.pth")
            cfg.defrost()
            cfg.MODEL.WEIGHTS = __file__  # any file
        check_training(cfg, 1)
        parameters, state = tool.sizes_of_model(job.cfg)
        assert parameters > 0 and state >= 0


def test_budgets_are_those_of_the_sources(tool, tmp_path):
    args = arguments(tool, tmp_path, "--iterations", "400")
    solvers = {name: tool.make_job(args, "random", 0, name).cfg.SOLVER for name in tool.METHODS}
    first = solvers.pop(tool.CROSS_ENTROPY)
    lengths = {"loce": 6 / 24, "cross_entropy_long": 2}
    for name, solver in solvers.items():
        assert first.MAX_ITER * lengths.get(name, 1) == solver.MAX_ITER
        assert solver.IMS_PER_BATCH == first.IMS_PER_BATCH and solver.BASE_LR == first.BASE_LR


def test_first_stages_have_the_classifier_of_their_second(tool, tmp_path):
    args = arguments(tool, tmp_path)
    for name, method in tool.METHODS.items():
        cfg = tool.make_job(args, "rfs", 0, name).cfg
        if cfg.MODEL.LOGN.SECOND_STAGE:
            first = tool.make_job(args, "rfs", 0, method.first).cfg
            assert first.MODEL.LOGN.CLASSIFIER == cfg.MODEL.LOGN.CLASSIFIER


def test_methods_bring_their_first_stage_and_cross_entropy(tool, tmp_path):
    assert arguments(tool, tmp_path, "--methods", "bags").methods == [
        tool.CROSS_ENTROPY,
        LINEAR,
        "bags",
    ]
    assert arguments(tool, tmp_path).methods == list(tool.METHODS)


@pytest.mark.parametrize("iterations", [12, 300])
def test_inverse_logns_averages_are_of_the_same_part_of_a_training(tool, tmp_path, iterations):
    args = arguments(tool, tmp_path, "--iterations", str(iterations))
    text = tool.make_job(args, "rfs", 0, "inverse_logn").cfg.MODEL.LOGN.LOSS
    _, options = parse_loss(text)
    steps = 24 * 99_388 / 16
    assert options["momentum"] * iterations == pytest.approx(min(1e-4 * steps, iterations))


def test_only_the_class_aware_second_stages_have_another_sampler(tool, tmp_path):
    args = arguments(tool, tmp_path)
    for name in tool.METHODS:
        sampler = tool.make_job(args, "random", 0, name).cfg.DATALOADER.SAMPLER_TRAIN
        aware = name in ("crt", "lws")
        assert sampler == ("ClassAwareTrainingSampler" if aware else "TrainingSampler")


def test_all_methods_start_from_one_detector_of_other_classes(tool, tmp_path):
    args = tool.parse_args(["--size", "demo", "--output", str(tmp_path)])
    start = tool.make_pretraining(args).cfg
    weights = str(Path(start.OUTPUT_DIR) / "model_final.pth")
    for name in tool.METHODS:
        job = tool.make_job(args, "random", 1, name)
        first = str(job.folder.parent / tool.METHODS[name].first / "model_final.pth")
        second = job.cfg.MODEL.LOGN.SECOND_STAGE
        assert job.cfg.MODEL.WEIGHTS == (first if second else weights)
        # Of another shape, the predictor is not loaded.
        assert job.cfg.MODEL.ROI_HEADS.NUM_CLASSES != start.MODEL.ROI_HEADS.NUM_CLASSES
        assert job.cfg.MODEL.FPN == start.MODEL.FPN
    assert not set(job.cfg.DATASETS.TRAIN) & set(start.DATASETS.TRAIN)


def test_the_shared_start_is_trained_first_and_once(tool, tmp_path, monkeypatch, trainings):
    tiny = tool.SIZES["tiny"]
    monkeypatch.setitem(tool.SIZES, "tiny", replace(tiny, pretraining=tiny.config))
    more = ("--seeds", "0", "1", "--samplers", "rfs", "--methods", "cross_entropy")
    args = arguments(tool, tmp_path, *more)
    tool.run(args, lambda text: None)
    assert trainings == ["pretraining", "cross_entropy", "cross_entropy"]


def test_calibrations_after_training_exist(tool):
    cfg = load_config(GLYPHS_CONFIG)
    for row in AFTER_LINEAR:
        check_calibration(cfg, row.calibration, has_statistics=True)


def test_calibrations_of_the_linear_classifier_are_told_apart(tool, tmp_path, trainings):
    more = ("--seeds", "0", "--samplers", "rfs", "--methods", LINEAR)
    tool.run(arguments(tool, tmp_path, *more), lambda text: None)
    text = (tmp_path / "methods.md").read_text()
    labels = [line.split("|")[1].strip() for line in text.splitlines() if line.startswith("| ")]
    assert labels[1:] == [
        *("cross-entropy", *(row.label for row in AFTER)),
        *("cross-entropy, linear", *(f"{row.label}, linear" for row in AFTER_LINEAR)),
    ]


def test_table_has_every_method_and_trainings_are_not_repeated(tool, tmp_path, trainings):
    more = ("--seeds", "0", "2", "--samplers", "rfs", "--methods", "seesaw", "lws", "loce")
    args = arguments(tool, tmp_path, *more)
    tool.run(args, lambda text: None)
    methods = ["cross_entropy", "seesaw", "loce", "lws"]
    assert trainings == methods * 2
    text = (tmp_path / "methods.md").read_text()
    rows = {
        cells[1]: cells[2:-1]
        for cells in ([c.strip() for c in line.split("|")] for line in text.splitlines())
        if len(cells) > 3
    }
    assert rows["cross-entropy"][:3] == ["2", "11.0 ± 1.4", "-"]
    assert rows["cross-entropy"][-3:] == ["1.00 ± 0.00", "+0", "+0"]
    assert rows["LogN"][-1] == "+24" and rows["NorCal, gamma 0.6"][-2] == "+0"
    assert rows["LogN"][:2] == ["2", "1.0 ± 0.0"]
    assert rows["cross-entropy"][5:7] == ["1.0 ± 0.0", "1.0 ± 0.0"]  # fixed AP
    assert rows["LWS"][-3:] == ["2.00 ± 0.00", "+13", "+0"]
    assert rows["LOCE"][-3] == "1.25 ± 0.00"
    # 80 RoIs of 12 classes, 32 channels of 7 x 7 and 4 coordinates; 13 mean scores
    assert rows["LOCE"][-1] == f"+{12 * 80 * (32 * 49 + 4) + 13:,}"
    # one output more with its bias, and counts of 13 labels
    assert rows["Seesaw loss"][-2:] == ["+65", "+13"]
    tool.run(args, lambda text: None)
    assert trainings == methods * 2


def test_table_includes_the_results_of_other_processes(tool, tmp_path, trainings):
    common = ("--methods", "cross_entropy", "--seeds", "0", "--samplers")
    for sampler in tool.SAMPLERS:
        tool.run(arguments(tool, tmp_path, *common, sampler), lambda text: None)
    text = (tmp_path / "methods.md").read_text()
    assert [line for line in text.splitlines() if line.startswith("##")] == [
        "## Sampler: random",
        "## Sampler: rfs",
    ]
    assert text.count("| cross-entropy ") == 2


def test_other_calibrations_are_measured_again(tool, tmp_path, trainings):
    job = tool.make_job(arguments(tool, tmp_path), "rfs", 0, "cross_entropy")
    tool.train(job)
    tool.calibrate(job)
    assert list(tool.calibrated(job)) == ["uncalibrated", *(row.label for row in AFTER)]
    job = replace(job, after=AFTER[1:])
    assert tool.calibrated(job) is None
    assert list(tool.calibrate(job))[1:] == [row.label for row in AFTER[1:]]
    old = json.dumps({row.label: {"AP": 1.0} for row in AFTER[1:]})  # without fixed AP
    (job.folder / "calibrated.json").write_text(old)
    assert tool.calibrated(job) is None


def test_ap_has_a_limit_for_an_image_and_fixed_ap_has_none(tool):
    rng = np.random.default_rng(0)
    dataset = random_lvis(rng, with_masks=False)
    truth = LvisGroundTruth.from_dict(dataset)
    drawn = random_detections(rng, dataset, per_image=60, with_masks=False)
    found = Detections.from_json_list(drawn, truth.category_ids)
    swept = types.SimpleNamespace(names=("logn",), detections=lambda name: found)
    figures = tool.figures_of(truth, swept, 5)["logn"]
    limited, fixed = evaluate_lvis(truth, found, max_dets=5), evaluate_fixed_ap(truth, found)
    assert [figures[m] for m in tool.METRICS] == [limited.as_dict()[m] for m in tool.METRICS]
    assert [figures[m] for m in tool.FIXED] == [fixed.as_dict()[m] for m in ("AP", "APr")]
    assert figures["fixed AP"] != figures["AP"]


def test_run_with_other_settings_is_refused(tool, tmp_path, trainings):
    tool.train(tool.make_job(arguments(tool, tmp_path), "rfs", 0, "cross_entropy"))
    args = arguments(tool, tmp_path, "--iterations", "7")
    with pytest.raises(ValueError, match="SOLVER.MAX_ITER is 300, not 7"):
        tool.train(tool.make_job(args, "rfs", 0, "cross_entropy"))


def test_failed_training_shows_its_message(tool, tmp_path, monkeypatch):
    failed = type("Failed", (), {"returncode": 1})
    monkeypatch.setattr(tool.subprocess, "run", lambda *args, **options: failed)
    with pytest.raises(ValueError, match=r"its log is .*terminal\.txt"):
        tool.train(tool.make_job(arguments(tool, tmp_path), "rfs", 0, "cross_entropy"))
