"""The files of a drawn set: deterministic, resumable, verified, complete or absent."""

import dataclasses
import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, DatasetMapper, MetadataCatalog
from detectron2.data.datasets.lvis import load_lvis_json

from logn_d2.glyphs import SIZES, draw_glyphs, register_glyphs, verify_glyphs
from logn_d2.glyphs.plan import SPLITS, class_image_counts

from ..processes import CONTEXT, PATIENCE


def sums(folder):
    return (folder / "SHA256SUMS").read_bytes()


def annotations(root, split, size="tiny"):
    path = root / "lt_glyphs" / size / "annotations" / f"lt_glyphs_{size}_{split}.json"
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.fixture
def tiny_copy(tiny_root, tmp_path):
    shutil.copytree(tiny_root, tmp_path / "copy")
    return tmp_path / "copy"


@pytest.fixture(scope="module")
def many_sums(many_size, tmp_path_factory):
    return sums(draw_glyphs(tmp_path_factory.mktemp("one"), many_size, num_workers=1))


def test_number_of_processes_does_not_change_a_byte(many_size, many_sums, tmp_path):
    assert sums(draw_glyphs(tmp_path, many_size, num_workers=3)) == many_sums


def test_tool_draws_the_same_bytes_in_another_interpreter(tiny_root, tmp_path):
    command = [sys.executable, "-m", "logn_d2", "data", "draw", "--size", "tiny"]
    command += ["--root", str(tmp_path)]
    environment = {**os.environ, "PYTHONHASHSEED": "4242"}
    subprocess.run(command, env=environment, check=True, capture_output=True)
    assert sums(tmp_path / "lt_glyphs/tiny") == sums(tiny_root / "lt_glyphs/tiny")


def test_two_names_of_a_character_are_two_categories(tmp_path):
    tiny = SIZES["tiny"]
    size = dataclasses.replace(tiny, name="two", names_per_character=2, train_images=20)
    draw_glyphs(tmp_path, size, num_workers=1)
    categories = annotations(tmp_path, "train", "two")["categories"]
    names = [category["name"] for category in categories]
    assert len(set(names)) == 12 and [f"{name}_2" for name in names[:6]] == names[6:]
    assert len({category["synset"] for category in categories}) == 12
    assert [c["def"] for c in categories[:6]] == [c["def"] for c in categories[6:]]


def test_sets_that_were_drawn_before_there_were_two_names_are_the_same_sets(tiny_root):
    settings = json.loads((tiny_root / "lt_glyphs" / "tiny" / "settings.json").read_text())
    assert "names_per_character" not in settings["size"]


def test_another_seed_draws_other_images(tiny_root, tmp_path):
    other = draw_glyphs(tmp_path, "tiny", seed=1, num_workers=1)
    assert not set(sums(other).splitlines()) & set(sums(tiny_root / "lt_glyphs/tiny").splitlines())


def test_killed_drawing_resumes_to_the_same_bytes(many_size, many_sums, tmp_path):
    # Not forked from this process: a fork that is killed while it holds tqdm's lock keeps it.
    process = CONTEXT.Process(target=draw_glyphs, args=(tmp_path, many_size, 0, 2))
    process.start()
    folder = tmp_path / "lt_glyphs" / "many"
    deadline = time.monotonic() + PATIENCE
    while not list(folder.glob(".parts/*.json")) and time.monotonic() < deadline:
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert not (folder / "SHA256SUMS").exists()
    kept = {p: p.stat().st_mtime_ns for p in folder.glob(".parts/*.json")}
    assert kept
    drawn_before = [json.loads(p.read_text())["checksums"] for p in kept]
    names = [name for part in drawn_before for name in part]
    times = {name: (folder / name).stat().st_mtime_ns for name in names}
    assert sums(draw_glyphs(tmp_path, many_size, num_workers=2)) == many_sums
    assert times == {name: (folder / name).stat().st_mtime_ns for name in names}
    assert not list(folder.glob("**/.*.tmp")) and not (folder / ".parts").exists()


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks for processes in /proc")
def test_processes_end_when_their_parent_is_killed(many_size, tmp_path):
    process = CONTEXT.Process(target=draw_glyphs, args=(tmp_path, many_size, 0, 2))
    process.start()
    children = []
    listing = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    deadline = time.monotonic() + PATIENCE
    while len(children) < 2 and time.monotonic() < deadline:
        children = [int(pid) for pid in listing.read_text().split()]
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert len(children) >= 2

    def running(pid):
        try:
            return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
        except (FileNotFoundError, ProcessLookupError):
            return False

    deadline = time.monotonic() + PATIENCE  # anew: to start them may have taken most of it
    while any(map(running, children)) and time.monotonic() < deadline:
        time.sleep(0.01)
    left = [pid for pid in children if running(pid)]
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert not left


def test_finished_set_is_used_again(tiny_copy):
    before = {p: p.stat().st_mtime_ns for p in tiny_copy.rglob("*.j*")}
    draw_glyphs(tiny_copy, "tiny")
    assert before == {p: p.stat().st_mtime_ns for p in tiny_copy.rglob("*.j*")}


@pytest.mark.parametrize("change", ["flip a byte", "remove"])
def test_checksums_find_a_changed_image(tiny_copy, change):
    folder = tiny_copy / "lt_glyphs" / "tiny"
    image = folder / "val" / "000000000003.jpg"
    content = bytearray(image.read_bytes())
    content[-10] ^= 1
    image.unlink() if change == "remove" else image.write_bytes(content)
    (problem,) = verify_glyphs(folder)
    assert problem.startswith("val/000000000003.jpg")
    with pytest.raises(ValueError, match=r"val/000000000003\.jpg.*overwrite=True"):
        draw_glyphs(tiny_copy, "tiny")
    draw_glyphs(tiny_copy, "tiny", overwrite=True)
    assert verify_glyphs(folder) == []


def test_unfinished_set_is_not_verified(tmp_path):
    with pytest.raises(FileNotFoundError, match="logn data draw"):
        verify_glyphs(tmp_path)


def test_other_settings_are_not_mixed_in(tiny_copy):
    before = sums(tiny_copy / "lt_glyphs" / "tiny")
    with pytest.raises(ValueError, match=r"seed=0, asked for seed=5.*--overwrite"):
        draw_glyphs(tiny_copy, "tiny", seed=5)
    assert sums(tiny_copy / "lt_glyphs" / "tiny") == before
    draw_glyphs(tiny_copy, "tiny", seed=5, overwrite=True)
    assert sums(tiny_copy / "lt_glyphs" / "tiny") != before


def test_full_disk_leaves_no_half_file_and_resumes(tiny_root, tmp_path, monkeypatch):
    write_bytes, written, whole = Path.write_bytes, [], []

    def write_to_a_full_disk(path, content):
        written.append(path)
        if len(written) > 30:
            write_bytes(path, content[: len(content) // 2])
            whole.extend(path.parent.glob("[0-9]*.jpg"))  # what a reader, or a kill, would see
            raise OSError(errno.ENOSPC, "No space left on device")
        return write_bytes(path, content)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", write_to_a_full_disk)
        with pytest.raises(OSError, match=r"No space left on device.*resumes") as caught:
            draw_glyphs(tmp_path, "tiny", num_workers=1)
    assert caught.value.errno == errno.ENOSPC
    folder = tmp_path / "lt_glyphs" / "tiny"
    complete = tiny_root / "lt_glyphs" / "tiny"
    assert len(whole) == len(list(folder.glob("train/*.jpg"))) == 29
    assert not list(folder.glob("**/.*.tmp"))
    for image in folder.glob("train/*.jpg"):
        assert image.read_bytes() == (complete / "train" / image.name).read_bytes()
    assert sums(draw_glyphs(tmp_path, "tiny", num_workers=1)) == sums(complete)


def test_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(OSError, match=r"can.t write into .*lt_glyphs"):
        draw_glyphs(tmp_path / "file", "tiny")


def test_negative_seed_is_refused(tmp_path):
    with pytest.raises(ValueError, match="seed=-1"):
        draw_glyphs(tmp_path, "tiny", seed=-1)


def test_counts_in_the_json_equal_a_recount_and_the_plan(tiny_root):
    train, val = (annotations(tiny_root, split) for split in SPLITS)
    assert train["categories"] == val["categories"]
    planned = class_image_counts(SIZES["tiny"], 0, "train")
    for category, images in zip(train["categories"], planned):
        own = [a for a in train["annotations"] if a["category_id"] == category["id"]]
        assert category["instance_count"] == len(own)
        assert category["image_count"] == len({a["image_id"] for a in own}) == images
        assert category["frequency"] == SIZES["tiny"].frequency_of(images)


@pytest.mark.parametrize("split", SPLITS)
def test_federated_lists_of_the_json_are_consistent(tiny_root, split):
    content = annotations(tiny_root, split)
    for image in content["images"]:
        shown = {a["category_id"] for a in content["annotations"] if a["image_id"] == image["id"]}
        assert shown and not shown & set(image["neg_category_ids"])
        assert set(image["not_exhaustive_category_ids"]) <= shown
    assert any(image["not_exhaustive_category_ids"] for image in content["images"])


def test_lvis_api_scores_perfect_detections_with_one(tiny_root, monkeypatch):
    from lvis import LVIS, LVISEval, LVISResults

    monkeypatch.setattr(np, "float", float, raising=False)  # removed from numpy, used by lvis
    truth = LVIS(str(tiny_root / "lt_glyphs/tiny/annotations/lt_glyphs_tiny_val.json"))
    detections = [
        {key: a[key] for key in ("image_id", "category_id", "bbox", "segmentation")} | {"score": 1}
        for a in annotations(tiny_root, "val")["annotations"]
    ]
    for kind in ("bbox", "segm"):
        found = [dict(d, bbox=list(d["bbox"])) for d in detections]
        if kind == "bbox":
            for detection in found:
                del detection["segmentation"]
        evaluation = LVISEval(truth, LVISResults(truth, found), kind)
        evaluation.run()
        for group in ("AP", "APr", "APc", "APf"):
            assert evaluation.results[group] == pytest.approx(1.0)


def test_detectron2s_own_lvis_loader_reads_the_same(tiny_root):
    register_glyphs(tiny_root)
    meta = MetadataCatalog.get("lt_glyphs_tiny_train")
    ours = DatasetCatalog.get("lt_glyphs_tiny_train")
    assert ours == load_lvis_json(meta.json_file, meta.image_root)


def test_detectron2_loads_every_image_with_masks(tiny_root):
    register_glyphs(tiny_root)
    cfg = get_cfg()
    cfg.MODEL.MASK_ON = True
    cfg.INPUT.MIN_SIZE_TRAIN = (96,)
    mapper = DatasetMapper(cfg, is_train=True)
    for split in SPLITS:
        for record in DatasetCatalog.get(f"lt_glyphs_tiny_{split}"):
            mapped = mapper(record)
            assert tuple(mapped["image"].shape) == (3, 96, 96)
            assert len(mapped["instances"]) == len(record["annotations"])


def test_names_move_with_the_root_and_tell_how_to_draw(tiny_root, tmp_path, monkeypatch):
    register_glyphs(tiny_root)
    assert len(DatasetCatalog.get("lt_glyphs_tiny_val")) == 16
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    assert register_glyphs()[-1] == "lt_glyphs_lvis_val"
    with pytest.raises(FileNotFoundError, match="logn data draw --size tiny --root"):
        DatasetCatalog.get("lt_glyphs_tiny_val")
