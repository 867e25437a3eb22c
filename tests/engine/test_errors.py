"""One message and exit code 1 for a user's mistake; a traceback for ours."""

import numpy as np
import pytest
from detectron2.modeling import META_ARCH_REGISTRY
from torch.multiprocessing import ProcessExitedException

from logn_d2.engine.errors import DEBUG_VARIABLE, short_errors
from logn_d2.errors import MissingFileError, UnknownNameError, UserError


@pytest.mark.parametrize(
    "error",
    [
        UserError("bad value"),
        UnknownNameError("bad key"),
        MissingFileError("bad file"),
        OSError("no space left"),
    ],
)
def test_mistakes_end_with_one_message(capsys, tmp_path, error, monkeypatch):
    monkeypatch.delenv(DEBUG_VARIABLE, raising=False)
    log = tmp_path / "log.txt"
    log.write_text("before\n")
    with pytest.raises(SystemExit) as stopped, short_errors(str(log)):
        raise error
    assert stopped.value.code == 1
    text = capsys.readouterr().err
    assert text.startswith(f"error: {error.args[0]}\n")
    assert "Traceback" not in text and str(log) in text
    assert log.read_text().startswith("before\nTraceback")


def test_without_a_log_the_message_explains_how_to_see_more(capsys, monkeypatch, tmp_path):
    monkeypatch.delenv(DEBUG_VARIABLE, raising=False)
    for log in (None, str(tmp_path / "missing" / "log.txt")):
        with pytest.raises(SystemExit), short_errors(log):
            raise UserError("bad")
        assert f"set {DEBUG_VARIABLE}=1" in capsys.readouterr().err


def test_debug_variable_lets_the_error_through(monkeypatch):
    monkeypatch.setenv(DEBUG_VARIABLE, "1")
    with pytest.raises(ValueError, match="bad"), short_errors():
        raise ValueError("bad")


@pytest.mark.parametrize("kind", [TypeError, ValueError, KeyError, IndexError])
def test_our_own_bugs_keep_their_traceback(kind):
    with pytest.raises(kind, match="ours"), short_errors():
        raise kind("ours")


def test_a_broken_array_is_a_bug_of_ours():
    with pytest.raises(ValueError, match="broadcast"), short_errors():
        np.ones(2) + np.ones(3)


def test_what_detectron2_refuses_in_a_config_is_a_message(capsys):
    with pytest.raises(SystemExit), short_errors():
        META_ARCH_REGISTRY.get("NobodysNet")
    assert "No object named 'NobodysNet'" in capsys.readouterr().err


def test_a_name_that_is_not_known_reads_as_written():
    assert str(UnknownNameError("no 'x'")) == "no 'x'"
    for kind, parent in ((MissingFileError, FileNotFoundError), (UnknownNameError, KeyError)):
        assert issubclass(kind, UserError) and issubclass(kind, parent)


@pytest.mark.parametrize(
    ("code", "signal", "said"),
    [(1, None, ""), (7, None, "exit code 7"), (-9, "SIGKILL", "memory"), (-11, "SIGSEGV", "ended")],
)
def test_a_process_that_ends_without_a_word_is_reported(capsys, code, signal, said):
    how = f"signal {signal}" if signal else f"exit code {code}"
    error = ProcessExitedException(
        f"process 1 ended with {how}",
        error_index=1,
        error_pid=2,
        exit_code=code,
        signal_name=signal,
    )
    with pytest.raises(SystemExit) as stopped, short_errors():
        raise error
    text = capsys.readouterr().err
    assert stopped.value.code == 1
    assert said in text and bool(text) == bool(said)
    assert how in text or code == 1
