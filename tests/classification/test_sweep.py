"""A sweep of an image classifier: every figure from one pass, of known and unknown images."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import build_model
from sklearn.metrics import roc_auc_score

from logn_d2.classification import register_images
from logn_d2.classification.logits import StoredLogits
from logn_d2.classification.odin import ODINInputs
from logn_d2.classification.predictions import StoredPredictions, predictions_name
from logn_d2.cli import main
from logn_d2.config import config_file
from logn_d2.core import LogitStatistics
from logn_d2.engine import load_config
from logn_d2.report import Results

from ..command import command
from ..processes import start_two
from .small import COUNTS, K, small_config, small_model, small_set, statistics_of

SETS = {"sw_train": COUNTS, "sw_val": (9,) * K, "sw_test": (8,) * K, "sw_unknown": (0, 0, 5, 6)}
NAMES = ["uncalibrated", "logn", "logit_adjustment"]


@pytest.fixture(scope="module")
def tool():
    return command("sweep")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Config, weights and statistics of a classifier that has learnt a little, and its sets."""
    folder = tmp_path_factory.mktemp("sweep")
    for seed, (name, counts) in enumerate(SETS.items()):
        register_images(name, lambda counts=counts, seed=seed: small_set(counts, seed))
    DatasetCatalog.register("sw_boxes", list)
    MetadataCatalog.get("sw_boxes").set(evaluator_type="coco")
    write(folder, "config.yaml")
    write(folder, "logit_norm.yaml", MODEL__LOGN__LOSS="logit_norm(tau=0.5)")
    model, inputs = small_model().train(), training_images()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    for _ in range(15):
        optimizer.zero_grad()
        model(inputs)["loss_cls"].backward()
        optimizer.step()
    torch.save({"model": model.state_dict()}, folder / "model.pth")
    statistics_of(model, inputs).save(folder / "stats.safetensors")
    yield folder
    for name in (*SETS, "sw_boxes"):
        DatasetCatalog.remove(name)
        MetadataCatalog.pop(name)


def training_images():
    records = DatasetCatalog.get("sw_train")
    pixels = [torch.from_numpy(each["image_array"])[None].float() for each in records]
    return [{**each, "image": image} for each, image in zip(records, pixels, strict=True)]


def write(folder, name, **options):
    cfg = small_config(
        DATASETS__TRAIN=("sw_train",),
        DATASETS__TEST=("sw_test",),
        DATALOADER__NUM_WORKERS=0,
        MODEL__LOGN__COLLECT__POPULATION="images",
        **options,
    )
    (folder / name).write_text(cfg.dump())


def sweep(tool, folder, output, *more, config="config.yaml", names=("logn", "logit_adjustment")):
    given = ["--config-file", f"{folder}/{config}", "--weights", f"{folder}/model.pth"]
    given += ["--output", f"{folder}/{output}", *more, "--calibrations", *names]
    return tool.run(tool.parse_args(given))


def with_statistics(folder):
    return "--stats", f"{folder}/stats.safetensors"


@pytest.fixture(scope="module")
def swept(tool, folder):
    more = (*with_statistics(folder), "--choose-on", "sw_val", "--ood", "sw_unknown")
    assert sweep(tool, folder, "all", *more) == 0
    return Results.load(folder / "all" / "results.json")


def stored(folder, name, output="all"):
    return StoredLogits.load(folder / output / f"logits_{name}.safetensors")


def by_hand(folder, logits):
    """Calibration -> logits, each by its formula."""
    (stage,) = LogitStatistics.load(folder / "stats.safetensors").stages
    prior = torch.tensor(COUNTS, dtype=torch.float64) / sum(COUNTS)
    logits = logits.double()
    formulas = (logits, (logits - stage.mean) / stage.std, logits - prior.log())
    return dict(zip(NAMES, formulas, strict=True))


def test_accuracies_of_all_calibrations_are_those_of_the_formulas(folder, swept):
    test = stored(folder, "sw_test")
    assert [row.calibration for row in swept.rows] == NAMES
    assert swept.tasks == ("image", "ood sw_unknown")
    for name, logits in by_hand(folder, test.logits).items():
        right = (logits.argmax(1) == test.labels).double()
        of_class = [100 * right[test.labels == c].mean().item() for c in range(K)]
        found = swept.row(name).tasks["image"]
        assert found["acc"] == pytest.approx(100 * right.mean().item())
        assert found["many"] == pytest.approx(np.mean(of_class[:1]))  # above 12 training images
        assert found["few"] == pytest.approx(of_class[3])
        assert (folder / "all" / f"per_class_{name}.csv").is_file()
    assert len({row.tasks["image"]["acc"] for row in swept.rows}) > 1


def test_the_temperature_is_the_one_that_is_best_on_validation_images(folder, swept):
    sets = [stored(folder, name) for name in ("sw_val", "sw_test")]
    (val, test), grid = sets, np.geomspace(0.05, 20, 4001)
    for name in NAMES:
        of_val, of_test = (by_hand(folder, each.logits)[name] for each in sets)
        costs = [torch.nn.functional.cross_entropy(of_val / t, val.labels).item() for t in grid]
        found = swept.row(name).tasks["image"]
        assert found["T"] == pytest.approx(grid[np.argmin(costs)], rel=2e-3)
        top, label = (of_test / found["T"]).softmax(1).max(1)
        bins = (top * 15).ceil().clamp(min=1)
        gaps = [
            abs((label == test.labels)[bins == b].sum() - top[bins == b].sum())
            for b in range(1, 16)
        ]
        assert found["ECE_T"] == pytest.approx(100 * float(sum(gaps)) / len(top))


def test_unknown_images_are_told_by_the_scores_of_calibrated_logits(folder, swept):
    sides = [stored(folder, name) for name in ("sw_test", "sw_unknown")]
    truth = np.repeat([1, 0], [len(each.logits) for each in sides])
    logits = {name: by_hand(folder, torch.cat([s.logits for s in sides]))[name] for name in NAMES}
    for name, z in logits.items():
        found = swept.row(name).tasks["ood sw_unknown"]
        scores = {"msp": z.softmax(1).amax(1), "max_logit": z.amax(1), "energy": z.logsumexp(1)}
        for score, values in scores.items():
            assert found[f"{score} auroc"] == pytest.approx(100 * roc_auc_score(truth, values))
            for metric in ("fpr95_id_pos", "fpr95_ood_pos", "aupr_in", "aupr_out"):
                assert 0 <= found[f"{score} {metric}"] <= 100
        assert (found["msp num_id"], found["msp num_ood"]) == (32, 11)


def test_the_report_reads_the_files_of_the_sweep(folder, swept, capsys):
    page = folder / "report.html"
    assert main(["report", f"{folder}/all", "--output", str(page), "--resamples", "9"]) == 0
    predictions = StoredPredictions.load(folder / "all" / predictions_name("sw_test"))
    assert predictions.calibrations == tuple(NAMES) and list(predictions.image_count) == [*COUNTS]
    for name, logits in by_hand(folder, stored(folder, "sw_test").logits).items():
        assert np.array_equal(predictions.result(name).predicted, logits.argmax(1))
        found = predictions.scores_of("sw_test", name)["energy"]
        np.testing.assert_allclose(found, logits.logsumexp(1), rtol=1e-6)
    assert f"{swept.row('logn').tasks['image']['acc']:.1f}" in page.read_text()
    assert "LogN against Uncalibrated, accuracy" in capsys.readouterr().out


def test_logits_that_are_there_are_taken_again_unless_the_weights_are_others(
    tool, folder, swept, monkeypatch
):
    def fail(*args):
        raise AssertionError("The network ran again.")

    state = torch.load(folder / "model.pth", weights_only=True)
    with monkeypatch.context() as patch:
        patch.setattr("logn_d2.engine.image_sweep.collect_logits", fail)
        more = (*with_statistics(folder), "--choose-on", "sw_val", "--ood", "sw_unknown")
        assert sweep(tool, folder, "all", *more, "--resume") == 0
        again = Results.load(folder / "all" / "results.json")
        np.testing.assert_equal(again.to_dict()["rows"], swept.to_dict()["rows"])
        state["model"]["backbone.layers.1.bias"] += 1
        torch.save(state, folder / "other.pth")
        with pytest.raises(AssertionError, match="ran again"):
            sweep(
                tool,
                folder,
                "all",
                "--resume",
                "--weights",
                f"{folder}/other.pth",
                names=("uncalibrated",),
            )


def test_the_best_of_a_grid_is_chosen_on_the_other_images(tool, folder, capsys):
    grid = "logit_adjustment(tau=0:2:0.5)"
    assert sweep(tool, folder, "grid", "--choose-on", "sw_val", names=(grid,)) == 0
    val, output = stored(folder, "sw_val", "grid"), capsys.readouterr().out
    prior = torch.tensor(COUNTS) / sum(COUNTS)
    taus = [0.5 * step for step in range(5)]
    right = [((val.logits - t * prior.log()).argmax(1) == val.labels).sum().item() for t in taus]
    best = f"logit_adjustment(tau={['0.0', '0.5', '1.0', '1.5', '2.0'][int(np.argmax(right))]})"
    results = Results.load(folder / "grid" / "results.json")
    assert results.provenance["chosen"] == [best]
    assert f"{best} *" in output and "accuracy of its grid on sw_val" in output
    assert "ECE, T" in output


def test_logit_norm_is_scored_normalised_as_well(tool, folder):
    more = ("--ood", "sw_unknown")
    assert (
        sweep(tool, folder, "norm", *more, config="logit_norm.yaml", names=("uncalibrated",)) == 0
    )
    results = Results.load(folder / "norm" / "results.json")
    sides = [stored(folder, name, "norm").logits for name in ("sw_test", "sw_unknown")]
    z = torch.cat(sides).double()
    scores = (z / (0.5 * z.norm(dim=1, keepdim=True))).softmax(1).amax(1)
    truth = np.repeat([1, 0], [len(each) for each in sides])
    found = results.row("uncalibrated").tasks["ood sw_unknown"]
    expected = 100 * roc_auc_score(truth, scores)
    assert found["msp, normalized auroc"] == pytest.approx(expected)
    assert set(found) > {"msp auroc", "energy aupr_out"}
    with pytest.raises(SystemExit):
        sweep(tool, folder, "norm", config="logit_norm.yaml")


def test_odin_is_scored_without_a_calibration_where_it_is_asked_for(tool, folder):
    more = (*with_statistics(folder), "--ood", "sw_unknown", "--odin-noise", "0.02")
    assert sweep(tool, folder, "odin", *more, names=("logn",)) == 0
    results, areas = Results.load(folder / "odin" / "results.json"), []
    model = small_model()
    model.load_state_dict(torch.load(folder / "model.pth", weights_only=True)["model"])
    for name in ("sw_test", "sw_unknown"):
        pixels = [torch.from_numpy(r["image_array"])[None] for r in DatasetCatalog.get(name)]
        changed = ODINInputs(model.eval(), noise=0.02)([{"image": each} for each in pixels])
        logits = torch.stack([each["logits"] for each in changed]).double()
        areas.append((logits / 1000).softmax(1).amax(1).detach())
    truth = np.repeat([1, 0], [len(each) for each in areas])
    found = results.row("uncalibrated").tasks["ood sw_unknown"]
    assert found["odin auroc"] == pytest.approx(100 * roc_auc_score(truth, torch.cat(areas)))
    assert "odin auroc" not in results.row("logn").tasks["ood sw_unknown"]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--odin", "MODEL.DEVICE", "cpu"), "--odin changes pixels by 0.0014 of their range"),
        (("--ood", "sw_unknown", "--odin-noise", "-1"), "changes pixels by -1.0 of their range"),
        (("--save-outputs", "store"), "always keeps the logits"),
        (("--choose-on", "sw_test"), "'sw_test' is the evaluated set"),
        (("--ood", "sw_test"), "'sw_test' is the evaluated set"),
        (("--ood", "sw_boxes"), "'sw_boxes' is a set for the evaluator 'coco'"),
        (("--ood", "sw_nothing"), "'sw_nothing' is not registered"),
        (("--calibrations", "logn"), "needs logit statistics"),
    ],
)
def test_mistakes_are_found_before_any_work(tool, folder, capsys, more, message):
    given = ["--config-file", f"{folder}/config.yaml", "--weights", f"{folder}/model.pth"]
    with pytest.raises(SystemExit) as ending:
        tool.run(tool.parse_args([*given, "--output", f"{folder}/bad", *more]))
    assert ending.value.code == 1
    assert message in capsys.readouterr().err


@pytest.mark.slow
def test_two_processes_collect_and_sweep_the_same_as_one(tool, tmp_path):
    config = config_file("classification/digits_lt_linear.yaml")
    model = build_model(load_config(config, ["MODEL.DEVICE", "cpu"]))
    torch.save({"model": model.state_dict()}, tmp_path / "model.pth")
    weights = ("--config-file", config, "--weights", str(tmp_path / "model.pth"))
    # One image at a time: a batch of another size rounds float32 logits otherwise.
    weights += ("MODEL.LOGN.IMAGE.TEST_BATCH", "1")
    paths = [str(tmp_path / f"{name}.safetensors") for name in ("one", "two")]
    gather = ["-m", "logn_d2", "collect", *weights]
    both = start_two([*gather, "--output", paths[1]], tmp_path / "collect.txt")
    assert main(["collect", *weights, "--output", paths[0]]) == 0
    for process in both:
        assert process.wait() == 0, process.output
    one, two = (LogitStatistics.load(path) for path in paths)
    assert one.num_images == two.num_images > 200
    for name in ("mean", "var"):
        mine, theirs = (getattr(each.stages[0], name) for each in (one, two))
        torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-12)
    options = ("--stats", paths[0], "--ood", "noise", "--calibrations", "logn")
    swept = ["-m", "logn_d2", "sweep", *weights, *options, "--output", str(tmp_path / "two")]
    both = start_two(swept, tmp_path / "sweep.txt")
    assert main([*swept[2:-1], str(tmp_path / "one")]) == 0
    for process in both:
        assert process.wait() == 0, process.output
    found = [Results.load(tmp_path / name / "results.json") for name in ("one", "two")]
    for row in found[0].rows:
        for task, metrics in row.tasks.items():
            other = found[1].row(row.calibration).tasks[task]
            assert other == pytest.approx(metrics, abs=1e-9, nan_ok=True)
