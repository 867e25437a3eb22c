"""Shards: a pass resumes only from its own complete shards."""

from __future__ import annotations

import json
import logging
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from detectron2.utils import comm

from logn_d2.passes.shards import (
    ShardFolder,
    ShardKind,
    find_shards,
    read_npz,
    refuse_others,
    write_npz,
)

KIND = ShardKind(
    *("thing", ".npz", partial(read_npz, what="thing"), "thing.json", "a thing"),
    command="make thing",
)
WITHOUT_MANIFEST = ShardKind("part", ".npz", partial(read_npz, what="part"))


@pytest.fixture(autouse=True)
def _logs_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging.getLogger("logn_d2"), "propagate", True)


def write(shards: ShardFolder, *batches: int, replace: bool = False) -> ShardFolder:
    """Writes shards of these numbers of batches, each with the batches that it stands for."""
    for number in batches:
        first = 0 if replace else shards.num_batches
        held = np.arange(first, shards.num_batches + number)
        shards.write(number, partial(write_npz, arrays={"held": held}), replace=replace)
    return shards


def held(shards: ShardFolder) -> list[int]:
    return [int(each) for path in shards.paths for each in read_npz(path)["held"]]


@pytest.mark.parametrize("kind", [KIND, WITHOUT_MANIFEST])
def test_a_pass_resumes_after_its_last_shard(tmp_path: Path, kind: ShardKind) -> None:
    write(ShardFolder(tmp_path, kind, "a"), 3, 1)
    again = ShardFolder(tmp_path, kind, "a", resume=True)
    assert again.num_batches == 4 and held(again) == [0, 1, 2, 3]
    write(again, 2)
    assert held(ShardFolder(tmp_path, kind, "a", resume=True)) == list(range(6))
    assert ShardFolder(tmp_path, kind, "a").num_batches == 0
    assert not list(tmp_path.glob("*.npz"))


def test_what_does_not_follow_is_removed(tmp_path: Path) -> None:
    first, second, _ = write(ShardFolder(tmp_path, KIND, "a"), 2, 2, 2).paths
    assert ShardFolder(tmp_path, KIND, "a", resume=True, end=5).num_batches == 4
    second.unlink()
    assert ShardFolder(tmp_path, KIND, "a", resume=True).paths == [first]
    assert list(tmp_path.glob("*.npz")) == [first]


def test_a_shard_may_replace_those_before(tmp_path: Path) -> None:
    old = write(ShardFolder(tmp_path, KIND, "a"), 2, replace=True).paths[0]
    content = old.read_bytes()
    shards = write(ShardFolder(tmp_path, KIND, "a", resume=True), 3, replace=True)
    assert shards.num_batches == 5 and list(tmp_path.glob("*.npz")) == shards.paths
    old.write_bytes(content)  # killed before the old one was removed
    again = ShardFolder(tmp_path, KIND, "a", resume=True)
    assert held(again) == [0, 1, 2, 3, 4] and list(tmp_path.glob("*.npz")) == again.paths


def test_the_shards_before_stay_until_the_one_that_replaces_them_is_whole(tmp_path: Path) -> None:
    def disk_is_full(path: Path) -> None:
        raise OSError("No space left on device")

    shards = write(ShardFolder(tmp_path, KIND, "a"), 2, replace=True)
    with pytest.raises(OSError, match="No space left"):
        shards.write(1, disk_is_full, replace=True)
    assert held(ShardFolder(tmp_path, KIND, "a", resume=True)) == [0, 1]


def test_other_passes_stay_until_there_is_something_new(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write(ShardFolder(tmp_path, KIND, "a"), 1)
    other = ShardFolder(tmp_path, KIND, "b", resume=True)
    assert other.num_batches == 0 and "The thing starts from the beginning" in caplog.text
    assert ShardFolder(tmp_path, KIND, "a", resume=True).num_batches == 1
    write(other, 1)
    assert [path.name[:2] for path in tmp_path.glob("*.npz")] == ["b-"]


def test_processes_keep_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(ShardFolder(tmp_path, KIND, "a"), 1)
    monkeypatch.setattr(comm, "get_world_size", lambda: 2)
    shards = []
    for rank in range(2):
        monkeypatch.setattr(comm, "get_rank", lambda rank=rank: rank)
        shards.append(write(ShardFolder(tmp_path, KIND, "a", resume=True), 1 + rank))
    assert [each.num_batches for each in shards] == [1, 2]
    monkeypatch.setattr(comm, "get_rank", lambda: 0)
    write(shards[0], 1)
    assert len(list(tmp_path.glob("*of2*.npz"))) == 3 and not list(tmp_path.glob("*of1*"))
    monkeypatch.setattr(comm, "gather", lambda mine: [mine, [shards[1].paths[0].name]])
    shards[0].finish()
    assert find_shards(tmp_path, KIND)[1:] == ([*shards[0].paths, *shards[1].paths], True)


def test_files_of_others_are_no_shards(tmp_path: Path) -> None:
    """Brackets in a prefix are no pattern; half-written files go, others' files stay."""
    names = ["mine.npz", "[x]-b-0of1.npz", "b-0of1-0-1.npz", "[x].b-0of1-0000000-0000001.zip"]
    half = ".[x].a-0of1-0000000-0000001.npz.0123abcd.tmp"
    for name in [*names, half]:
        (tmp_path / name).write_text("precious")
    shards = write(ShardFolder(tmp_path, WITHOUT_MANIFEST, "a", prefix="[x]."), 1)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        [*names, shards.paths[0].name]
    )
    shards.clear()
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names)


@pytest.mark.parametrize("names", [["a-0of1-00000", "a-0of1-00001"], ["a-0of1"]])
def test_names_of_earlier_versions_are_resumed(tmp_path: Path, names: list[str]) -> None:
    for name in names:
        write_npz(tmp_path / f"{name}.npz", {"batches": np.int64(2), "held": np.arange(2)})
    shards = ShardFolder(tmp_path, KIND, "a", resume=True)
    assert shards.num_batches == 2 * len(names) and held(shards) == [0, 1] * len(names)


def test_a_damaged_shard_is_named(tmp_path: Path) -> None:
    (path,) = write(ShardFolder(tmp_path, KIND, "a"), 1).paths
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(ValueError, match=f"{path.name}' is not a complete file of the thing"):
        ShardFolder(tmp_path, KIND, "a", resume=True)


def test_an_incomplete_folder_names_the_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no thing in .*make thing"):
        find_shards(tmp_path, KIND)
    shards = write(ShardFolder(tmp_path, KIND, "a"), 1, 1)
    assert find_shards(tmp_path, KIND)[1:] == (shards.paths, False)
    shards.finish()
    manifest, paths, finished = find_shards(tmp_path, KIND)
    assert (manifest["digest"], paths, finished) == ("a", shards.paths, True)
    paths[1].unlink()
    with pytest.raises(ValueError, match=f"1 of 2 files.*the first is {paths[1].name}"):
        find_shards(tmp_path, KIND)
    path = tmp_path / "thing.json"
    path.write_text(json.dumps({**manifest, "version": 2}))
    with pytest.raises(ValueError, match="format version 2.*up to 1. Update"):
        find_shards(tmp_path, KIND)
    path.write_text(json.dumps({**manifest, "digest": None}))
    with pytest.raises(ValueError, match="thing.json' is damaged"):
        find_shards(tmp_path, KIND)


def test_a_manifest_names_files_of_its_own_folder_alone(tmp_path: Path) -> None:
    folder = tmp_path / "thing"
    shards = write(ShardFolder(folder, KIND, "a"), 1)
    shards.finish()
    (name,) = json.loads((folder / "thing.json").read_text())["shards"]
    (tmp_path / name).write_text("of somebody else")
    manifest = json.loads((folder / "thing.json").read_text())
    (folder / "thing.json").write_text(json.dumps({**manifest, "shards": [f"../{name}"]}))
    assert find_shards(folder, KIND)[1] == shards.paths


def test_a_finished_result_is_not_replaced_unasked(tmp_path: Path) -> None:
    refuse_others(None, KIND, "a")
    refuse_others(tmp_path, KIND, "a")
    shards = write(ShardFolder(tmp_path, KIND, "a", header={"names": ["x", "y"]}), 1)
    refuse_others(tmp_path, KIND, "b")  # not finished
    shards.finish()
    refuse_others(tmp_path, KIND, "a")
    with pytest.raises(ValueError, match=r"finished thing .*\(x, y\).*--overwrite"):
        refuse_others(tmp_path, KIND, "b")
