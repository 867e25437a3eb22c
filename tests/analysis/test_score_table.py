"""Tests of the text table of scores."""

from logn_d2.analysis import format_spread, format_table

NAN = float("nan")


def cells(line):
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_several_runs_give_mean_and_sample_standard_deviation():
    runs = [{"bbox": {"AP": value, "APr": NAN}} for value in (10.0, 12.0)]
    lines = format_table({"LogN": runs, "one": runs[:1]}, title="").splitlines()
    assert cells(lines[0]) == ["", "box AP", "APr", "APc", "APf"]
    assert cells(lines[2]) == ["LogN", "11.0 ± 1.4", "-", "-", "-"]
    assert cells(lines[3]) == ["one", "10.0", "-", "-", "-"]


def test_a_run_that_lacks_masks_is_left_out_of_their_mean():
    both, boxes = {"bbox": {"AP": 1.0}, "segm": {"AP": 3.0}}, {"bbox": {"AP": 2.0}}
    lines = format_table({"a": [both, boxes], "b": boxes}).splitlines()
    assert cells(lines[2])[5] == "3.0"
    assert cells(lines[3])[5] == "-"


def test_unknown_values_are_left_out():
    assert format_spread([NAN, 1.0, None, 3.0], digits=2) == "2.00 ± 1.41"
    assert format_spread([NAN, None]) == "-"


def test_marked_names_have_a_star():
    assert "| a * " in format_table({"a": {"bbox": {"AP": 1.0}}}, marked=["a"])
