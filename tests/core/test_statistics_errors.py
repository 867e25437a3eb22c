"""Every mistake in a statistics file gives an error with its cause and remedy."""

import dataclasses
import errno
import json

import pytest
import safetensors.torch
import torch

from logn_d2.core import (
    LogitMoments,
    LogitStatistics,
    StageStatistics,
    StatisticsError,
    classifier_fingerprint,
)

from ..load_script import load_script


def make_statistics(stages=1, names=("axolotl", "bee", "cat"), fingerprint=None):
    moments = LogitMoments(len(names) + 1)
    for seed in range(3):
        moments.update(torch.randn(4, len(names) + 1, generator=torch.manual_seed(seed)))
    stage = StageStatistics.from_moments(moments, fingerprint)
    return LogitStatistics((stage,) * stages, class_names=names, datasets=("glyphs_train",))


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "stats.safetensors"
    make_statistics().save(path)
    return path


def rewrite(path, **changes):
    """Changes metadata or tensors of a file, as of a release without checksums; None removes."""
    with safetensors.safe_open(path, "pt") as file:
        metadata = file.metadata()
        del metadata["sha256"]
        tensors = {name: file.get_tensor(name) for name in file.keys()}
    for name, value in changes.items():
        name = name.replace("__", ".")
        where = tensors if "." in name else metadata
        if value is None:
            del where[name]
        else:
            where[name] = value if isinstance(value, torch.Tensor) else json.dumps(value)
    path.write_bytes(safetensors.torch.save(tensors, metadata))


def test_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nothing.st'. Make one with: .*logn collect"):
        LogitStatistics.load(tmp_path / "nothing.st")
    with pytest.raises(FileNotFoundError):
        LogitStatistics.load(tmp_path)


@pytest.mark.parametrize("content", [b"", b"x", b"PK\x03\x04 a pickled checkpoint" * 9, bytes(99)])
def test_another_kind_of_file(tmp_path, content):
    (tmp_path / "model.pth").write_bytes(content)
    with pytest.raises(StatisticsError, match="model.pth' is not a complete statistics file"):
        LogitStatistics.load(tmp_path / "model.pth")


@pytest.mark.parametrize(
    "metadata", [None, {"format": "pt"}, {"format": '"pt"'}, {"modelspec.title": "not {JSON"}]
)
def test_another_safetensors_file(tmp_path, metadata):
    path = tmp_path / "model.safetensors"
    path.write_bytes(safetensors.torch.save({"weight": torch.zeros(2)}, metadata))
    with pytest.raises(StatisticsError, match="not a statistics file of logn_d2"):
        LogitStatistics.load(path)


@pytest.mark.parametrize("share", [0.0, 0.001, 0.01, 0.1, 0.3, 0.5, 0.7, 0.9, 0.99, 0.999])
def test_truncated_file(path, share):
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(StatisticsError, match="stats.safetensors'.*truncated"):
        LogitStatistics.load(path)


@pytest.mark.parametrize("start", range(8))
def test_truncated_at_any_byte(path, start):
    content = path.read_bytes()
    for length in range(start, len(content), 8):
        path.write_bytes(content[:length])
        with pytest.raises(StatisticsError):
            LogitStatistics.load(path)


def test_newer_version(path):
    rewrite(path, version=4)
    with pytest.raises(StatisticsError, match=r"version 4, .* up to 3. Update logn_d2"):
        LogitStatistics.load(path)


def test_statistics_of_other_than_raw_logits(path):
    rewrite(path, logits="logitnorm(tau=0.04)", version=1)
    with pytest.raises(StatisticsError, match=r"not raw \('logitnorm"):
        LogitStatistics.load(path)


@pytest.mark.parametrize(
    "name", ["stage0__mean", "stage0__count", "stage0__group_mean", "class_names", "num_stages"]
)
def test_missing_parts(path, name):
    rewrite(path, **{name: None})
    with pytest.raises(StatisticsError, match=f"lacks '{name.split('__')[-1]}'"):
        LogitStatistics.load(path)


def test_damaged_metadata(path):
    with safetensors.safe_open(path, "pt") as file:
        metadata = {**file.metadata(), "class_names": "axolotl"}
    path.write_bytes(safetensors.torch.save({}, metadata))
    with pytest.raises(StatisticsError, match="stats.safetensors' are damaged"):
        LogitStatistics.load(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stage0__mean": torch.tensor([0, torch.nan, 0, torch.inf])}, "mean has 2 values"),
        ({"stage0__var": torch.tensor([0, torch.nan, 0, 0])}, "var has 1 values"),
        ({"stage0__var": torch.tensor([0.0, -1, 0, 0])}, "negative"),
        ({"stage0__count": torch.tensor([0, -1, 0, 0])}, "negative"),
        ({"stage0__var": torch.ones(3)}, r"one shape \(C,\), found \(4,\), \(3,\) and \(4,\)"),
        ({"class_names": ["axolotl", "bee"]}, "3 of them foreground .* for 2 class names"),
        ({"background": "none"}, "4 of them foreground"),
        ({"background": "middle"}, "'middle', expected 'last', 'first' or 'none'"),
    ],
)
def test_values_that_make_no_sense(path, changes, message):
    rewrite(path, **changes)
    with pytest.raises(StatisticsError, match=message) as error:
        LogitStatistics.load(path)
    assert str(path) in str(error.value)


def test_single_precision_of_a_file_made_elsewhere_is_fine(path):
    rewrite(path, stage0__mean=torch.ones(4), stage0__sum_square=None)
    (stage,) = LogitStatistics.load(path).stages
    assert stage.mean.dtype == torch.float64


def test_wrong_number_of_classes():
    message = r"has 1203 classes, but these statistics \(of glyphs_train\) have 3"
    with pytest.raises(StatisticsError, match=message):
        make_statistics().check(num_classes=1203, num_stages=1)


def test_wrong_number_of_stages():
    with pytest.raises(StatisticsError, match="3 box predictors .* have 1. Collect them again"):
        make_statistics().check(num_classes=3, num_stages=3)


def test_other_class_names():
    with pytest.raises(StatisticsError, match="class 1 is 'dog' in the model's .* and 'bee' in"):
        make_statistics().check(num_classes=3, num_stages=1, class_names=["axolotl", "dog", "cat"])


@pytest.mark.parametrize("names", [["axolotl", "bee"], ["axolotl", "bee", "cat", "dog"], []])
def test_more_or_fewer_class_names(names):
    with pytest.raises(StatisticsError, match=f"has {len(names)} class names, .* have 3"):
        make_statistics().check(num_classes=3, num_stages=1, class_names=names)


def test_the_right_model_passes():
    weight, bias = torch.randn(4, 8, generator=torch.manual_seed(0)), torch.zeros(4)
    fingerprint = classifier_fingerprint(weight, bias)
    statistics = make_statistics(2, fingerprint=fingerprint)
    names = ["axolotl", "bee", "cat"]
    for fingerprints in ((), [fingerprint], [None, fingerprint], [fingerprint, fingerprint]):
        statistics.check(num_classes=3, num_stages=2, class_names=names, fingerprints=fingerprints)
    make_statistics().check(num_classes=3, num_stages=1, fingerprints=[fingerprint])  # unknown


def test_other_weights():
    weight = torch.randn(4, 8, generator=torch.manual_seed(0))
    statistics = make_statistics(2, fingerprint=classifier_fingerprint(weight))
    other = classifier_fingerprint(torch.randn(4, 8, generator=torch.manual_seed(1)))
    with pytest.raises(StatisticsError, match=r"stage 1 differs in \d of 4 columns. Load the"):
        statistics.check(num_classes=3, num_stages=2, fingerprints=[None, other])


@pytest.mark.parametrize("found", [torch.full((4,), torch.nan), torch.zeros(6)])
def test_weights_that_can_not_be_compared_are_other_weights(found):
    statistics = make_statistics(fingerprint=torch.ones(4))
    with pytest.raises(StatisticsError, match="4 of 4 columns"):
        statistics.check(num_classes=3, num_stages=1, fingerprints=[found])


def test_a_file_in_place_of_a_folder(tmp_path):
    (tmp_path / "output").write_text("not a folder")
    with pytest.raises(OSError):
        make_statistics().save(tmp_path / "output" / "stats.safetensors")
    assert (tmp_path / "output").read_text() == "not a folder"


@pytest.mark.parametrize("call", ["pathlib.Path.write_bytes", "os.fsync", "os.replace"])
def test_a_full_disk_leaves_the_old_file_intact(path, monkeypatch, call):
    before = path.read_bytes()
    newer = dataclasses.replace(make_statistics(), num_images=99)

    def fail(*args):
        if call == "pathlib.Path.write_bytes":  # some bytes still find room
            with open(args[0], "wb") as file:
                file.write(args[1][:100])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(call, fail)
    with pytest.raises(OSError, match="No space left"):
        newer.save(path)
    monkeypatch.undo()
    assert path.read_bytes() == before
    assert [each.name for each in path.parent.iterdir()] == [path.name]  # no temporary file


def test_provenance_that_json_can_not_write_leaves_the_old_file_intact(path):
    before = path.read_bytes()
    with pytest.raises(TypeError):
        dataclasses.replace(make_statistics(), provenance={"path": path}).save(path)
    assert path.read_bytes() == before


def test_a_number_that_was_changed_is_noticed_by_the_checksum(path):
    content = bytearray(path.read_bytes())
    content[-3] ^= 1  # in the last tensor: a number like any other
    path.write_bytes(content)
    with pytest.raises(
        StatisticsError, match="stats.safetensors' was changed after it was written"
    ):
        LogitStatistics.load(path)


def test_damaged_files_are_read_as_written_or_refused(tmp_path):
    fuzz = load_script("benchmarks/fuzz_statistics.py")
    expected = fuzz.example()
    expected.save(tmp_path / "whole.safetensors")
    content = (tmp_path / "whole.safetensors").read_bytes()
    found = {seed: fuzz.outcome(content, expected, seed, tmp_path) for seed in range(150)}
    fine = ("same", "refused", "other numbers, no checksum")
    assert not {seed: how for seed, how in found.items() if how not in fine}
    assert {"same", "refused"} <= set(found.values())
