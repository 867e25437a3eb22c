"""The command compares calibrations, reports mistakes before long work, and can be repeated."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog

from logn_d2 import add_logn_config
from logn_d2.collection import collect_statistics
from logn_d2.engine import load_config
from logn_d2.lvis import LvisGroundTruth
from logn_d2.report import Results, open_runs
from logn_d2.source import Source
from logn_d2.sweeps import StoredOutputs, SweepDetections, evaluate_unknown_objects

from ..command import command
from ..processes import start_two
from ..small_detectors import CLASS_NAMES, draw_images, small_config, small_model

NAME = "sweep_tool_test_set"


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    return command("sweep")


def write_json(folder: Path) -> Path:
    records = draw_images(folder, 4)
    objects = [(r["image_id"], a) for r in records for a in r["annotations"]]
    annotations = [
        {
            "id": index + 1,
            "image_id": image_id,
            "category_id": a["category_id"] + 1,
            "bbox": [a["bbox"][0], a["bbox"][1], *np.subtract(a["bbox"][2:], a["bbox"][:2])],
            "area": 100.0,
            "segmentation": a["segmentation"],
        }
        for index, (image_id, a) in enumerate(objects)
    ]
    lists = {"neg_category_ids": [1, 2, 3, 4], "not_exhaustive_category_ids": []}
    images = [
        {"id": r["image_id"], "file_name": Path(r["file_name"]).name, "height": 48, "width": 64}
        for r in records
    ]
    categories = [
        {"id": k + 1, "name": n, "frequency": "fccr"[k]} for k, n in enumerate(CLASS_NAMES)
    ]
    content = {
        "images": [{**image, **lists} for image in images],
        "annotations": annotations,
        "categories": categories,
    }
    path = folder / "annotations.json"
    path.write_text(json.dumps(content))
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Config, weights, statistics and images."""
    folder = tmp_path_factory.mktemp("run")
    cfg = small_config("LogNROIHeads")
    cfg.DATASETS.TRAIN = cfg.DATASETS.TEST = (NAME,)
    cfg.MODEL.LOGN.DATASETS = [[NAME, str(write_json(folder)), str(folder)]]
    cfg.OUTPUT_DIR = str(folder)
    (folder / "config.yaml").write_text(cfg.dump())
    model = small_model(cfg)
    torch.save({"model": model.state_dict()}, folder / "model.pth")
    images = [[{"image": torch.rand(3, 48, 64) * 255, "image_id": i}] for i in range(3)]
    statistics = collect_statistics(
        model, images, population="proposals", class_names=CLASS_NAMES, datasets=[NAME]
    )
    statistics.save(folder / "stats.safetensors")
    yield folder
    if NAME in DatasetCatalog.list():
        DatasetCatalog.remove(NAME)
        MetadataCatalog.remove(NAME)


def arguments(folder: Path, output: str, *more: str) -> list[str]:
    return [
        *("--config-file", f"{folder}/config.yaml", "--stats", f"{folder}/stats.safetensors"),
        *("--calibrations", "logn", "norcal(gamma=0.6)", "logn", "auto"),
        *("--output", f"{folder}/{output}"),
        *more,
        *("MODEL.WEIGHTS", f"{folder}/model.pth"),
    ]


def test_table_and_results_are_of_every_calibration(
    tool: ModuleType, folder: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert tool.run(tool.parse_args(arguments(folder, "one"))) == 0
    names = ["uncalibrated", "logn", "norcal(gamma=0.6)", "auto"]
    table = capsys.readouterr().out.splitlines()[-len(names) :]
    assert [line.split("|")[1].strip() for line in table] == names
    results = Results.load(folder / "one" / "results.json")
    assert [row.calibration for row in results.rows] == names
    assert results.tasks == ("bbox", "segm")
    assert results.provenance["weights"] == f"{folder}/model.pth"
    for task in results.tasks:
        for name in names:
            with open(folder / "one" / f"per_class_{task}_{name}.csv", newline="") as file:
                ap = [row["AP"] for row in csv.DictReader(file)]
            mean = np.mean([float(value) for value in ap if value])
            np.testing.assert_allclose(mean, results.row(name).tasks[task]["AP"], atol=1e-3)
    scores = [SweepDetections.load(folder / "one" / "sweep").detections(n).score for n in names]
    assert not np.array_equal(scores[0], scores[1])

    def fail(*args: object) -> None:
        raise AssertionError("The network ran again.")

    monkeypatch.setattr("logn_d2.modeling.recording.LogitRecorder.__call__", fail)
    assert tool.run(tool.parse_args(arguments(folder, "one", "--resume"))) == 0
    again = Results.load(folder / "one" / "results.json")
    np.testing.assert_equal(again.to_dict(), results.to_dict())
    (run, *_) = open_runs([str(folder / "one")])
    assert run.folder.dataset == NAME and run.folder.train_sets == (NAME,)


def test_config_of_a_training_in_the_same_folder_stays(tool: ModuleType, tmp_path: Path) -> None:
    cfg = small_config("LogNROIHeads")
    tool.keep_config(cfg, tmp_path)
    assert load_config(tmp_path / "config.yaml").DATASETS == cfg.DATASETS
    (tmp_path / "config.yaml").write_text("of a training")
    tool.keep_config(cfg, tmp_path)
    assert load_config(tmp_path / "config.yaml").DATASETS == cfg.DATASETS  # an earlier sweep's
    (tmp_path / "config.yaml").write_text("of a training")
    (tmp_path / "model_final.pth").touch()
    tool.keep_config(cfg, tmp_path)
    assert (tmp_path / "config.yaml").read_text() == "of a training"


def with_calibrations(arguments: list[str], *texts: str) -> list[str]:
    first, end = arguments.index("--calibrations") + 1, arguments.index("--output")
    return [*arguments[:first], *texts, *arguments[end:]]


def test_stored_outputs_need_neither_weights_nor_network(
    tool: ModuleType, folder: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    more = ("--save-outputs", f"{folder}/store")
    assert tool.run(tool.parse_args(arguments(folder, "storing", *more))) == 0
    expected = Results.load(folder / "storing" / "results.json")

    def fail(*args: object) -> None:
        raise AssertionError("A network was built.")

    monkeypatch.setattr(Source, "model", fail)
    later = arguments(folder, "later", "--from-outputs", f"{folder}/store")[:-2]  # no MODEL.WEIGHTS
    assert tool.run(tool.parse_args(later)) == 0
    found = Results.load(folder / "later" / "results.json")
    for row in expected.rows:
        np.testing.assert_equal(found.row(row.calibration).tasks, row.tasks)
    assert found.provenance["weights"] == f"{folder}/model.pth"
    # Another calibration finds boxes whose masks are not stored.
    other = with_calibrations(later, "logn", "temperature(temperature=0.2)")
    with pytest.raises(SystemExit):
        tool.run(tool.parse_args(other))
    assert "contains a finished sweep" in capsys.readouterr().err
    assert Results.load(folder / "later" / "results.json").tasks == expected.tasks
    assert tool.run(tool.parse_args([*other, "--overwrite"])) == 0
    results = Results.load(folder / "later" / "results.json")
    assert results.tasks == ("bbox",)
    np.testing.assert_equal(results.row("logn").tasks["bbox"], expected.row("logn").tasks["bbox"])
    log = (folder / "later" / "log.txt").read_text()
    assert "The masks of temperature(temperature=0.2) are not evaluated" in log


def test_stored_outputs_of_a_cascade_are_averaged_as_the_config_tells(
    tool: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, object] = {}
    shape = {"info": {}, "num_classes": 2, "num_stages": 3, "fingerprints": [None] * 3}
    stored = SimpleNamespace(**shape, classifiers=list)
    monkeypatch.setattr(tool.StoredOutputs, "load", lambda folder: stored)
    monkeypatch.setattr(tool, "read_ground_truth", lambda dataset: None)
    monkeypatch.setattr(tool, "sweep_stored", lambda *_, **options: seen.update(options))
    cfg = get_cfg()
    add_logn_config(cfg)
    cfg.MODEL.LOGN.CASCADE_AVERAGE = "logits"
    args = SimpleNamespace(from_outputs="", overwrite=False, stats=None, calibrations=[])
    tool.StoredSweep(cfg, args)("any_val", "folder")
    assert seen["average"] == "logits"


def test_the_best_of_a_grid_is_marked_and_where_it_was_chosen_is_said(
    tool: ModuleType, folder: Path, capsys: pytest.CaptureFixture
) -> None:
    grid = "temperature(temperature=[0.1, 1, 9])"
    names = [f"temperature(temperature={value})" for value in ("0.1", "1", "9")]
    command = with_calibrations(arguments(folder, "grid"), grid, "logn")
    assert tool.run(tool.parse_args(command)) == 0
    output = capsys.readouterr().out
    results = Results.load(folder / "grid" / "results.json")
    assert [row.calibration for row in results.rows] == ["uncalibrated", *names, "logn"]
    best = max(names, key=lambda name: results.row(name).tasks["bbox"]["AP"])
    starred = [line.split("|")[1] for line in output.splitlines() if line.startswith("|")]
    assert [name.strip() for name in starred if "*" in name] == [f"{best} *"]
    assert results.provenance["chosen"] == [best]
    assert f"best box AP of its grid on {NAME}" in output and "too optimistic" in output
    elsewhere = [*command[:-2], "--choose-on", NAME, *command[-2:]]
    assert tool.run(tool.parse_args(elsewhere)) == 0
    output = capsys.readouterr().out
    assert f"{best} *" in output and "too optimistic" not in output
    sweeps = [SweepDetections.load(folder / "grid" / f"sweep{n}") for n in ("", "_to_choose")]
    assert sweeps[0].names == sweeps[1].names


@pytest.mark.slow
def test_two_processes_equal_one(tool: ModuleType, folder: Path) -> None:
    more = ("--save-outputs", f"{folder}/store_of_two")
    command = ["-m", "logn_d2", "sweep", *arguments(folder, "two", *more)]
    processes = start_two(command, folder / "two.txt")
    assert tool.run(tool.parse_args(arguments(folder, "alone"))) == 0
    for process in processes:
        assert process.wait() == 0, process.output
    one, two = (SweepDetections.load(folder / name / "sweep") for name in ("alone", "two"))
    assert one.image_ids.tolist() == two.image_ids.tolist()
    for name in one.names:
        left, right = one.detections(name), two.detections(name)
        right = right.take(np.argsort(right.image_id, kind="stable"))
        np.testing.assert_array_equal(left.image_id, right.image_id)
        np.testing.assert_allclose(left.score, right.score, rtol=1e-4)
    later = arguments(folder, "from_two", "--from-outputs", f"{folder}/store_of_two")[:-2]
    assert tool.run(tool.parse_args(later)) == 0
    found, expected = (Results.load(folder / n / "results.json") for n in ("from_two", "two"))
    for row in expected.rows:
        np.testing.assert_equal(found.row(row.calibration).tasks, row.tasks)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("logn", "lognorm", "Unknown calibration 'lognorm'"),
        ("norcal(gamma=0.6)", "norcal", "norcal"),
        ("stats.safetensors", "nothing.safetensors", "no statistics file"),
        ("model.pth", "nothing.pth", "weights are missing"),
    ],
)
def test_mistakes_are_found_before_any_work(
    tool: ModuleType,
    folder: Path,
    capsys: pytest.CaptureFixture,
    old: str,
    new: str,
    message: str,
) -> None:
    changed = [
        new if part == old else part.replace(f"/{old}", f"/{new}")
        for part in arguments(folder, "bad")
    ]
    with pytest.raises(SystemExit) as ending:
        tool.run(tool.parse_args(changed))
    assert ending.value.code == 1
    assert message in capsys.readouterr().err


def test_old_spellings_work_with_a_warning(
    tool: ModuleType, folder: Path, capsys: pytest.CaptureFixture
) -> None:
    found = tool.parse_args(arguments(folder, "old", "--save-predictions", "store"))
    assert found.save_outputs == "store" and found.from_outputs is None
    assert "--save-predictions is --save-outputs now" in capsys.readouterr().err
    found = tool.parse_args(arguments(folder, "old", "--predictions", "store"))
    assert found.from_outputs == "store"
    assert "--predictions is --from-outputs now" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ("--calibrations norcal(gamma=0:1:0)", "0:1:0 is empty or endless"),
        ("--from-outputs p --save-outputs q", "excludes --save-outputs"),
        ("--from-outputs p --choose-on d", "excludes --save-outputs, --choose-on"),
        ("--from-outputs p --num-processes 2", "and more than one process"),
        ("--from-outputs p --num-machines 2", "and more than one process"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(
    tool: ModuleType, capsys: pytest.CaptureFixture, more: str, message: str
) -> None:
    with pytest.raises(SystemExit) as ending:
        tool.run(tool.parse_args(["--config-file", "c", "--output", "o", *more.split()]))
    assert ending.value.code in (1, 2)
    assert message in " ".join(capsys.readouterr().err.split())


def test_config_keys_behind_the_calibrations_are_no_calibrations(tool: ModuleType) -> None:
    words = "--config-file c --output o --calibrations logn MODEL.WEIGHTS w SEED 1".split()
    args = tool.parse_args(words)
    assert args.calibrations == ["logn"] and args.opts == "MODEL.WEIGHTS w SEED 1".split()


OTHERS = "sweep_tool_test_others"


@pytest.fixture
def others(folder: Path) -> Iterator[Path]:
    """A config that knows images of another class as well."""
    content = json.loads((folder / "annotations.json").read_text())
    content["images"] = [{**image, "id": image["id"] + 1000} for image in content["images"][:2]]
    for image in content["images"]:
        image.update(neg_category_ids=[], not_exhaustive_category_ids=[])
    kept = [
        a for a in content["annotations"] if a["image_id"] + 1000 <= content["images"][-1]["id"]
    ]
    content["annotations"] = [
        {**a, "image_id": a["image_id"] + 1000, "category_id": 1} for a in kept
    ]
    content["categories"] = [{"id": 1, "name": "other", "frequency": "f"}]
    (folder / "others.json").write_text(json.dumps(content))
    cfg = load_config(folder / "config.yaml")
    cfg.MODEL.LOGN.DATASETS.append([OTHERS, f"{folder}/others.json", str(folder)])
    (folder / "others.yaml").write_text(cfg.dump())
    yield folder / "others.yaml"
    if OTHERS in DatasetCatalog.list():
        DatasetCatalog.remove(OTHERS)
        MetadataCatalog.remove(OTHERS)


def test_unknown_objects_are_compared_under_every_calibration(
    tool: ModuleType, folder: Path, others: Path, capsys: pytest.CaptureFixture
) -> None:
    more = ("--ood-threshold", "0", "--ood", OTHERS)
    given = ["--config-file", str(others), *arguments(folder, "ood", *more)[2:]]
    assert tool.run(tool.parse_args(given)) == 0
    output = capsys.readouterr().out
    assert f"{NAME} against {OTHERS}, in percent" in output
    log = (folder / "ood" / "log.txt").read_text()
    assert f"auto: unknown objects of {OTHERS}" in log and "norcal(gamma=0.6): known objects" in log
    found = json.loads((folder / "ood" / f"unknown_{OTHERS}.json").read_text())
    names = ["uncalibrated", "logn", "norcal(gamma=0.6)", "auto"]
    assert list(found) == names
    stores = [StoredOutputs.load(folder / "ood" / f"outputs{x}") for x in ("", f"_{OTHERS}")]
    truths = [LvisGroundTruth.from_json(folder / f) for f in ("annotations.json", "others.json")]
    expected = evaluate_unknown_objects(*stores, *truths, threshold=0.0)
    plain = found["uncalibrated"]
    assert plain["threshold"] == 0 and plain["unknown_images"] == 100
    assert plain["scores"]["energy"]["auroc"] == 100 * expected.scores["energy"].auroc
    assert plain["unknown_boxes"] == expected.unknown_boxes == plain["scores"]["msp"]["num_ood"]
    assert f"and {expected.unknown_boxes} in 100 % of the unknown" in output
    assert found["logn"]["scores"] != plain["scores"]
    assert Results.load(folder / "ood" / "results.json").tasks == ("bbox", "segm")


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--ood", NAME), f"'{NAME}' is the evaluated set"),
        (("--ood", "nothing"), "'nothing' is not registered"),
        (("--ood", OTHERS, "--max-boxes", "5"), "stores all logits and boxes"),
        (("--ood", OTHERS, "--ood-threshold", "2"), r"--ood-threshold is 2.0"),
    ],
)
def test_mistakes_with_unknown_objects(
    tool: ModuleType, folder: Path, capsys: pytest.CaptureFixture, more: tuple, message: str
) -> None:
    with pytest.raises(SystemExit):
        tool.run(tool.parse_args(arguments(folder, "bad", *more)))
    assert message in capsys.readouterr().err
