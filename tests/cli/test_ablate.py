"""Ablations: one table each, one inference pass for all, and reused trainings."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import ModuleType

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.utils import comm

from logn_d2.core import CALIBRATION_REGISTRY, StatisticsError
from logn_d2.engine import Trainer, collect, launch, load_config, statistics_path
from logn_d2.engine.checkpoint import load_weights
from logn_d2.engine.experiments import Row, is_trained, measure, run_config
from logn_d2.sweeps import SweepDetections

from ..command import command
from ..processes import use_forks
from ..small_backbone import GLYPHS_CONFIG as CONFIG

SMALL = (
    *("MODEL.MASK_ON", "False", "MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.0"),
    *("INPUT.MIN_SIZE_TEST", "48", "INPUT.MAX_SIZE_TEST", "48"),
    *("MODEL.LOGN.COLLECT.MAX_IMAGES", "6", "TEST.DETECTIONS_PER_IMAGE", "10"),
)


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    return command("ablate")


@pytest.fixture(scope="module")
def trained(tiny_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that has learnt nothing."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DETECTRON2_DATASETS", str(tiny_root))
        write_run(folder)
        yield folder


def write_run(folder: Path, *opts: str) -> None:
    folder.mkdir()
    cfg = load_config(CONFIG, [*SMALL, "OUTPUT_DIR", str(folder), "MODEL.DEVICE", "cpu", *opts])
    (folder / "config.yaml").write_text(cfg.dump())
    torch.manual_seed(0)
    model = build_model(cfg)
    for name, parameter in model.named_parameters():
        if "cls_score.bias" in name:
            torch.nn.init.normal_(parameter)
    torch.save({"model": model.state_dict()}, folder / "model_final.pth")


@pytest.fixture
def a_run(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "run"))


def never(*args: object, **kwargs: object) -> None:
    raise AssertionError("The network ran again.")


def test_every_ablation_names_its_source(tool):
    for ablation in tool.ABLATIONS.values():
        labels = [row.label for row in ablation.rows]
        assert ablation.title and len(set(labels)) == len(labels) >= 2
        assert bool(ablation.key) == bool(ablation.values)


def test_tables_share_one_pass_and_a_repetition_needs_none(tool, a_run, capsys, monkeypatch):
    names = ("components", "squared_std", "population")
    assert tool.run(tool.parse_args([*names, str(a_run)])) == 0
    text = capsys.readouterr().out
    assert f"Run 1 of 1, {a_run}: uncalibrated, logn_mean, " in text
    assert [tool.ABLATIONS[name].title in text for name in names] == [True] * 3
    sweeps = [path.name for path in (a_run / "ablations").glob("sweep_*")]
    assert sweeps == ["sweep_probs"]
    names_of_sweep = SweepDetections.load(a_run / "ablations" / "sweep_probs").names
    assert len(names_of_sweep) == len(set(names_of_sweep)) == 8
    numbers = json.loads((a_run / "ablations" / "ablations.json").read_text())
    assert list(numbers) == list(names)
    page = (a_run / "ablations" / "ablations.md").read_text()
    assert page.count("\n| ") == 5 + 3 + 3 + 3
    assert f"`logn ablate components squared_std population {a_run}`" in page
    monkeypatch.setattr("logn_d2.modeling.recording.LogitRecorder.__call__", never)
    assert tool.run(tool.parse_args([*names, str(a_run)])) == 0
    assert json.loads((a_run / "ablations" / "ablations.json").read_text()) == numbers


def measure_in_a_process(folder: Path, output: Path) -> None:
    found = measure(run_config(folder), [Row("uncalibrated"), Row("LogN", "logn")], output)
    (output / f"found{comm.get_rank()}.json").write_text(json.dumps(found))


def test_two_processes_measure_like_one(a_run, tmp_path, monkeypatch):
    use_forks(monkeypatch)
    found = []
    for count in (1, 2):
        output = tmp_path / str(count)
        output.mkdir()
        launch(measure_in_a_process, count, device="cpu", args=(a_run, output))
        found.append(json.loads((output / "found0.json").read_text()))
    assert found[0] == found[1] and list(found[0]) == ["uncalibrated", "LogN"]
    assert json.loads((output / "found1.json").read_text()) == {}


def test_cascade_ablation_is_left_out_where_there_is_no_cascade(tool, a_run, capsys):
    assert tool.run(tool.parse_args(["squared_std", "cascade_average", str(a_run)])) == 0
    assert "Left out" in capsys.readouterr().out
    assert list(json.loads((a_run / "ablations" / "ablations.json").read_text())) == ["squared_std"]


def test_averages_of_a_cascade_are_two_sweeps(trained, tmp_path):
    folder = tmp_path / "cascade"
    write_run(
        folder,
        *("MODEL.ROI_HEADS.NAME", "LogNCascadeROIHeads"),
        *("MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", "True"),
    )
    rows = [Row(f"a {average}", average=average) for average in ("logits", "probs")]
    found = measure(run_config(folder), rows, folder / "out")
    assert list(found) == ["a logits", "a probs"]
    scores = [
        SweepDetections.load(folder / "out" / f"sweep_{each}").detections(f"a {each}").score
        for each in ("logits", "probs")
    ]
    assert not (scores[0][:5] == scores[1][:5]).all()


def test_other_training_is_started_once_with_the_one_key_changed(tool, a_run, monkeypatch):
    commands = []

    def start(command: list[str]) -> object:
        commands.append(command)
        write_run(a_run.with_name("run_linear"), "MODEL.LOGN.CLASSIFIER", "linear")
        return type("Done", (), {"returncode": 0})

    monkeypatch.setattr(tool.subprocess, "run", start)
    monkeypatch.setattr(tool, "commit", lambda: "none")
    for _ in range(2):
        assert tool.run(tool.parse_args(["classifier", str(a_run)])) == 0
    (command,) = commands
    assert command[-2:] == ["MODEL.LOGN.CLASSIFIER", "linear"] and "--resume" in command
    assert str(a_run.with_name("run_linear")) in command
    tables = json.loads((a_run / "ablations" / "ablations.json").read_text())
    assert list(tables["classifier"]) == [
        *("linear, uncalibrated", "linear, LogN", "cosine, uncalibrated", "cosine, LogN")
    ]


@pytest.mark.parametrize("ended", [True, False])
def test_training_with_other_settings_is_not_used_again(tool, a_run, ended):
    other = a_run.with_name("run_linear")
    write_run(other, "MODEL.LOGN.CLASSIFIER", "linear", "SOLVER.MAX_ITER", "7")
    if not ended:
        (other / "model_final.pth").rename(other / "model_0000004.pth")
        (other / "last_checkpoint").write_text("model_0000004.pth")
    options = ["SOLVER.MAX_ITER", "8", "DATALOADER.NUM_WORKERS", "3"]
    args = tool.parse_args(["classifier", str(a_run), *options])
    tool.complete(args)
    with pytest.raises(ValueError, match=r"settings .*: SOLVER.MAX_ITER is 7, not 8\."):
        tool.prepare(args)


def test_failed_training_is_an_error(tool, a_run, monkeypatch):
    failed = type("Failed", (), {"returncode": 1})
    monkeypatch.setattr(tool.subprocess, "run", lambda command: failed)
    args = tool.parse_args(["sampler", str(a_run)])
    tool.complete(args)
    with pytest.raises(ValueError, match=r"The training has failed; its log is .*log\.txt"):
        tool.prepare(args)


def test_folder_without_a_training_is_named(tmp_path):
    assert not is_trained(tmp_path)
    with pytest.raises(FileNotFoundError, match="is not a finished training: expected config.yaml"):
        run_config(tmp_path)


def test_arguments_are_names_and_runs(tool, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b"):
        Path(name).mkdir()
    args = tool.parse_args(["beta", "a", "components", "b", "SOLVER.MAX_ITER", "8"])
    tool.complete(args)
    assert args.names == ["beta", "components"] and args.runs == [Path("a"), Path("b")]
    assert args.opts == ["SOLVER.MAX_ITER", "8"]
    args = tool.parse_args(["all", "a"])
    tool.complete(args)
    assert args.names == list(tool.ABLATIONS)
    for wrong in (["beta"], ["a"]):
        with pytest.raises(ValueError, match=r"Name an ablation \(components,"):
            tool.complete(tool.parse_args(wrong))
    with pytest.raises(ValueError, match=r"'betas' is neither an ablation \(components, beta,"):
        tool.complete(tool.parse_args(["components", "betas", "a"]))


def test_labels_of_rows_must_differ(a_run):
    with pytest.raises(ValueError, match="Labels must differ"):
        measure(run_config(a_run), [Row("a"), Row("a", "logn")], a_run / "out")


def test_rows_gather_the_statistics_that_they_need_and_no_others(a_run, monkeypatch):
    asked = []

    def gather(cfg, model, path, **options):
        asked.append((Path(path).name, cfg.MODEL.LOGN.COLLECT.STOP_AT))
        raise StatisticsError("not here")

    monkeypatch.setattr("logn_d2.engine.experiments.collect", gather)
    monkeypatch.setattr(
        "logn_d2.engine.experiments.sweep_dataset", lambda *args, **options: args[3]
    )
    monkeypatch.setattr(
        "logn_d2.engine.experiments.evaluate_sweep", lambda found, truth: dict.fromkeys(found, {})
    )
    known = CALIBRATION_REGISTRY._entries
    entries = {
        "like_logn": lambda inputs: known["uncalibrated"](inputs),
        "mine": lambda inputs: known["logn"](inputs),
    }
    monkeypatch.setattr(CALIBRATION_REGISTRY, "_entries", {**known, **entries})
    cfg, output = run_config(a_run, ["MODEL.LOGN.COLLECT.STOP_AT", "0.5"]), a_run / "out"
    assert list(measure(cfg, [Row("a"), Row("b", "like_logn")], output)) == ["a", "b"]
    assert asked == []
    for population in ("proposals", "positives"):
        with pytest.raises(StatisticsError, match="not here"):
            measure(cfg, [Row("a", "mine", population=population)], output)
    # Positives have no standard error to stop at.
    assert asked == [
        ("logn_stats_proposals_exact.safetensors", 0.5),
        ("logn_stats_positives_exact.safetensors", 0.0),
    ]


def test_statistics_of_the_training_replace_a_file_that_is_not_usable(a_run, monkeypatch):
    cfg, path = run_config(a_run), a_run / "out" / "logn_stats_sampled_exact.safetensors"
    model = Trainer.build_model(cfg)
    load_weights(model, cfg.MODEL.WEIGHTS, cfg.OUTPUT_DIR, resume=False)
    collect(cfg, model, statistics_path(cfg))
    path.parent.mkdir()
    path.write_bytes(b"half a copy")
    monkeypatch.setattr("logn_d2.modeling.recording.LogitRecorder.__call__", never)
    monkeypatch.setattr("logn_d2.engine.experiments._evaluate", lambda *args: {"a": {}})
    assert measure(cfg, [Row("a", "logn")], path.parent) == {"a": {}}
    assert path.read_bytes() == Path(statistics_path(cfg)).read_bytes()
