"""Images without some classes: these classes are gone, and everything else stays."""

from __future__ import annotations

import copy
import json

import numpy as np
import pytest

from logn_d2.annotations import check_annotations
from logn_d2.data import images_without
from logn_d2.errors import UserError

from ..command import command
from ..lvis.lvis_reference import random_lvis


@pytest.mark.parametrize("seed", range(3))
def test_what_is_left_shows_none_of_the_classes_and_nothing_else_is_lost(seed):
    content = random_lvis(np.random.default_rng(seed), num_images=8, with_masks=False)
    before, name = copy.deepcopy(content), content["categories"][0]["name"]
    first = content["categories"][0]["id"]
    found = images_without(content, [name.upper()])
    assert content == before
    kept = {image["id"] for image in found["images"]}
    for image in content["images"]:
        mine = [a for a in content["annotations"] if a["image_id"] == image["id"]]
        assert (image["id"] in kept) == all(a["category_id"] != first for a in mine)
        left = [a for a in found["annotations"] if a["image_id"] == image["id"]]
        assert left == (mine if image["id"] in kept else [])
    assert found["categories"] == content["categories"]
    check_annotations(found, "it")


def small():
    return {
        "images": [{"id": 1, "file_name": "a.png"}, {"id": 2, "file_name": "b.png"}],
        "categories": [{"id": 3, "name": "cat"}, {"id": 4, "name": "dog"}],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 3, "bbox": [0, 0, 1, 1], "iscrowd": 1},
            {"id": 2, "image_id": 2, "category_id": 4, "bbox": [0, 0, 1, 1]},
        ],
    }


def test_mistakes():
    with pytest.raises(KeyError, match="1 of 2 classes are not in the file, the first is 'cow'"):
        images_without(small(), ["cat", "cow"])
    with pytest.raises(UserError, match="No class is named"):
        images_without(small(), [])
    with pytest.raises(UserError, match="All 2 images contain one of the 2 classes"):
        images_without(small(), ["cat", "dog"])


def test_the_command_writes_the_file_and_names_classes_that_are_not_there(tmp_path, capsys):
    tool = command("data")
    paths = [tmp_path / name for name in ("all.json", "known.json", "unknown.json")]
    paths[0].write_text(json.dumps(small()))
    known = {**small(), "annotations": [], "categories": [{"id": 1, "name": "Cat"}]}
    known["categories"].append({"id": 2, "name": "cow"})
    paths[1].write_text(json.dumps(known))
    given = ["without", str(paths[0]), "--output", str(paths[2])]
    assert tool.run(tool.parse_args([*given, "--classes-of", str(paths[1])])) == 0
    assert json.loads(paths[2].read_text()) == images_without(small(), ["cat"])
    output = capsys.readouterr().out
    assert "1 of 2 images show none of 1 classes, with 1 objects of other classes" in output
    assert "1 classes are not in" in output and "cow" in output
    with pytest.raises(SystemExit):
        tool.run(tool.parse_args(["without", "nothing.json", *given[2:], "--classes", "cat"]))
    assert "There is no file 'nothing.json'" in capsys.readouterr().err
