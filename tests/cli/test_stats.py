"""Tests of `logn stats`: output and exit status."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from logn_d2.core import LogitMoments, LogitStatistics, StageStatistics

from ..command import command

CLASS_NAMES = ("axolotl", "bob|sled", "cat")


script = command("stats")


def moments_of(logits: torch.Tensor, clusters: int) -> LogitMoments:
    moments = LogitMoments(logits.shape[1])
    for part in logits.chunk(clusters):
        moments.update(part)
    return moments


def statistics_of(logits: torch.Tensor, clusters: int = 10, **fields: object) -> LogitStatistics:
    """Statistics of logits (R, K + 1), the same in each of two stages but for a shift."""
    names = fields.pop("class_names", CLASS_NAMES)
    fingerprint = torch.arange(1.0, logits.shape[1] + 1, dtype=torch.float64)
    stages = tuple(
        StageStatistics.from_moments(moments_of(logits + shift, clusters), fingerprint + shift)
        for shift in (0.0, 1.0)
    )
    return LogitStatistics(
        stages=stages,
        class_names=names,
        datasets=("drawn_train",),
        num_images=clusters,
        num_rois=len(logits),
        **fields,
    )


def logits_of(seed: int = 0, rows: int = 200, columns: int = 4) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(rows, columns, generator=generator, dtype=torch.float64)
    return noise * torch.arange(1, columns + 1) - 3.0 * torch.arange(columns)


def saved(folder: Path, name: str, statistics: LogitStatistics) -> str:
    path = folder / f"{name}.safetensors"
    statistics.save(path)
    return str(path)


def table_rows(text: str) -> list[list[str]]:
    """The cells of every line that is a table's row."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[c.strip() for c in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]


def row_of(text: str, first: str, occurrence: int = 0) -> list[str]:
    return [row for row in table_rows(text) if row[0] == first][occurrence]


def test_table_holds_each_class_with_its_numbers(tmp_path, capsys):
    logits = logits_of()
    statistics = statistics_of(logits)
    assert script.main(["show", saved(tmp_path, "a", statistics)]) == 0
    text = capsys.readouterr().out
    for index, name in enumerate(["axolotl", r"bob\|sled", "cat", "(background)"]):
        column = logits[:, index]
        error = statistics.stages[0].moments.std_error[index]
        expected = [column.mean(), column.std(), error]
        assert row_of(text, name)[1:5] == ["200", *(f"{value:.4f}" for value in expected)]
        assert row_of(text, name, 1)[2] == f"{column.mean() + 1:.4f}"
    assert row_of(text, "data sets")[1] == "drawn_train"
    assert row_of(text, "images, RoIs")[1] == "10, 200"


def test_tables_are_markdown_with_as_many_cells_in_every_row(tmp_path, capsys):
    path = saved(tmp_path, "a", statistics_of(logits_of()))
    script.main(["show", path])
    blocks = re.split(r"\n(?!\|)", capsys.readouterr().out)
    tables = [block for block in blocks if "|" in block]
    assert tables
    for block in tables:
        rows = table_rows(block)
        if rows:
            assert len({len(row) for row in rows}) == 1
            assert all(re.fullmatch(":?-+:?", cell) for cell in rows[1])
            assert len({len(line) for line in block.splitlines() if line.startswith("|")}) == 1


def many_classes(columns: int = 41) -> LogitStatistics:
    names = tuple(f"c{index}" for index in range(columns - 1))
    return statistics_of(logits_of(columns=columns), class_names=names)


def test_ends_of_the_order_and_the_background_are_shown(tmp_path, capsys):
    path = saved(tmp_path, "a", many_classes())
    script.main(["show", path, "--rows", "2"])
    names = [row[0] for row in table_rows(capsys.readouterr().out)]
    start = names.index("class") + 2
    assert names[start : start + 6] == [
        "c0", "c1", "... 36 more (--all)", "c38", "c39", "(background)",
    ]  # fmt: skip


def test_all_classes_are_shown_in_the_order_of_their_means(tmp_path, capsys):
    path = saved(tmp_path, "a", many_classes())
    script.main(["show", path, "--all"])
    rows = table_rows(capsys.readouterr().out)
    start = [row[0] for row in rows].index("class") + 2
    means = [float(row[2]) for row in rows[start : start + 40]]
    assert means == sorted(means, reverse=True)
    assert rows[start + 40][0] == "(background)"


@pytest.mark.parametrize("background", ["first", "none"])
def test_background_column_is_named_where_it_is(tmp_path, capsys, background):
    names = CLASS_NAMES if background == "first" else (*CLASS_NAMES, "dog")
    statistics = statistics_of(logits_of(), class_names=CLASS_NAMES)
    statistics = replace(statistics, class_names=names, background=background)
    script.main(["show", saved(tmp_path, "a", statistics)])
    text = capsys.readouterr().out
    named = {row[0]: row[2] for row in reversed(table_rows(text)) if len(row) == 6}
    first = f"{logits_of()[:, 0].mean():.4f}"
    assert named["(background)" if background == "first" else "axolotl"] == first
    assert ("(background)" in named) == (background == "first")


def test_difference_is_in_units_of_its_standard_error(tmp_path, capsys):
    a, b = statistics_of(logits_of(0)), statistics_of(logits_of(1))
    assert script.main(["compare", saved(tmp_path, "a", a), saved(tmp_path, "b", b)]) == 0
    text = capsys.readouterr().out
    one, other = a.stages[0], b.stages[0]
    error = (one.moments.std_error**2 + other.moments.std_error**2).sqrt()
    expected = (other.mean - one.mean) / error
    for index, name in enumerate(["axolotl", r"bob\|sled", "cat"]):
        assert row_of(text, name)[3] == f"{expected[index]:+.2f}"
    assert f"{expected.square().mean().sqrt():.2f} std errors" in text
    assert "same weights" in text


def test_largest_differences_come_first(tmp_path, capsys):
    shift = torch.tensor([0.0, 0.0, 50.0, 0.0])
    a, b = statistics_of(logits_of()), statistics_of(logits_of() + shift)
    assert script.main(["compare", saved(tmp_path, "a", a), saved(tmp_path, "b", b)]) == 0
    rows = table_rows(capsys.readouterr().out)
    start = [row[0] for row in rows].index("class") + 2
    assert rows[start][0] == "cat"
    assert [row[3] for row in rows[start + 1 : start + 4]] == ["+0.00"] * 3


def test_properties_of_one_file_alone_are_not_compared_with_others(tmp_path, capsys):
    a = statistics_of(logits_of(), stop_at=0.1, provenance={"weights": "a"})
    b = statistics_of(logits_of(), provenance={"seed": "1"})
    assert script.main(["compare", saved(tmp_path, "a", a), saved(tmp_path, "b", b)]) == 0
    text = capsys.readouterr().out
    assert row_of(text, "ended at error")[1:] == ["0.1, not reached", "-"]
    sampling = row_of(text, "sampling error")
    assert sampling[1] == sampling[2] != "-"
    assert row_of(text, "weights")[1:] == ["a", "-"] and row_of(text, "seed")[1:] == ["-", "1"]


def test_moving_averages_have_no_standard_error(tmp_path, capsys):
    exact = statistics_of(logits_of())
    stages = tuple(replace(stage, moments=None) for stage in exact.stages)
    ema = replace(exact, stages=stages, estimator="ema", momentum=5e-5)
    path = saved(tmp_path, "ema", ema)
    assert script.main(["show", path]) == 0
    text = capsys.readouterr().out
    assert row_of(text, "cat")[4] == "-"
    assert row_of(text, "estimator")[1] == "ema, momentum 5e-05"
    other = saved(tmp_path, "ema2", ema)
    assert script.main(["compare", path, other]) == 0
    assert row_of(capsys.readouterr().out, "cat")[3] == "-"
    # With one exact file, its standard error is the unit.
    assert script.main(["compare", path, saved(tmp_path, "exact", exact)]) == 0
    assert row_of(capsys.readouterr().out, "cat")[3] == "+0.00"


def test_files_of_other_classes_are_not_compared(tmp_path, capsys):
    a = statistics_of(logits_of())
    b = replace(a, class_names=("axolotl", "cat", "bob|sled"))
    assert script.main(["compare", saved(tmp_path, "a", a), saved(tmp_path, "b", b)]) == 1
    assert "different class_names" in capsys.readouterr().err


def test_merged_shards_equal_the_whole_pass(tmp_path, capsys):
    logits = logits_of()
    parts = [statistics_of(part, clusters=5) for part in logits.chunk(2)]
    shards = [saved(tmp_path, f"s{index}", part) for index, part in enumerate(parts)]
    output = tmp_path / "new" / "all.safetensors"
    assert script.main(["merge", *shards, "--output", str(output)]) == 0
    merged, whole = LogitStatistics.load(output), statistics_of(logits, clusters=10)
    for mine, theirs in zip(merged.stages, whole.stages):
        torch.testing.assert_close(mine.mean, theirs.mean, rtol=0, atol=1e-12)
        torch.testing.assert_close(mine.var, theirs.var, rtol=1e-12, atol=0)
        error = theirs.moments.std_error
        torch.testing.assert_close(mine.moments.std_error, error, rtol=1e-9, atol=0)
    assert (merged.num_images, merged.num_rois) == (10, 200)
    assert row_of(capsys.readouterr().out, "images, RoIs")[1] == "10, 200"


def test_shard_given_twice_is_refused(tmp_path, capsys):
    path, output = saved(tmp_path, "a", statistics_of(logits_of())), tmp_path / "all.safetensors"
    assert script.main(["merge", path, path, "--output", str(output)]) == 1
    assert "is repeated" in capsys.readouterr().err
    assert not output.exists()


def test_shards_of_other_weights_are_not_merged(tmp_path, capsys):
    a = statistics_of(logits_of())
    stages = tuple(replace(stage, fingerprint=-stage.fingerprint) for stage in a.stages)
    paths = [saved(tmp_path, "a", a), saved(tmp_path, "b", replace(a, stages=stages))]
    output = tmp_path / "all.safetensors"
    assert script.main(["merge", *paths, "--output", str(output)]) == 1
    assert "other weights" in capsys.readouterr().err
    assert not output.exists()


def test_good_file_is_valid(tmp_path, capsys):
    path = saved(tmp_path, "a", statistics_of(logits_of()))
    assert script.main(["check", path]) == 0
    assert f"{path}: ok" in capsys.readouterr().out


def _constant_class(statistics: LogitStatistics) -> LogitStatistics:
    logits = logits_of()
    logits[:, 1] = 2.0
    return statistics_of(logits)


def _uneven_counts(statistics: LogitStatistics) -> LogitStatistics:
    stage = statistics.stages[0]
    count = stage.count.clone()
    count[2] -= 1
    changed = replace(stage, count=count, moments=None)
    return replace(statistics, stages=(changed, statistics.stages[1]))


def _changed_variance(statistics: LogitStatistics) -> LogitStatistics:
    stage = statistics.stages[1]
    changed = replace(stage, var=stage.var * 1.001)
    return replace(statistics, stages=(statistics.stages[0], changed))


def _repeated_names(statistics: LogitStatistics) -> LogitStatistics:
    return replace(statistics, class_names=("cat", "dog", "cat"))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_constant_class, r"1 of 3 classes .* only one value; .*: bob\|sled\."),
        (_uneven_counts, "stage 0: columns have 199 to 200 logits"),
        (_changed_variance, "stage 1: var differs from the mergeable state"),
        (_repeated_names, "class names repeat"),
    ],
)
def test_each_problem_is_named(tmp_path, capsys, damage, message):
    path = saved(tmp_path, "a", damage(statistics_of(logits_of())))
    assert script.main(["check", path]) == 1
    assert re.search(message, capsys.readouterr().out)


def test_uneven_counts_are_right_where_rois_count_for_one_class(tmp_path):
    statistics = replace(_uneven_counts(statistics_of(logits_of())), population="positives")
    assert script.main(["check", saved(tmp_path, "a", statistics)]) == 0


def test_missing_fingerprint_is_only_a_note(tmp_path, capsys):
    statistics = statistics_of(logits_of())
    stages = tuple(replace(stage, fingerprint=None) for stage in statistics.stages)
    path = saved(tmp_path, "a", replace(statistics, stages=stages))
    assert script.main(["check", path]) == 0
    assert "note: stage 1 has no fingerprint" in capsys.readouterr().out


def test_every_unreadable_file_is_named(tmp_path, capsys):
    good = Path(saved(tmp_path, "good", statistics_of(logits_of())))
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(good.read_bytes()[:-8])
    missing = str(tmp_path / "missing.safetensors")
    assert script.main(["check", str(good), str(cut), missing]) == 1
    error = capsys.readouterr().err
    assert "cut.safetensors" in error and "missing.safetensors" in error


@pytest.mark.parametrize(
    "arguments", [["compare", "a"], ["merge", "a", "--output", "out"], ["show"], []]
)
def test_wrong_command_lines_exit_with_2(arguments):
    with pytest.raises(SystemExit) as stopped:
        script.main(arguments)
    assert stopped.value.code == 2


def released_checkpoint(folder: Path) -> str:
    norm = torch.nn.BatchNorm1d(4, momentum=0.1, affine=False)
    for logits in logits_of().float().chunk(10):
        norm(logits)
    state = {f"roi_head.bbox_head.bn.{name}": t for name, t in norm.state_dict().items()}
    state["roi_head.bbox_head.bn.running_mean"][-1] = 0  # as evaluation leaves it
    path = folder / "epoch_1.pth"
    torch.save({"state_dict": state, "meta": {"CLASSES": CLASS_NAMES}}, path)
    return str(path)


def test_checkpoint_of_the_released_code_becomes_a_statistics_file(tmp_path, capsys):
    output = str(tmp_path / "new" / "stats.safetensors")
    arguments = ["import", released_checkpoint(tmp_path), "--output", output]
    assert script.main([*arguments, "--momentum", "0.1", "--debias"]) == 0
    text = capsys.readouterr().out
    assert row_of(text, "estimator")[1] == "ema_debiased, momentum 0.1"
    assert row_of(text, "images, RoIs")[1] == "10, 5,120"
    assert row_of(text, "(background)")[1] == "0"
    mean = LogitStatistics.load(output).stages[0].mean
    torch.testing.assert_close(mean[:3], logits_of().mean(dim=0)[:3], rtol=0, atol=0.6)
    assert script.main(["check", output]) == 0


def test_imported_classes_are_those_of_a_data_set(tmp_path, capsys):
    from detectron2.data import MetadataCatalog

    output = str(tmp_path / "stats.safetensors")
    arguments = ["import", released_checkpoint(tmp_path), "--output", output]
    MetadataCatalog.get("inspect_test_set").thing_classes = ["a", "b", "c"]
    try:
        assert script.main([*arguments, "--class-names-from", "inspect_test_set"]) == 0
    finally:
        MetadataCatalog.remove("inspect_test_set")
    statistics = LogitStatistics.load(output)
    assert (statistics.class_names, statistics.datasets) == (("a", "b", "c"), ("inspect_test_set",))
    assert script.main([*arguments, "--class-names-from", "no_such_set"]) == 1
    assert "No data set 'no_such_set' with class names is registered." in capsys.readouterr().err


def test_checkpoint_without_statistics_is_an_error(tmp_path, capsys):
    path, output = tmp_path / "epoch_1.pth", tmp_path / "stats.safetensors"
    torch.save({"state_dict": {}}, path)
    assert script.main(["import", str(path), "--output", str(output)]) == 1
    assert "no statistics of logits" in capsys.readouterr().err
    assert not output.exists()


def test_aim_and_error_of_a_pass_are_shown(tmp_path, capsys):
    statistics = replace(statistics_of(logits_of()), stop_at=0.5).with_reached()
    script.main(["show", saved(tmp_path, "a", statistics)])
    text = capsys.readouterr().out
    assert (
        row_of(text, "ended at error")[1] == f"0.5, {'' if statistics.reached else 'not '}reached"
    )
    assert row_of(text, "sampling error")[1].startswith(f"{statistics.sampling_error():.4f}")
