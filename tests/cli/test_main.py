"""`logn`: commands, help, and constants repeated to keep help free of heavy imports."""

from __future__ import annotations

import importlib
import logging
import subprocess
import sys
import types

import pytest

from logn_d2.cli import main
from logn_d2.cli.main import COMMANDS
from logn_d2.commands.run import start


def test_help_of_every_command_imports_nothing_heavy() -> None:
    code = f"""
import contextlib, io, sys
from logn_d2.cli import main
for words in [[], *[[name] for name in {list(COMMANDS)}], ["stats", "import"], ["data", "draw"]]:
    with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()) as text:
        main([*words, "--help"])
    assert text.getvalue().startswith("usage: "), words
print(sorted({{"torch", "numpy", "detectron2", "cv2", "matplotlib"}} & set(sys.modules)))
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout.strip() == "[]", result.stderr


def test_every_command_has_its_arguments_and_its_work() -> None:
    for name in COMMANDS:
        assert callable(importlib.import_module(f"logn_d2.cli.{name}").parse_args)
        work = "run" if name in ("train", "collect", "evaluate") else name
        assert callable(importlib.import_module(f"logn_d2.commands.{work}").run)


def test_help_agrees_with_the_work() -> None:
    from logn_d2.cli import ablate, demo, report
    from logn_d2.commands.ablate import ABLATIONS
    from logn_d2.commands.demo import PHASES
    from logn_d2.commands.demo_run import SAMPLERS
    from logn_d2.commands.demo_words import ROUGHLY
    from logn_d2.report import Settings

    assert demo.SIZES == tuple(ROUGHLY) and demo.PHASES == tuple(PHASES)
    assert set(SAMPLERS) == {"random", "rfs"}
    assert all(name in ablate.__doc__ for name in ABLATIONS)
    args, default = report.parse_args(["run", "--output", "page.html"]), Settings()
    names = ("resamples", "seed", "max_dets", "score_threshold", "level")
    assert [getattr(args, n) for n in names] == [getattr(default, n) for n in names]


def test_an_unknown_command_lists_the_known_ones(capsys: pytest.CaptureFixture) -> None:
    assert main(["trian"]) == 2
    assert "no command 'trian'. Known: train, collect," in capsys.readouterr().err


def test_ctrl_c_ends_without_a_traceback(
    capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(args: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr("logn_d2.commands.trends.run", interrupted)
    assert main(["trends", "run"]) == 130
    assert "Interrupted." in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "overrides"),
    [
        (["--weights", "w.pth"], ["MODEL.WEIGHTS", "'w.pth'"]),
        (["SEED", "1", "--weights", "w"], ["SEED", "1", "MODEL.WEIGHTS", "'w'"]),
        (["--output", "2024", "SEED", "1"], ["SEED", "1", "OUTPUT_DIR", "'2024'"]),
        (["--dataset", "a"], ["DATASETS.TEST", "('a',)"]),
        (["--calibration", "logn"], ["MODEL.LOGN.CALIBRATION", "'logn'"]),
    ],
)
def test_options_stand_for_config_keys(
    monkeypatch: pytest.MonkeyPatch, words: list[str], overrides: list[str]
) -> None:
    jobs = []
    monkeypatch.setattr("logn_d2.commands.run.run", lambda job: jobs.append(job) or 0)
    assert main(["evaluate", "--config-file", "c.yaml", *words, "--stats", "s"]) == 0
    opts = jobs[0].opts
    taken = opts.index("MODEL.LOGN.STATISTICS")
    assert opts[taken : taken + 2] == ["MODEL.LOGN.STATISTICS", "'s'"]
    assert opts[:taken] + opts[taken + 2 :] == overrides


@pytest.mark.parametrize("name", ["train", "collect", "evaluate", "sweep"])
def test_passes_may_use_several_machines(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    started = []
    monkeypatch.setattr("logn_d2.commands.run.launch", lambda *_, **places: started.append(places))
    parse = importlib.import_module(f"logn_d2.cli.{name}").parse_args
    words = ["--config-file", "c.yaml", *(["--output", "o"] if name == "sweep" else [])]
    start(len, parse(words), "cpu", 1)
    start(len, parse([*words, "--num-machines", "2", "--machine-rank", "1"]), "cpu", 1)
    found = [(each["num_machines"], each["machine_rank"], each["dist_url"]) for each in started]
    assert found == [(1, 0, "auto"), (2, 1, "auto")]


def test_a_second_command_logs_each_line_once(monkeypatch, capsys):
    from detectron2.utils.logger import setup_logger

    def run(argv):
        # Each command asks for other files, and so for handlers of its own.
        setup_logger(name="logn_d2", abbrev_name=argv[0])
        logging.getLogger("logn_d2").warning("said by %s", argv[0])
        return 0

    stand_in = types.SimpleNamespace(parse_args=list, run=run)
    monkeypatch.setattr("importlib.import_module", lambda *names: stand_in)
    logger = logging.getLogger("logn_d2")
    before = logger.handlers[:], logger.propagate, logger.level
    assert main(["train", "one"]) == main(["collect", "two"]) == 0
    assert capsys.readouterr().out.count("said by two") == 1
    assert (logger.handlers, logger.propagate, logger.level) == before


@pytest.mark.parametrize("text", ["nan", "inf", "-0.1", "little"])
def test_a_sampling_error_that_no_pass_can_reach_is_refused(text, capsys):
    with pytest.raises(SystemExit) as exit_:
        main(["collect", "--config-file", "c.yaml", f"--stop-at={text}"])
    assert exit_.value.code == 2
    assert f"'{text}', expected a number such as 0.1" in capsys.readouterr().err
