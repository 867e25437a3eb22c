"""A data set is read once while it is kept, and as usual before and after."""

from __future__ import annotations

import gc
import json
import weakref

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

import logn_d2.data.registration as registration
from logn_d2.data import class_counts, records_kept, register_lvis_form, release_records
from logn_d2.data.kept import is_kept

CONTENT = {
    "images": [{"id": 1, "file_name": "a.png", "height": 4, "width": 4}],
    "annotations": [
        {"id": 1, "image_id": 1, "category_id": 3, "bbox": [0, 0, 2, 2], "area": 4, "iscrowd": 0}
    ],
    "categories": [{"id": 3, "name": "dot"}],
}


@pytest.fixture
def reads(monkeypatch):
    """Paths of the annotation files that are read."""
    paths, read = [], registration.read_annotations
    monkeypatch.setattr(
        registration, "read_annotations", lambda path: paths.append(str(path)) or read(path)
    )
    return paths


@pytest.fixture
def name(tmp_path, request):
    name = request.node.name
    (tmp_path / "a.png").touch()
    (tmp_path / "dots.json").write_text(json.dumps(CONTENT))
    register_lvis_form(name, tmp_path / "dots.json", tmp_path)
    return name


def test_inside_it_is_read_once_and_outside_each_time(name, reads):
    with records_kept([name]):
        assert is_kept(name)
        assert class_counts(name).instance_count.tolist() == [1]
        assert MetadataCatalog.get(name).thing_classes == ["dot"]
        assert DatasetCatalog.get(name) == DatasetCatalog.get(name)
    assert len(reads) == 1 and not is_kept(name)
    DatasetCatalog.get(name)
    DatasetCatalog.get(name)
    assert len(reads) == 3


def test_metadata_that_is_asked_for_first_comes_from_the_same_reading(name, reads):
    with records_kept([name]):
        assert MetadataCatalog.get(name).thing_classes == ["dot"]
        assert len(DatasetCatalog.get(name)) == 1
    assert len(reads) == 1


def test_lists_are_their_callers_own(name):
    with records_kept([name]):
        DatasetCatalog.get(name).clear()
        assert len(DatasetCatalog.get(name)) == 1


def test_the_catalogue_is_as_before_even_after_an_error(name):
    before = DatasetCatalog[name]
    with pytest.raises(RuntimeError), records_kept([name, "nobody"]):
        assert "nobody" not in DatasetCatalog.list()
        with records_kept([name]):  # nested: the outer one keeps
            pass
        assert is_kept(name)
        raise RuntimeError
    assert DatasetCatalog[name] is before


def test_released_records_are_read_again_and_stay_released(name, reads):
    before = DatasetCatalog[name]
    with records_kept([name]):
        DatasetCatalog.get(name)
        release_records([name, "nobody"])
        assert DatasetCatalog[name] is before
        DatasetCatalog.get(name)
    assert len(reads) == 2 and DatasetCatalog[name] is before


class Record(dict):
    """A record that can be referred to weakly."""


def test_released_records_leave_the_memory_before_the_context_ends(request):
    name = request.node.name
    DatasetCatalog.register(name, lambda: [Record()])
    with records_kept([name]):
        record = weakref.ref(DatasetCatalog.get(name)[0])
        assert record() is not None
        release_records([name])
        gc.collect()
        assert record() is None


def test_names_registered_meanwhile_stay(name, tmp_path):
    with records_kept([name]):
        register_lvis_form(name, tmp_path / "dots.json", tmp_path, replace=True)
        new = DatasetCatalog[name]
    assert DatasetCatalog[name] is new


def test_a_reading_that_fails_is_tried_again(name, tmp_path):
    (tmp_path / "a.png").unlink()
    with records_kept([name]):
        with pytest.raises(FileNotFoundError, match=r"a\.png"):
            DatasetCatalog.get(name)
        (tmp_path / "a.png").touch()
        assert len(DatasetCatalog.get(name)) == 1
