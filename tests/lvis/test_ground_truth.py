"""Ground truth as arrays: reading, caching, masks and mistakes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from logn_d2.lvis.ground_truth import LvisGroundTruth

from .lvis_reference import one_image, write_json


def test_a_json_is_parsed_once_until_it_changes(tmp_path: Path) -> None:
    json_file = write_json(tmp_path / "truth.json", one_image())
    truth = LvisGroundTruth.from_json(json_file)
    assert LvisGroundTruth.from_json(str(json_file)) is truth
    write_json(json_file, {**one_image(), "annotations": []})
    assert len(LvisGroundTruth.from_json(json_file)) == 0


def test_annotations_of_unknown_images_and_classes_are_left_out_with_a_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    dataset = one_image()
    first = dataset["annotations"][0]
    dataset["annotations"] += [
        {**first, "id": 2, "image_id": 99},
        {**first, "id": 3, "category_id": 9},
    ]
    assert len(LvisGroundTruth.from_dict(dataset)) == 1
    assert "2 of 3 annotations" in caplog.text and "(image 99, category 1)" in caplog.text


def test_polygons_and_run_lengths_of_any_form_are_the_same_mask() -> None:
    dataset = one_image()
    first = dataset["annotations"][0]
    polygon = [[10, 10, 30, 10, 30, 50, 10, 50]]
    first["segmentation"] = polygon
    masks = [LvisGroundTruth.from_dict(dataset).masks.to_dicts()[0]]
    first["segmentation"] = {**masks[0], "counts": masks[0]["counts"].decode()}
    masks.append(LvisGroundTruth.from_dict(dataset).masks.to_dicts()[0])
    columns = np.zeros((90, 90), dtype=int)
    columns[10:50, 10:30] = 1
    change = np.flatnonzero(np.diff(columns.T.ravel(), prepend=0, append=2))
    counts = np.diff(change, prepend=0).tolist()
    first["segmentation"] = {"size": [90, 90], "counts": counts}
    masks.append(LvisGroundTruth.from_dict(dataset).masks.to_dicts()[0])
    first["segmentation"] = [*polygon, polygon[0]]
    masks.append(LvisGroundTruth.from_dict(dataset).masks.to_dicts()[0])
    assert all(mask == masks[0] for mask in masks)


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        ([], "this data set lacks the lists images, annotations, categories"),
        ({"images": []}, "lacks the lists annotations, categories"),
        (
            {**one_image(), "images": one_image()["images"] * 2},
            r"images\[1\] has the id 7, which occurs more than once",
        ),
        (
            {**one_image(), "annotations": one_image()["annotations"] * 2},
            r"annotations\[1\] has the id 1, which occurs more than once",
        ),
        (
            {**one_image(), "images": [*one_image()["images"], {"id": 8}]},
            "neg_category_ids for 1 of 2 images",
        ),
    ],
)
def test_other_jsons_are_refused(dataset: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LvisGroundTruth.from_dict(dataset)


def test_missing_and_broken_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"absent\.json does not exist"):
        LvisGroundTruth.from_json(tmp_path / "absent.json")
    (tmp_path / "half.json").write_text('{"images": [')
    with pytest.raises(ValueError, match=r"half\.json is not a complete JSON file"):
        LvisGroundTruth.from_json(tmp_path / "half.json")
