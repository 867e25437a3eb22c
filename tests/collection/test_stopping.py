"""A pass that ends early ends where a single process would, and logs it."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from detectron2.data import build_detection_test_loader
from torch import nn

from logn_d2.collection import LogitStatisticsCollector, collect_from_config, collect_statistics
from logn_d2.collection.stopping import StoppingLoader
from logn_d2.core import LogitStatistics, StatisticsError
from logn_d2.data.loader import build_evaluation_loader, build_statistics_loader, statistics_mapper

from ..small_detectors import CASCADE, TRAIN, small_config, small_model, start_process

pytestmark = pytest.mark.usefixtures("data_set")


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return small_model(small_config(CASCADE))


@pytest.fixture(scope="module")
def images() -> list[list[dict]]:
    return list(build_statistics_loader(small_config(CASCADE)))


@pytest.fixture(scope="module")
def errors(model: nn.Module, images: list[list[dict]]) -> dict[int, float]:
    """The sampling error after so many images."""
    counts = range(2, 11)
    return {n: collect_statistics(model, images[:n]).sampling_error() for n in counts}


def assert_same(left: LogitStatistics, right: LogitStatistics) -> None:
    for each in fields(left):
        if each.name not in ("stages", "provenance"):
            assert getattr(left, each.name) == getattr(right, each.name), each.name
    for one, other in zip(left.stages, right.stages, strict=True):
        named, theirs = one.tensors("s"), other.tensors("s")
        assert named.keys() == theirs.keys()
        for name, tensor in named.items():
            torch.testing.assert_close(tensor, theirs[name], rtol=1e-9, atol=1e-9)


def first_below(errors: dict[int, float], tolerance: float, period: int) -> int:
    looks = [n for n in range(period, 11, period) if errors[n] <= tolerance]
    return looks[0] if looks else 10


@pytest.mark.parametrize("period", [2, 3, 5])
def test_pass_ends_at_the_first_check_below_the_tolerance(
    model: nn.Module, images: list[list[dict]], errors: dict[int, float], period: int
) -> None:
    for tolerance in sorted(errors.values()):
        expected = first_below(errors, tolerance, period)
        found = collect_statistics(model, images, stop_at=tolerance, stop_period=period)
        assert found.num_images == expected
        assert found.stop_at == tolerance
        assert found.reached is (errors[expected] <= tolerance)
        assert found.sampling_error() == pytest.approx(errors[expected], rel=1e-9)


def test_images_after_the_end_are_not_loaded(
    model: nn.Module, images: list[list[dict]], errors: dict[int, float]
) -> None:
    loaded = []

    class Loader(list):
        def __iter__(self) -> Iterator[list[dict]]:
            return (loaded.append(x[0]["image_id"]) or x for x in list.__iter__(self))

    collect_statistics(model, Loader(images), stop_at=errors[4], stop_period=4)
    assert loaded == [batch[0]["image_id"] for batch in images[:4]]


def test_zero_changes_nothing(model: nn.Module, images: list[list[dict]]) -> None:
    plain = collect_statistics(model, images)
    assert_same(plain, collect_statistics(model, images, stop_at=0.0, stop_period=1))
    assert (plain.num_images, plain.stop_at, plain.reached) == (10, 0.0, None)


def test_every_check_is_logged(
    model: nn.Module, images: list[list[dict]], errors: dict[int, float], caplog
) -> None:
    with caplog.at_level(logging.INFO):
        collect_statistics(model, images, stop_at=1e-9, stop_period=4)
    for look, count in enumerate((4, 8), start=1):
        assert f"Check {look}, {count} images: standard error of calibrated" in caplog.text
        assert f"{errors[count]:.4f}, the pass ends at 1e-09" in caplog.text
    assert "not reached with all images" in caplog.text


def test_batches_of_several_images_stop_after_the_batch_that_is_due(
    model: nn.Module, images: list[list[dict]]
) -> None:
    batches = [a + b for a, b in zip(images[::2], images[1::2], strict=True)]
    found = collect_statistics(model, batches, stop_at=1e9, stop_period=3)
    assert found.num_images == 4


def options(stop_at: float, period: int) -> list[str]:
    prefix = "MODEL.LOGN.COLLECT"
    return [f"{prefix}.STOP_AT", str(stop_at), f"{prefix}.STOP_PERIOD", str(period)]


def stopping_config(stop_at: float, period: int, checkpoint_period: int = 2):
    cfg = small_config(CASCADE, MODEL__LOGN__COLLECT__CHECKPOINT_PERIOD=checkpoint_period)
    cfg.merge_from_list(options(stop_at, period))
    return cfg


def test_two_processes_stop_where_one_does(
    model: nn.Module, image_folder: Path, errors: dict[int, float], tmp_path: Path
) -> None:
    """An odd period: at a look, one process has an image more than the other."""
    tolerance = (errors[3] + min(errors[6], errors[3])) / 2
    output = tmp_path / "two.safetensors"
    numbers = (2, 0, *options(tolerance, 3))
    processes = [start_process(image_folder, output, rank, *numbers) for rank in range(2)]
    one = collect_from_config(stopping_config(tolerance, 3), model, tmp_path / "one.safetensors")
    for process in processes:
        assert process.wait() == 0, process.output
    assert one.num_images == first_below(errors, tolerance, 3) < 10 and one.reached
    for path in (output, Path(f"{output}.rank0"), Path(f"{output}.rank1")):
        assert_same(LogitStatistics.load(path), one)


class Processes:
    """Stand-in for process `rank` of `size`; each call of all_gather is noted."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, rank: int, size: int, others) -> None:
        comm = "detectron2.utils.comm"
        monkeypatch.setattr(f"{comm}.get_rank", lambda: rank)
        monkeypatch.setattr(f"{comm}.get_world_size", lambda: size)
        monkeypatch.setattr(f"{comm}.all_gather", lambda own: [own, *others(own)])


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_checks_cover_the_first_positions_for_any_number_of_processes(monkeypatch, size) -> None:
    for period, look in ((4, 1), (4, 2), (1, 3), (7, 1)):
        seen = []
        for rank in range(size):
            Processes(monkeypatch, rank, size, lambda own: [])
            due = StoppingLoader([], None, 1.0, period)._due(look)
            seen += [rank + j * size for j in range(due)]
        assert sorted(seen) == list(range(look * period))


def test_a_process_resumes_after_the_last_check_of_any_process(monkeypatch) -> None:
    """Partial files are of different ages: the others were past look 5 already."""
    collector = LogitStatisticsCollector()
    collector.num_images = 3
    loader = StoppingLoader([], collector, 1.0, 4)
    Processes(monkeypatch, 0, 2, lambda own: [])
    assert loader._first_look() == 2  # 3 of its images lie between the looks at 2 and 4
    Processes(monkeypatch, 0, 2, lambda own: [6])
    assert loader._first_look() == 6


class Interruption(Exception):
    pass


@pytest.mark.parametrize("after", [3, 4, 5])
def test_stopped_and_resumed_equals_stopped(
    model: nn.Module, errors: dict[int, float], tmp_path: Path, monkeypatch, after: int
) -> None:
    """Looks at 4 and 8, a partial file each two images; killed before, at and after a look."""
    tolerance = (errors[4] + min(errors[8], errors[4])) / 2
    cfg, output = stopping_config(tolerance, 4), tmp_path / "x.safetensors"
    whole = collect_from_config(cfg, model, tmp_path / "whole.safetensors")
    assert whole.num_images == 8 and whole.reached
    process = LogitStatisticsCollector.process

    def process_and_stop(self: LogitStatisticsCollector, *args: object) -> None:
        process(self, *args)
        if self.num_images == after:
            raise Interruption

    with monkeypatch.context() as patch, pytest.raises(Interruption):
        patch.setattr(LogitStatisticsCollector, "process", process_and_stop)
        collect_from_config(cfg, model, output)
    assert list(tmp_path.glob("*partial*"))
    assert_same(collect_from_config(cfg, model, output, resume=True), whole)
    assert_same(LogitStatistics.load(output), whole)


def test_another_tolerance_does_not_resume(
    model: nn.Module, tmp_path: Path, monkeypatch, caplog
) -> None:
    output, process = tmp_path / "x.safetensors", LogitStatisticsCollector.process

    def process_and_stop(self: LogitStatisticsCollector, *args: object) -> None:
        process(self, *args)
        if self.num_images == 6:
            raise Interruption

    with monkeypatch.context() as patch, pytest.raises(Interruption):
        patch.setattr(LogitStatisticsCollector, "process", process_and_stop)
        collect_from_config(stopping_config(1e-9, 2), model, output)
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        found = collect_from_config(stopping_config(1e9, 2), model, output, resume=True)
    assert "starts from the beginning" in caplog.text
    assert found.num_images == 2


def test_loaders_in_the_data_sets_order_are_refused(model: nn.Module) -> None:
    cfg = small_config(CASCADE)
    ordered = [
        build_evaluation_loader(cfg, TRAIN),
        build_detection_test_loader(cfg, TRAIN, mapper=statistics_mapper(cfg)),
    ]
    for loader in ordered:
        with pytest.raises(ValueError, match="in the data set's order"):
            collect_statistics(model, loader, population="proposals", stop_at=0.1)
        assert collect_statistics(model, loader, population="proposals").num_images == 10


@pytest.mark.parametrize(
    "settings",
    [
        {"stop_at": -0.1},
        {"stop_at": 0.1, "estimator": "ema"},
        {"stop_at": 0.1, "population": "positives"},
    ],
)
def test_impossible_aims_are_errors(model: nn.Module, images: list, settings: dict) -> None:
    with pytest.raises(ValueError, match="stop_at is"):
        collect_statistics(model, images, **settings)


# Shards: parts of one pass, gathered by jobs that know nothing of each other


def test_merged_shards_equal_one_job(
    model: nn.Module, images: list[list[dict]], tmp_path: Path
) -> None:
    for stop_at in (0.0, 1e-9):  # the second is never reached, by a shard or by both
        whole = collect_statistics(model, images, stop_at=stop_at)
        paths = [tmp_path / f"{stop_at}-{index}.safetensors" for index in range(2)]
        for path, part in zip(paths, (images[:3], images[3:]), strict=True):
            collect_statistics(model, part, stop_at=stop_at).save(path)
        one, other = map(LogitStatistics.load, paths)
        assert_same(one.merge(other), whole)
        assert_same(other.merge(one), whole)


def test_merged_shards_may_reach_a_target_that_none_reaches_alone(
    model: nn.Module, images: list[list[dict]], errors: dict[int, float]
) -> None:
    parts = [images[:5], images[5:]]
    alone = [collect_statistics(model, part, stop_at=1.0).sampling_error() for part in parts]
    assert errors[10] < min(alone)
    tolerance = (errors[10] + min(alone)) / 2
    one, other = (
        collect_statistics(model, part, stop_at=tolerance, stop_period=100) for part in parts
    )
    assert (one.reached, other.reached, one.merge(other).reached) == (False, False, True)


def test_shards_with_different_aims_are_not_merged(
    model: nn.Module, images: list[list[dict]]
) -> None:
    """One of them may have ended early: its images would count too little."""
    one = collect_statistics(model, images[:3])
    other = collect_statistics(model, images[3:], stop_at=0.5)
    with pytest.raises(StatisticsError, match="different stop_at"):
        one.merge(other)
