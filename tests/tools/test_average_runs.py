"""Tests of tools/average_runs.py."""

import json

import pytest

from ..load_script import load_script


@pytest.fixture(scope="module")
def tool():
    return load_script("tools/average_runs.py")


def write_run(path, **ap):
    path.mkdir(parents=True)
    rows = [{"calibration": name, "bbox": {"AP": value}} for name, value in ap.items()]
    (path / "results.json").write_text(json.dumps({"rows": rows}))
    return path


def test_what_all_runs_have_is_averaged(tool, tmp_path, capsys):
    first = write_run(tmp_path / "a", logn=10.0, norcal=3.0)
    second = write_run(tmp_path / "b" / "inference" / "val", logn=12.0)
    assert tool.main([str(first), str(tmp_path / "b")]) == 0
    output = capsys.readouterr().out
    assert "11.0 ± 1.4" in output and "norcal" not in output and "2 runs" in output
    assert second.is_dir()


@pytest.mark.parametrize(
    ("content", "expected"),
    [(None, "no results.json"), ("[]", "not a file of results"), ("{", "not a file of results")],
)
def test_folder_without_results_is_named(tool, tmp_path, capsys, content, expected):
    if content is not None:
        (tmp_path / "results.json").write_text(content)
    with pytest.raises(SystemExit):
        tool.main([str(tmp_path)])
    error = capsys.readouterr().err
    assert expected in error and str(tmp_path) in error


def test_runs_with_nothing_in_common_are_refused(tool, tmp_path, capsys):
    runs = [write_run(tmp_path / "a", logn=1.0), write_run(tmp_path / "b", norcal=1.0)]
    with pytest.raises(SystemExit):
        tool.main([*map(str, runs)])
    assert "they have: logn; norcal" in capsys.readouterr().err
