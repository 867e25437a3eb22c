"""Tests of `logn average`."""

import json
import math

import pytest

from ..command import command


@pytest.fixture(scope="module")
def tool():
    return command("average")


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


def test_changes_are_within_each_run(tool, tmp_path, capsys):
    runs = [write_run(tmp_path / "a", none=10.0, logn=11.0)]
    runs += [write_run(tmp_path / "b", logn=23.0, none=20.0)]  # other order
    assert tool.main([*map(str, runs), "--changes"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "Changes from none in the same run." in lines
    (row,) = (line for line in lines if "±" in line and "|" in line)
    assert [cell.strip() for cell in row.split("|")[1:-1]][:2] == ["logn", "2.0 ± 1.4"]


def test_image_classifiers_have_accuracies(tool, tmp_path, capsys):
    for name, acc in (("a", 50.0), ("b", 52.0)):
        image = {"acc": acc, "many": 60.0, "medium": None, "few": 1.0, "ECE": 3.0}
        (tmp_path / name).write_text(json.dumps({"rows": [{"calibration": "x", "image": image}]}))
    assert tool.main([str(tmp_path / "a"), str(tmp_path / "b")]) == 0
    (row,) = (line for line in capsys.readouterr().out.splitlines() if "±" in line and "|" in line)
    cells = [cell.strip() for cell in row.split("|")[1:-1]]
    assert cells == ["x", "51.0 ± 1.4", "60.0 ± 0.0", "-", "1.0 ± 0.0", "3.0 ± 0.0"]


def test_groups_without_objects_have_no_change(tool):
    none, value = ({"bbox": {"AP": ap, "APr": math.nan}} for ap in (1.0, 3.0))
    ((changed,),) = tool.changes({"none": [none], "logn": [value]}).values()
    assert changed["bbox"]["AP"] == 2.0 and math.isnan(changed["bbox"]["APr"])


@pytest.mark.parametrize(
    ("content", "expected"),
    [(None, "no results.json"), ("[]", "can't be used"), ("{", "can't be used")],
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
