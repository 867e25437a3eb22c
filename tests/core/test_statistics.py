"""StageStatistics and LogitStatistics: content of the file, merging, and checks."""

import dataclasses
import json
import logging
import stat
from pathlib import Path

import pytest
import safetensors
import safetensors.torch
import torch

from logn_d2.core import (
    EmaLogitMoments,
    LogitMoments,
    LogitStatistics,
    PosteriorMoments,
    StageStatistics,
    StatisticsError,
    classifier_fingerprint,
)

NAMES = ("axolotl", "bee", "crêpe \"'\\", "犬")


def make_stage(seed=0, images=6, columns=5, fingerprint=True):
    generator = torch.Generator().manual_seed(seed)
    moments, posteriors = LogitMoments(columns), PosteriorMoments(columns)
    for size in range(1, images + 1):
        logits = torch.randn(size, columns, generator=generator) * 2 - 3
        labels = torch.randint(columns, (size,), generator=generator)
        moments.update(logits)
        posteriors.update(logits, logits.softmax(dim=1), labels)
    weight = torch.randn(columns, 16, generator=torch.Generator().manual_seed(7))
    return StageStatistics.from_moments(
        moments, classifier_fingerprint(weight) if fingerprint else None, posteriors
    )


def make_statistics(*stages, **fields):
    defaults = {
        "stages": stages or (make_stage(),),
        "class_names": NAMES,
        "datasets": ("lvis_v1_train", "more"),
        "population": "proposals",
        "sampler": "RepeatFactorTrainingSampler(0.001)",
        "augmented": True,
        "autocast": "float16",
        "activation": "softmax",
        "complete": True,
        "num_images": 6,
        "num_rois": 21,
        "provenance": {"torch": "2.3", "seed": 0, "share": 0.1 + 0.2, "list": [1, None]},
    }
    return LogitStatistics(**{**defaults, **fields})


def same_tensors(one, two):
    first, second = one.tensors("s"), two.tensors("s")
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]) and tensor.dtype == second[name].dtype, name


def fields_without_stages(statistics):
    names = [field.name for field in dataclasses.fields(statistics) if field.name != "stages"]
    return {name: getattr(statistics, name) for name in names}


@pytest.mark.parametrize("num_stages", [1, 3])
def test_save_and_load_keep_every_bit(tmp_path, num_stages):
    statistics = make_statistics(*map(make_stage, range(num_stages)))
    statistics.save(tmp_path / "new" / "folder" / "stats.safetensors")
    loaded = LogitStatistics.load(str(tmp_path / "new" / "folder" / "stats.safetensors"))
    assert fields_without_stages(loaded) == fields_without_stages(statistics)
    for found, expected in zip(loaded.stages, statistics.stages, strict=True):
        same_tensors(found, expected)
        assert found.moments.state_dict().keys() == expected.moments.state_dict().keys()


def test_files_from_before_passes_could_end_early_are_read(tmp_path):
    path = tmp_path / "stats.safetensors"
    make_statistics().save(path)
    with safetensors.safe_open(path, framework="pt") as file:
        later = ("stop_at", "reached", "autocast", "activation", "complete", "sha256")
        metadata = {k: v for k, v in file.metadata().items() if k not in later}
        metadata |= {"version": "1", "logits": '"raw"'}
        early = ("stage0.mean", "stage0.var", "stage0.count", "stage0.sum_square")
        tensors = {k: file.get_tensor(k) for k in early}
    path.write_bytes(safetensors.torch.save(tensors, metadata))
    loaded = LogitStatistics.load(path)
    assert (loaded.stop_at, loaded.reached, loaded.autocast) == (0.0, None, None)
    assert (loaded.activation, loaded.complete) == (None, None)
    assert torch.equal(loaded.stages[0].mean, make_stage().mean)
    loaded.save(path)
    merged = LogitStatistics.load(path).merge(make_statistics())
    assert (merged.num_images, merged.autocast) == (12, "float16")


def test_files_without_posteriors_are_read_and_refused_where_needed(tmp_path):
    """Format version 2."""
    path, statistics = tmp_path / "stats.safetensors", make_statistics()
    statistics.save(path)
    with safetensors.safe_open(path, framework="pt") as file:
        later = ("activation", "complete", "sha256")
        metadata = {k: v for k, v in file.metadata().items() if k not in later} | {"version": "2"}
        names = {f"stage0.{name}" for name in PosteriorMoments.NAMES}
        assert names < set(file.keys())
        tensors = {k: file.get_tensor(k) for k in file.keys() if k not in names}
    path.write_bytes(safetensors.torch.save(tensors, metadata))
    loaded = LogitStatistics.load(path)
    assert loaded.stages[0].posteriors is None and loaded.unlabelled() is None
    assert torch.equal(loaded.stages[0].mean, statistics.stages[0].mean)
    assert loaded.sampling_error() == statistics.sampling_error()
    with pytest.raises(StatisticsError, match="older logn_d2.*Collect them again"):
        loaded.stages[0].mean_posterior()
    for merged in (loaded.merge(statistics), statistics.merge(loaded)):
        assert merged.activation == "softmax" and merged.stages[0].posteriors is None


def test_statistics_of_proposals_are_kept_without_labels(tmp_path):
    moments, posteriors = LogitMoments(5), PosteriorMoments(5)
    moments.update(torch.zeros(2, 5))
    posteriors.update(torch.zeros(2, 5), torch.full((2, 5), 0.2))
    stage = StageStatistics.from_moments(moments, posteriors=posteriors)
    make_statistics(stage).save(tmp_path / "stats.safetensors")
    (loaded,) = LogitStatistics.load(tmp_path / "stats.safetensors").stages
    same_tensors(loaded, stage)
    assert not loaded.posteriors.labelled


def with_labels(labels, **fields):
    moments, posteriors = LogitMoments(5), PosteriorMoments(5)
    logits = torch.randn(len(labels), 5, generator=torch.Generator().manual_seed(0))
    moments.update(logits)
    posteriors.update(logits, logits.softmax(dim=1), torch.tensor(labels))
    stage = StageStatistics.from_moments(moments, posteriors=posteriors)
    return make_statistics(stage, **fields)


def test_classes_without_a_roi_are_known_after_a_complete_pass(caplog):
    statistics = with_labels([0, 2, 4, 4])
    assert statistics.unlabelled().tolist() == [False, True, False, True]
    with caplog.at_level(logging.WARNING, "logn_d2"):
        for _ in range(3):
            statistics.check(num_classes=4, num_stages=1)
    (record,) = caplog.records
    assert "2 of 4 classes have no RoI" in record.getMessage()
    assert "the first is 'bee': LogN's beta ignores them" in record.getMessage()
    shard = with_labels([1, 3])
    assert not statistics.merge(shard).unlabelled().any()


@pytest.mark.parametrize("complete", [False, None])
def test_what_an_incomplete_pass_has_not_met_may_yet_have_rois(complete, caplog):
    statistics = with_labels([0, 2, 4, 4], complete=complete)
    statistics.check(num_classes=4, num_stages=1)
    assert statistics.unlabelled() is None and not caplog.records
    assert with_labels([1, 1]).merge(statistics).unlabelled() is None


def test_a_pass_that_has_ended_early_is_not_complete():
    stage = make_stage(images=60)
    early = make_statistics(stage, stop_at=1e9).with_reached()
    assert early.reached and early.complete is False
    assert make_statistics(stage, stop_at=1e-9).with_reached().complete is True


def test_known_weights_stay_known_in_a_merge():
    known, unknown = make_statistics(), make_statistics(make_stage(fingerprint=False))
    for merged in (known.merge(unknown), unknown.merge(known)):
        assert torch.equal(merged.stages[0].fingerprint, known.stages[0].fingerprint)


def test_repr_is_one_short_line():
    text = repr(make_statistics(*map(make_stage, range(3))))
    assert text == (
        "LogitStatistics(4 classes, 3 stages, 6 images, 21 RoIs of lvis_v1_train, more)"
    )


def test_moving_averages_are_kept_too(tmp_path):
    moments = EmaLogitMoments(5, momentum=5e-5)
    moments.update(torch.randn(4, 5))
    stage = StageStatistics(moments.mean, moments.var, moments.count)
    statistics = make_statistics(stage, estimator="ema", momentum=5e-5)
    statistics.save(tmp_path / "stats.safetensors")
    loaded = LogitStatistics.load(tmp_path / "stats.safetensors")
    same_tensors(loaded.stages[0], stage)
    assert loaded.stages[0].moments is None and loaded.momentum == 5e-5


def test_file_is_readable_with_safetensors_alone(tmp_path):
    statistics = make_statistics(*map(make_stage, range(3)))
    statistics.save(tmp_path / "stats.safetensors")
    tensors = safetensors.torch.load_file(tmp_path / "stats.safetensors")
    for index, stage in enumerate(statistics.stages):
        assert torch.equal(tensors[f"stage{index}.mean"], stage.mean)
        assert torch.equal(tensors[f"stage{index}.var"], stage.var)
        assert torch.equal(tensors[f"stage{index}.count"], stage.count)
    with safetensors.safe_open(tmp_path / "stats.safetensors", "np") as file:
        metadata = {name: json.loads(value) for name, value in file.metadata().items()}
    assert metadata["class_names"] == list(NAMES)
    assert (metadata["format"], metadata["version"]) == ("logn_d2 statistics", 3)


def test_file_can_be_read_by_others(tmp_path):
    make_statistics().save(tmp_path / "stats.safetensors")
    (tmp_path / "plain").write_text("")
    modes = {stat.S_IMODE((tmp_path / n).stat().st_mode) for n in ("stats.safetensors", "plain")}
    assert len(modes) == 1


def test_statistics_do_not_follow_the_moments_that_they_came_from():
    moments = LogitMoments(2)
    moments.update(torch.randn(3, 2))
    stage = StageStatistics.from_moments(moments)
    before = stage.tensors("s")
    moments.update(torch.randn(5, 2))
    assert all(torch.equal(before[name], tensor) for name, tensor in stage.tensors("s").items())


def test_merged_statistics_equal_a_single_pass(tmp_path):
    generator = torch.Generator().manual_seed(0)
    batches = [torch.randn(n, 5, generator=generator) for n in (3, 9, 1, 4, 7, 2)]

    def run(batches, dataset):
        moments = LogitMoments(5)
        for batch in batches:
            moments.update(batch)
        size = sum(map(len, batches))
        return make_statistics(
            StageStatistics.from_moments(moments),
            datasets=(dataset,),
            num_images=len(batches),
            num_rois=size,
        )

    run(batches[:2], "a").save(tmp_path / "a")
    run(batches[2:], "b").save(tmp_path / "b")
    merged = LogitStatistics.load(tmp_path / "a").merge(LogitStatistics.load(tmp_path / "b"))
    single = run(batches, "a")
    for name in ("mean", "var", "count"):
        found, expected = getattr(merged.stages[0], name), getattr(single.stages[0], name)
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    found, expected = merged.stages[0].moments.std_error, single.stages[0].moments.std_error
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)
    assert (merged.num_images, merged.num_rois) == (6, 26)
    assert merged.datasets == ("a", "b")
    assert merged.merge(single).datasets == ("a", "b")  # each name once


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("class_names", ("axolotl", "bee", "cat", "dog")),
        ("population", "sampled"),
        ("estimator", "ema"),
        ("sampler", "TrainingSampler"),
        ("augmented", False),
        ("autocast", "bfloat16"),
        ("sampler", "RepeatFactorTrainingSampler(0.002)"),
    ],
)
def test_passes_that_differ_can_not_be_merged(field, value):
    statistics = make_statistics()
    with pytest.raises(StatisticsError, match=f"different {field} can't be merged"):
        statistics.merge(dataclasses.replace(statistics, **{field: value}))


def test_what_else_can_not_be_merged():
    statistics = make_statistics()
    with pytest.raises(StatisticsError, match="1 and 2 stages"):
        statistics.merge(make_statistics(make_stage(), make_stage()))
    (stage,) = statistics.stages
    other = dataclasses.replace(stage, fingerprint=-stage.fingerprint)
    with pytest.raises(StatisticsError, match="other weights"):
        statistics.merge(dataclasses.replace(statistics, stages=(other,)))
    average = dataclasses.replace(stage, moments=None)
    with pytest.raises(StatisticsError, match="order of images"):
        statistics.merge(dataclasses.replace(statistics, stages=(average,)))


def test_usable_needs_two_different_logits():
    moments = LogitMoments(4)
    logits = torch.tensor([[1.0, 0.1, 2.0, 3.0], [2.0, 0.1, 2.0, 3.0], [4.0, 0.1, 9.0, 9.0]])
    mask = torch.tensor([[1, 1, 1, 0], [1, 1, 0, 0], [1, 1, 0, 0]]).bool()
    moments.update(logits, mask)
    assert StageStatistics.from_moments(moments).usable.tolist() == [True, False, False, False]


def test_rounding_noise_of_a_constant_logit_is_not_a_variance():
    # 0.1 three times has a mean that is not 0.1 in floating point.
    stage = StageStatistics(torch.tensor([0.1]), torch.tensor([1e-33]), torch.tensor([3]))
    assert not stage.usable.any()


def test_classes_that_can_not_be_calibrated_are_named_once(caplog):
    count = torch.tensor([0, 9, 1, 9, 9])
    stage = StageStatistics(torch.zeros(5), torch.ones(5), count)
    statistics = make_statistics(stage)
    assert statistics.unusable_classes() == (NAMES[0], NAMES[2])
    with caplog.at_level(logging.WARNING, "logn_d2"):
        for _ in range(3):
            statistics.check(num_classes=4, num_stages=1)
    (record,) = caplog.records
    assert "2 of 4 classes" in record.getMessage()
    assert record.getMessage().endswith(f": {NAMES[0]}, {NAMES[2]}.")


def test_the_warning_stays_short(caplog):
    count = torch.zeros(1204, dtype=torch.int64)
    count[-5:] = 9
    stage = StageStatistics(torch.zeros(1204), torch.ones(1204), count)
    names = tuple(f"class {index}" for index in range(1203))
    LogitStatistics(stages=(stage,), class_names=names).check(num_classes=1203, num_stages=1)
    assert "class 9 and 1189 more" in caplog.text and "class 10," not in caplog.text


def test_a_class_that_one_stage_can_not_use_is_named():
    stages = [make_stage(seed) for seed in range(2)]
    stages[1] = dataclasses.replace(stages[1], count=torch.tensor([5, 5, 5, 0, 5]))
    assert make_statistics(*stages).unusable_classes() == (NAMES[3],)


@pytest.mark.parametrize(("background", "named"), [("last", 0), ("first", None), ("none", 0)])
def test_an_unseen_background_is_no_class(background, named):
    stage = StageStatistics(torch.zeros(3), torch.ones(3), torch.tensor([0, 5, 5]))
    names = ("a", "b", "c")[: 3 if background == "none" else 2]
    statistics = LogitStatistics(stages=(stage,), class_names=names, background=background)
    assert statistics.unusable_classes() == (() if named is None else ("a",))


def test_statistics_of_nothing_are_an_error():
    stage = StageStatistics.from_moments(LogitMoments(5))
    with pytest.raises(StatisticsError, match="0 images and 0 RoIs"):
        make_statistics(stage, num_images=0, num_rois=0).check(num_classes=4, num_stages=1)


def test_stages_may_share_their_tensors(tmp_path: Path) -> None:
    stage = StageStatistics(
        mean=torch.zeros(3), var=torch.ones(3), count=torch.full((3,), 5), fingerprint=None
    )
    statistics = LogitStatistics(stages=(stage, stage), class_names=("a", "b"))
    statistics.save(tmp_path / "s.safetensors")
    assert len(LogitStatistics.load(tmp_path / "s.safetensors").stages) == 2
