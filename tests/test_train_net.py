"""train_net.py in practice: from the command line, killed, resumed, in two processes."""

import json
import math
import os
import re
from pathlib import Path

import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog

from logn_d2.commands.run import processes_here
from logn_d2.core import LogitStatistics
from logn_d2.sweeps import SweepDetections

from .load_script import ROOT, load_script
from .processes import Command, start_two
from .small_backbone import GLYPHS_CONFIG as CONFIG

# After 20 iterations a calibrated score may be anything.
EVERY_SCORE = ("MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.0")
TRAINING = ("SOLVER.CHECKPOINT_PERIOD", "5", "TEST.EVAL_PERIOD", "15", *EVERY_SCORE)
# Passes that are to be killed after their first file.
OFTEN = ("MODEL.LOGN.COLLECT.CHECKPOINT_PERIOD", "4")


@pytest.fixture(scope="session")
def environment(tiny_root):
    """Where the drawn data are; one thread, so that sums have one order in every run."""
    hidden = {"LOGN_D2_DEBUG", "CUDA_VISIBLE_DEVICES"}
    kept = {key: value for key, value in os.environ.items() if key not in hidden}
    return {
        **kept,
        "DETECTRON2_DATASETS": str(tiny_root),
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",  # the runs are of the CPU wherever the tests run
    }


def command(*arguments):
    return [ROOT / "train_net.py", "--config-file", CONFIG, *arguments]


def run(environment, tmp_path, *arguments, processes=1):
    """What the command prints; it must succeed."""
    log = tmp_path / f"log{len(list(tmp_path.glob('log*')))}.txt"
    if processes == 2:
        started = start_two(command(*arguments), log, environment)
    else:
        started = [Command(command(*arguments), log, environment)]
    codes = [each.wait() for each in started]
    assert not any(codes), "".join(each.output[-3000:] for each in started)
    return started[0].output


def run_and_kill(environment, pattern, *arguments):
    """Starts a run, and kills it with SIGKILL as soon as a file of this pattern is there."""
    folder, glob = pattern
    log = folder.with_name(f"{folder.name}.killed.txt")
    Command(command(*arguments), log, environment).kill_when(folder, glob)


def batches(text):
    """How many batches each pass of a run had to do."""
    return [int(number) for number in re.findall(r"Start inference on (\d+) batches", text)]


def results_in(folder):
    (path,) = folder.glob("inference/*/results.json")
    return json.loads(path.read_text())["rows"]


def assert_close(rows, others):
    """Two results.json say the same to 1e-9."""
    assert [row["calibration"] for row in rows] == [row["calibration"] for row in others]
    for row, other in zip(rows, others):
        for task in ("bbox", "segm"):
            assert row[task] == pytest.approx(other[task], abs=1e-9, nan_ok=True)


def assert_same_statistics(path, other, tolerance=1e-12):
    first, second = (LogitStatistics.load(each) for each in (path, other))
    assert (first.num_images, first.num_rois) == (second.num_images, second.num_rois)
    for mine, its in zip(first.stages, second.stages, strict=True):
        assert torch.equal(mine.count, its.count)
        torch.testing.assert_close(mine.mean, its.mean, rtol=tolerance, atol=tolerance)
        torch.testing.assert_close(mine.var, its.var, rtol=tolerance, atol=tolerance)


def assert_same_detections(folder, other):
    first, second = (
        SweepDetections.load(next(f.glob("inference/*/sweep"))) for f in (folder, other)
    )
    for name in ("uncalibrated", "logn"):
        mine, its = first.detections(name), second.detections(name)
        assert len(mine) == len(its) > 100
        assert sorted(mine.score) == pytest.approx(sorted(its.score), abs=1e-7)


@pytest.fixture(scope="session")
def trained(environment, tmp_path_factory):
    """OUTPUT_DIR of a training that was killed after its first checkpoint, then resumed."""
    folder = tmp_path_factory.mktemp("runs") / "trained"
    options = ("OUTPUT_DIR", str(folder), *TRAINING)
    run_and_kill(environment, (folder, "last_checkpoint"), *options)
    (folder / "killed_at").write_text((folder / "last_checkpoint").read_text())
    (folder / "resumed.txt").write_text(run(environment, folder.parent, "--resume", *options))
    return folder


def weights(trained):
    return ("MODEL.WEIGHTS", str(trained / "model_final.pth"))


def test_killed_training_resumes_from_its_last_checkpoint(trained):
    saved = int(re.search(r"model_(\d+)", (trained / "killed_at").read_text())[1])
    output = (trained / "resumed.txt").read_text()
    assert f"Starting training from iteration {saved + 1}\n" in output
    assert (trained / "last_checkpoint").read_text() == "model_final.pth"


def test_training_ends_with_statistics_then_both_evaluations_then_the_writers(trained):
    text = (trained / "resumed.txt").read_text()
    places = [text.rindex(part) for part in ("Wrote the statistics", "AP of logn", "| logn ")]
    assert places == sorted(places)
    last = json.loads((trained / "metrics.json").read_text().splitlines()[-1])
    assert last["iteration"] == 20
    for name in ("uncalibrated", "logn"):
        for task in ("bbox", "segm"):
            for metric in ("AP", "APr", "APc", "APf"):
                assert math.isfinite(last[f"{name}/{task}/{metric}"])
    # Nothing in the file but JSON: no NaN.
    json.loads(json.dumps(last, allow_nan=False))


def test_both_evaluations_are_one_pass(trained):
    # Statistics, then both sides of the evaluation: during training, and at its end.
    assert batches((trained / "resumed.txt").read_text()) == [40, 16, 40, 16]


def test_evaluation_during_training_has_both_names_too(trained):
    lines = [json.loads(line) for line in (trained / "metrics.json").read_text().splitlines()]
    (during,) = (
        line for line in lines if "uncalibrated/bbox/AP" in line and line["iteration"] < 20
    )
    assert during["iteration"] == 14
    assert math.isfinite(during["logn/bbox/AP"])


def test_tensorboard_has_both_names_statistics_and_pictures(trained):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    def steps(kind, tag):
        return [event.step for events in read for event in getattr(events, kind)(tag)]

    every = {"scalars": 0, "histograms": 0, "images": 0}
    files = sorted(trained.glob("events.out.tfevents.*"))
    accumulators = [EventAccumulator(str(file), every).Reload() for file in files]
    read = [each for each in accumulators if "logn/bbox/AP" in each.Tags()["scalars"]]
    tags = {kind: {tag for each in read for tag in each.Tags()[kind]} for kind in every}
    for metric in ("AP", "APr", "APc", "APf"):
        for name in ("uncalibrated", "logn"):
            assert steps("Scalars", f"{name}/bbox/{metric}") == [14, 20]
    assert {"logn/segm/AP", "total_loss"} <= tags["scalars"]
    assert tags["histograms"] == {f"logn_stats/stage0/{name}" for name in ("mean", "std")}
    pictures = {tag for tag in tags["images"] if tag.startswith("before_after/")}
    assert len(pictures) == 4
    for tag in (*pictures, *tags["histograms"]):
        assert steps("Images" if tag in pictures else "Histograms", tag) == [14, 20]


def test_the_metrics_are_those_of_the_results_file(trained):
    last = json.loads((trained / "metrics.json").read_text().splitlines()[-1])
    for row in results_in(trained):
        assert last[f"{row['calibration']}/bbox/AP"] == row["bbox"]["AP"]


def test_missing_cuda_is_one_line(trained):
    lines = (trained / "resumed.txt").read_text().splitlines()
    assert len([line for line in lines if "No CUDA device" in line]) == 1
    assert lines[0] == "No CUDA device: running on the CPU, processes: 1"


def test_finished_phases_are_not_repeated(environment, trained, tmp_path):
    before = results_in(trained), os.stat(trained / "logn_stats.safetensors").st_mtime_ns
    checkpoint = os.stat(trained / "model_final.pth").st_mtime_ns
    options = ("OUTPUT_DIR", str(trained), *TRAINING)
    output = run(environment, tmp_path, "--resume", *options)
    assert "are up to date" in output
    assert batches(output) == [0]
    assert os.stat(trained / "model_final.pth").st_mtime_ns == checkpoint
    assert before == (
        results_in(trained), os.stat(trained / "logn_stats.safetensors").st_mtime_ns
    )  # fmt: skip


def test_killed_statistics_pass_ends_with_the_same_numbers(environment, trained, tmp_path):
    path = tmp_path / "out" / "stats.safetensors"
    options = (
        "--collect-stats", str(path), *weights(trained), "OUTPUT_DIR", str(tmp_path / "out"), *OFTEN
    )  # fmt: skip
    run_and_kill(environment, (tmp_path / "out", "stats.partial-*.safetensors"), *options)
    assert not path.exists()
    output = run(environment, tmp_path, "--resume", *options)
    (left,) = batches(output)
    assert 0 < left < 40
    assert_same_statistics(path, trained / "logn_stats.safetensors")
    assert not list(path.parent.glob("*.partial-*"))


def test_killed_evaluation_ends_with_the_same_results(environment, trained, tmp_path):
    options = (
        "--eval-only", "--stats", str(trained / "logn_stats.safetensors"), *weights(trained),
        "OUTPUT_DIR", str(tmp_path / "out"), *OFTEN, *EVERY_SCORE,
    )  # fmt: skip
    run_and_kill(environment, (tmp_path / "out", "inference/*/sweep/*.npz"), *options)
    output = run(environment, tmp_path, "--resume", *options)
    (left,) = batches(output)
    assert 0 < left < 16
    assert_close(results_in(tmp_path / "out"), results_in(trained))
    assert_same_detections(tmp_path / "out", trained)


def test_two_processes_gather_the_same_statistics(environment, trained, tmp_path):
    # Without PATH: what follows is the first KEY, not a file.
    options = ("--collect-stats", *weights(trained), "OUTPUT_DIR", str(tmp_path))
    output = run(environment, tmp_path, *options, processes=2)
    assert batches(output) == [20]
    assert_same_statistics(
        tmp_path / "logn_stats.safetensors", trained / "logn_stats.safetensors", 1e-9
    )


def test_two_processes_find_the_same_ap(environment, trained, tmp_path):
    stats = ("--stats", str(trained / "logn_stats.safetensors"))
    # The training set is not there, and is not needed.
    missing = ("DATASETS.TRAIN", '("lt_glyphs_lvis_train",)')
    options = ("--eval-only", *stats, *weights(trained), "OUTPUT_DIR", str(tmp_path), *missing)
    options = (*options, *EVERY_SCORE)
    run(environment, tmp_path, *options, processes=2)
    assert_close(results_in(tmp_path), results_in(trained))
    assert_same_detections(tmp_path, trained)


def test_two_processes_train_one_model(environment, train_net, tmp_path, monkeypatch):
    folder = tmp_path / "trained"
    options = ("OUTPUT_DIR", str(folder), "SOLVER.MAX_ITER", "2", "DATASETS.TEST", "()")
    run(environment, tmp_path, *options, processes=2)
    # Batch norm has seen other images on the second process. If it had kept its own averages, the
    # statistics would not be of the checkpoint.
    arguments = ("OUTPUT_DIR", str(tmp_path), "MODEL.WEIGHTS", str(folder / "model_final.pth"))
    assert run_here(train_net, "--collect-stats", *arguments) == 0
    assert_same_statistics(
        tmp_path / "logn_stats.safetensors", folder / "logn_stats.safetensors", 1e-5
    )


@pytest.fixture
def train_net(environment, monkeypatch):
    """The script as a module, for runs that need no process of their own."""
    for key in ("DETECTRON2_DATASETS", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.setenv(key, environment[key])
    return load_script("train_net.py")


def run_here(train_net, *arguments):
    return train_net.main(["--config-file", str(CONFIG), *arguments])


def error_of(capsys, train_net, *arguments):
    """What a run that must fail says on the error stream."""
    with pytest.raises(SystemExit) as stopped:
        run_here(train_net, *arguments)
    assert stopped.value.code == 1
    text = capsys.readouterr().err
    # Libraries may have written before, but nothing comes after the message.
    assert "Traceback" not in text and text.count("error: ") == 1, text
    message = text[text.index("error: ") :]
    assert len(message.splitlines()) == 2, text
    return message


def test_missing_annotations_are_named_with_the_remedy(capsys, train_net, tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "nowhere"))
    text = error_of(capsys, train_net, "OUTPUT_DIR", str(tmp_path))
    assert f"{tmp_path}/nowhere/lt_glyphs/tiny/annotations/lt_glyphs_tiny_train.json" in text
    assert "logn data draw --size tiny" in text


def test_missing_images_are_found_before_training(capsys, train_net, tmp_path, environment):
    root = Path(environment["DETECTRON2_DATASETS"]) / "lt_glyphs" / "tiny"
    content = json.loads((root / "annotations" / "lt_glyphs_tiny_val.json").read_text())
    content["images"][3]["coco_url"] = "http://somewhere/val/lost.jpg"
    (tmp_path / "val.json").write_text(json.dumps(content))
    own = f'[["own_val_images_lost", "{tmp_path}/val.json", "{root}"]]'
    options = ("DATASETS.TEST", '("own_val_images_lost",)', "MODEL.LOGN.DATASETS", own)
    text = error_of(capsys, train_net, "OUTPUT_DIR", str(tmp_path / "out"), *options)
    assert "lost.jpg" in text
    assert not (tmp_path / "out" / "log.txt").exists()  # nothing had begun


def test_unregistered_data_set(capsys, train_net, tmp_path):
    options = ("OUTPUT_DIR", str(tmp_path), "DATASETS.TRAIN", '("mine",)')
    text = error_of(capsys, train_net, *options)
    assert "'mine' is not registered" in text and "MODEL.LOGN.DATASETS" in text


@pytest.mark.parametrize("mode", [[], ["--eval-only"], ["--collect-stats"]])
def test_output_folder_that_can_not_be_written(capsys, train_net, tmp_path, mode):
    (tmp_path / "file").write_text("")
    text = error_of(capsys, train_net, *mode, "OUTPUT_DIR", str(tmp_path / "file" / "out"))
    assert "can't be written" in text and "OUTPUT_DIR FOLDER" in text


def test_folder_in_place_of_a_statistics_file(capsys, train_net, tmp_path):
    text = error_of(
        capsys, train_net, "--collect-stats", str(tmp_path), "OUTPUT_DIR", str(tmp_path)
    )
    assert "is a folder" in text


def test_unknown_calibration_lists_the_known_ones(capsys, train_net, tmp_path):
    options = ("OUTPUT_DIR", str(tmp_path), "MODEL.LOGN.CALIBRATION", "lgon")
    text = error_of(capsys, train_net, *options)
    assert "'lgon'" in text and "norcal" in text


def test_calibration_with_wrong_options(capsys, train_net, tmp_path):
    options = ("OUTPUT_DIR", str(tmp_path), "MODEL.LOGN.CALIBRATION", "norcal(tau=1)")
    assert "norcal(tau=1)" in error_of(capsys, train_net, *options)


def test_training_without_the_statistics_that_its_calibration_needs(capsys, train_net, tmp_path):
    options = ("MODEL.LOGN.CALIBRATION", "logn", "MODEL.LOGN.COLLECT.ENABLED", "False")
    text = error_of(capsys, train_net, "OUTPUT_DIR", str(tmp_path), *options)
    assert "needs logit statistics" in text


def test_training_with_old_statistics(capsys, train_net, tmp_path):
    options = ("OUTPUT_DIR", str(tmp_path), "MODEL.LOGN.STATISTICS", "old.safetensors")
    assert "Leave it empty" in error_of(capsys, train_net, *options)


@pytest.mark.parametrize(("key", "value"), [("POPULATION", "everything"), ("ESTIMATOR", "median")])
@pytest.mark.parametrize("mode", [[], ["--collect-stats"]])
def test_wrong_settings_of_the_statistics_pass(capsys, train_net, tmp_path, mode, key, value):
    options = ("OUTPUT_DIR", str(tmp_path), f"MODEL.LOGN.COLLECT.{key}", value)
    text = error_of(capsys, train_net, *mode, *options)
    assert value in text and "expected '" in text


def test_stop_at_without_a_standard_error(capsys, train_net, tmp_path):
    options = ("OUTPUT_DIR", str(tmp_path), "MODEL.LOGN.COLLECT.ESTIMATOR", "ema")
    text = error_of(capsys, train_net, "--collect-stats", "--stop-at", "0.1", *options)
    assert "stop_at is 0.1 with the estimator ema" in text


def test_data_set_that_no_evaluator_knows(capsys, train_net, tmp_path):
    MetadataCatalog.get("own_panoptic").evaluator_type = "panoptic"
    DatasetCatalog.register("own_panoptic", list)
    options = ("OUTPUT_DIR", str(tmp_path), "DATASETS.TEST", '("own_panoptic",)')
    text = error_of(capsys, train_net, *options)
    assert "'panoptic', expected 'lvis', 'coco' or 'classification'" in text


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["--num-gpus", "4"], "CUDA devices: 2"),
        (["--num-gpus", "2", "--num-processes", "3"], "--num-processes is for the CPU"),
    ],
)
def test_more_processes_than_gpus(train_net, monkeypatch, arguments, part):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    args = train_net.parse_args(["--config-file", str(CONFIG), *arguments])
    with pytest.raises(ValueError, match=part):
        processes_here("cuda", args.num_gpus, args.num_processes)


def test_each_gpu_has_a_process(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert processes_here("cuda", 2, 1) == 2
    assert "No CUDA" not in capsys.readouterr().out


def test_batch_that_processes_can_not_share(capsys, train_net, tmp_path):
    text = error_of(capsys, train_net, "--num-processes", "3", "OUTPUT_DIR", str(tmp_path))
    assert "SOLVER.IMS_PER_BATCH is 4" in text


def test_missing_weights(capsys, train_net, tmp_path):
    options = ("OUTPUT_DIR", str(tmp_path), "MODEL.WEIGHTS", str(tmp_path / "none.pth"))
    assert "none.pth" in error_of(capsys, train_net, "--eval-only", *options)


def test_evaluation_without_weights(capsys, train_net, tmp_path):
    text = error_of(capsys, train_net, "--eval-only", "OUTPUT_DIR", str(tmp_path))
    assert "MODEL.WEIGHTS FILE" in text and "--resume" in text


def test_truncated_weights(capsys, train_net, tmp_path, trained):
    whole = (trained / "model_final.pth").read_bytes()
    (tmp_path / "half.pth").write_bytes(whole[: len(whole) // 2])
    options = ("OUTPUT_DIR", str(tmp_path), "MODEL.WEIGHTS", str(tmp_path / "half.pth"))
    assert "can't be loaded" in error_of(capsys, train_net, "--eval-only", *options)


def test_statistics_file_that_is_none(capsys, train_net, tmp_path, trained):
    (tmp_path / "junk.safetensors").write_bytes(b"junk")
    options = ("--stats", str(tmp_path / "junk.safetensors"), "OUTPUT_DIR", str(tmp_path))
    text = error_of(capsys, train_net, "--eval-only", *options, *weights(trained))
    assert "junk.safetensors" in text


def test_statistics_of_other_weights(capsys, train_net, tmp_path, trained):
    options = ("--stats", str(trained / "logn_stats.safetensors"), "OUTPUT_DIR", str(tmp_path))
    other = ("MODEL.WEIGHTS", str(trained / "model_0000004.pth"))
    text = error_of(capsys, train_net, "--eval-only", *options, *other)
    assert "other weights" in text
    assert "Traceback" in (tmp_path / "log.txt").read_text()


def test_debug_variable_brings_the_traceback_back(train_net, tmp_path, monkeypatch):
    monkeypatch.setenv("LOGN_D2_DEBUG", "1")
    with pytest.raises(KeyError, match="lgon"):
        run_here(train_net, "OUTPUT_DIR", str(tmp_path), "MODEL.LOGN.CALIBRATION", "lgon")


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["--stats", "x"], "--stats is for --eval-only"),
        (["--eval-only", "--collect-stats"], "--collect-stats excludes"),
        (["--eval-only", "--stop-at", "0.1"], "--stop-at is for a statistics pass"),
        (["SEED", "1", "--resume"], "write --resume before"),
    ],
)
def test_wrong_command_lines(capsys, train_net, arguments, part):
    with pytest.raises(SystemExit) as stopped:
        train_net.parse_args(["--config-file", str(CONFIG), *arguments])
    assert stopped.value.code == 2
    assert part in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "path", "opts"),
    [
        (["--collect-stats"], "", []),
        (["--collect-stats", "a.safetensors"], "a.safetensors", []),
        (["--collect-stats", "MODEL.WEIGHTS", "w"], "", ["MODEL.WEIGHTS", "w"]),
        (["--collect-stats", "OUTPUT_DIR", "w"], "", ["OUTPUT_DIR", "w"]),
        (["--collect-stats", "p", "SEED", "1"], "p", ["SEED", "1"]),
        (["--collect-stats", "--resume", "SEED", "1"], "", ["SEED", "1"]),
    ],
)
def test_collect_stats_takes_a_path_or_none(train_net, arguments, path, opts):
    args = train_net.parse_args(["--config-file", str(CONFIG), *arguments])
    assert (args.collect_stats, args.opts) == (path, opts)
