"""The demo from its command line to its report, and repeated calls."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from types import ModuleType

import pytest

from logn_d2.commands import demo, demo_run, demo_words
from logn_d2.report import ResultRow, Results

from ..processes import Command

ROOT = Path(__file__).parents[2]


def _demo(root: Path) -> str:
    """Runs the demo as a person does, with its data set and output below ``root``."""
    command = ["-m", "logn_d2", "demo", "--size", "tiny", "--output", root / "output"]
    environment = {"DETECTRON2_DATASETS": str(root / "datasets")}
    process = Command(command, root / "log.txt", environment)
    assert process.wait() == 0, process.output
    return process.output


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder of a finished run, and what it printed."""
    root = tmp_path_factory.mktemp("demo")
    return root, _demo(root)


@pytest.mark.slow
def test_one_command_ends_with_a_table_and_a_report(
    finished: tuple[Path, str], modules: tuple[ModuleType, ModuleType]
) -> None:
    root, printed = finished
    for number, phase in enumerate(("draw", "train", "collect", "evaluate", "report"), start=1):
        assert f"[{number}/5] {phase}: done in" in printed
    results = json.loads((root / "output/results.json").read_text())
    calibrations = [row["calibration"] for row in results["rows"]]
    assert calibrations == ["uncalibrated", *modules[0].CALIBRATIONS]
    for command in results["provenance"]["commands"]:
        assert f"$ {command}\n" in printed
    (line,) = [line for line in printed.splitlines() if "Start inference on 16 batches" in line]
    assert "Drawing 16 pictures" in printed  # the report tells its progress, too
    for row in results["rows"]:
        for task in ("bbox", "segm"):
            assert {"AP", "AP50", "AP75", "APr", "APc", "APf"} <= set(row[task])
            assert f"{row[task]['AP']:.1f}" in printed
    page = (root / "output/report.html").read_text()
    assert "Images before and after" in page and "class prior" in page
    assert "LogN against Uncalibrated, boxes: " in printed
    assert printed.startswith("5 phases, about ") and "draw: done in" in printed
    assert "Meaning: none" in printed  # of twenty iterations
    assert f"Seconds: draw {results['provenance']['seconds']['draw']:.0f}, train " in printed
    assert f"Report: {root / 'output/report.html'}" in printed


def _results(**box_ap: tuple[float, float, float]) -> Results:
    """Results of calibrations by AP, APr and APf."""
    rows = [
        ResultRow(name, {"bbox": dict(zip(("AP", "APr", "APf"), values, strict=True))})
        for name, values in box_ap.items()
    ]
    return Results(tuple(rows))


def test_a_sentence_explains_the_table() -> None:
    results = _results(
        uncalibrated=(18.5, 4.8, 28.3), logn=(17.2, 8.1, 23.5), logn_mean=(20.0, 8.4, 28.4)
    )
    sentence = demo_words.meaning(results, "logn")
    assert "LogN changes the box AP of rare classes from 4.8 to 8.1" in sentence
    assert "frequent ones from 28.3 to 23.5" in sentence
    assert "LogN, mean only is best here, from 18.5 to 20.0." in sentence


@pytest.mark.parametrize("ap", [0.2, float("nan")])
def test_the_sentence_claims_nothing_for_a_detector_that_finds_nothing(ap: float) -> None:
    results = _results(uncalibrated=(ap, 0.0, 0.0), logn=(0.4, 0.9, 0.0))
    assert "none, since" in demo_words.meaning(results, "logn")


@pytest.mark.parametrize("size", ["tiny", "demo", "lvis"])
def test_every_phase_of_every_size_has_a_duration(size: str) -> None:
    assert set(demo_words.ROUGHLY[size]) == set(demo.PHASES)


@pytest.mark.parametrize(
    ("size", "device", "processes"), [("demo", "cpu", 2), ("demo", "cuda", 1), ("tiny", "cpu", 1)]
)
def test_the_detector_runs_in_two_processes_on_a_cpu(
    modules: tuple[ModuleType, ModuleType], tmp_path: Path, size: str, device: str, processes: int
) -> None:
    demo, demo_run = modules
    run = demo_run.open_run(_arguments(tmp_path, size=size))
    run.cfg.defrost()
    run.cfg.MODEL.DEVICE = device
    assert run.settings["processes"] == processes  # they decide which random numbers are drawn
    for phase in ("train", "collect", "evaluate"):
        given = f"--num-processes {processes}" in demo.command_line(run, phase)
        assert given == (processes > 1)


@pytest.mark.slow
def test_results_have_provenance(finished: tuple[Path, str]) -> None:
    provenance = json.loads((finished[0] / "output/results.json").read_text())["provenance"]
    assert provenance["seed"] == 0 and provenance["size"] == "tiny"
    assert provenance["config"].startswith("glyphs_tiny")
    assert set(provenance["seconds"]) >= {"draw", "train", "collect"}
    assert provenance["statistics"].endswith("logn_stats.safetensors")
    assert provenance["machine"]["cores"] >= 1
    assert {"torch", "detectron2", "logn_d2"} <= set(provenance["versions"])
    assert len(provenance["dataset"]["sha256 of its SHA256SUMS"]) == 64


@pytest.mark.slow
def test_a_second_call_does_nothing(finished: tuple[Path, str]) -> None:
    root, _ = finished
    before = {path: path.stat().st_mtime_ns for path in (root / "output").rglob("*.*")}
    printed = _demo(root)
    assert printed.count("already done") == 5 and "done in" not in printed
    del before[root / "output/log.txt"]
    assert before == {path: path.stat().st_mtime_ns for path in before}
    assert "uncalibrated" in printed


@pytest.fixture
def modules(monkeypatch: pytest.MonkeyPatch) -> tuple[ModuleType, ModuleType]:
    """The two modules of the demo."""
    # Other tests rely on what is registered.
    monkeypatch.setattr(demo_run, "register_glyphs", lambda root: [])
    return demo, demo_run


def _arguments(output: Path, **changes: object) -> argparse.Namespace:
    default = {"size": "tiny", "sampler": "rfs", "seed": 0, "output": output, "fresh": False}
    return argparse.Namespace(**{**default, **changes})


@pytest.fixture
def phases(modules: tuple[ModuleType, ModuleType], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Phases that leave an empty file and a note of their name; the notes."""
    demo, notes = modules[0], []

    def phase(name: str) -> object:
        def leaves(run: object) -> Path:
            return run.output / f"{name}.done"

        return demo.Phase(lambda run: [name, str(leaves(run))], leaves)

    def logn(argv: list[str]) -> int:
        notes.append(argv[0])
        Path(argv[1]).touch()
        return 0

    monkeypatch.setattr(demo, "PHASES", {name: phase(name) for name in demo.PHASES})
    run_phases = demo.run_phases
    monkeypatch.setattr(demo, "run_phases", lambda run, only: run_phases(run, only, logn))
    return notes


@pytest.mark.parametrize(("status", "ends_with"), [(130, KeyboardInterrupt), (1, SystemExit)])
def test_a_phase_whose_command_fails_is_not_done(
    modules: tuple[ModuleType, ModuleType],
    phases: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    status: int,
    ends_with: type[BaseException],
) -> None:
    demo, demo_run = modules
    run = demo_run.open_run(_arguments(tmp_path))
    demo.run_phases(run, "draw")
    (tmp_path / "train.done").touch()
    with pytest.raises(ends_with):
        demo.do(run, demo.PHASES["train"], lambda argv: status)
    assert demo.is_done(run, "draw") and not demo.is_done(run, "train")


def test_what_is_done_is_not_done_again(
    modules: tuple[ModuleType, ModuleType], phases: list[str], tmp_path: Path
) -> None:
    demo, demo_run = modules
    demo.run_phases(demo_run.open_run(_arguments(tmp_path)), None)
    demo.run_phases(demo_run.open_run(_arguments(tmp_path)), None)
    assert phases == ["draw", "train", "collect", "evaluate", "report"]


def test_whatever_builds_on_a_lost_file_is_done_again(
    modules: tuple[ModuleType, ModuleType], phases: list[str], tmp_path: Path
) -> None:
    demo, demo_run = modules
    demo.run_phases(demo_run.open_run(_arguments(tmp_path)), None)
    phases.clear()
    (tmp_path / "collect.done").unlink()
    demo.run_phases(demo_run.open_run(_arguments(tmp_path)), None)
    assert phases == ["collect", "evaluate", "report"]


def test_an_interrupted_phase_is_not_done_and_keeps_its_time(
    modules: tuple[ModuleType, ModuleType], phases: list[str], tmp_path: Path
) -> None:
    demo, demo_run = modules
    run = demo_run.open_run(_arguments(tmp_path))
    with pytest.raises(KeyboardInterrupt), run.timed("draw"):
        run.journal["phases"]["draw"]["seconds"] = 7.0
        raise KeyboardInterrupt
    (tmp_path / "draw.done").touch()
    again = demo_run.open_run(_arguments(tmp_path))
    assert not demo.is_done(again, "draw")
    demo.run_phases(again, "draw")
    assert phases == ["draw"] and demo.is_done(again, "draw")


def test_a_single_phase_asks_for_those_before_it(
    modules: tuple[ModuleType, ModuleType], phases: list[str], tmp_path: Path
) -> None:
    demo, demo_run = modules
    run = demo_run.open_run(_arguments(tmp_path))
    with pytest.raises(ValueError, match="'evaluate' needs 'draw'"):
        demo.run_phases(run, "evaluate")
    demo.run_phases(run, "draw")
    assert phases == ["draw"]


def test_the_report_is_written_again_on_request(
    modules: tuple[ModuleType, ModuleType], phases: list[str], tmp_path: Path
) -> None:
    demo, demo_run = modules
    run = demo_run.open_run(_arguments(tmp_path))
    demo.run_phases(run, None)
    phases.clear()
    demo.run_phases(run, "report")
    assert phases == ["report"]


def test_two_runs_are_not_mixed(modules: tuple[ModuleType, ModuleType], tmp_path: Path) -> None:
    demo_run = modules[1]
    demo_run.open_run(_arguments(tmp_path)).save_journal()
    with pytest.raises(ValueError, match="seed 0, now 1.*--fresh"):
        demo_run.open_run(_arguments(tmp_path, seed=1))
    fresh = demo_run.open_run(_arguments(tmp_path, seed=1, fresh=True))
    assert fresh.settings["seed"] == 1 and not fresh.journal["phases"]


@pytest.mark.parametrize("fresh", [False, True])
def test_a_folder_of_something_else_is_left_alone(
    modules: tuple[ModuleType, ModuleType], tmp_path: Path, fresh: bool
) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(ValueError, match="not empty"):
        modules[1].open_run(_arguments(tmp_path, fresh=fresh))
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize("sampler", ["random", "rfs"])
def test_every_sampler_has_a_config(
    modules: tuple[ModuleType, ModuleType], tmp_path: Path, sampler: str
) -> None:
    for size in ("tiny", "demo"):
        run = modules[1].open_run(_arguments(tmp_path / size, size=size, sampler=sampler))
        assert modules[1].SAMPLERS[sampler] == run.cfg.DATALOADER.SAMPLER_TRAIN
        assert run.train_set == f"lt_glyphs_{size}_train"
