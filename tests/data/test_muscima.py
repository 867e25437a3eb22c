"""MUSCIMA++: pages drawn in the release's format, against the known content of the drawing."""

from __future__ import annotations

import hashlib
import json

import numpy as np
import pytest
from detectron2.data import MetadataCatalog
from PIL import Image
from pycocotools import mask as coco_mask

from logn_d2.annotations import check_annotations
from logn_d2.cli.main import main
from logn_d2.data import load_lvis_form, register_lvis_form
from logn_d2.data.muscima import VAL_WRITERS, convert_muscima, read_page
from logn_d2.errors import MissingFileError, UserError

DISC = np.hypot(*np.mgrid[-9.5:10, -9.5:10]) < 10  # a notehead, 20 px
BAR = np.ones((40, 4), dtype=bool)


def runs(mask):
    """The release's run lengths, one pixel at a time."""
    text, last, length = [], None, 0
    for value in [*mask.ravel().astype(int), None]:
        if value != last and length:
            text.append(f"{last}:{length}")
            length = 0
        last, length = value, length + 1
    return " ".join(text)


def node(index, name, left, top, mask, text=None):
    height, width = mask.shape
    return (
        f"<Node><Id>{index}</Id><ClassName>{name}</ClassName><Top>{top}</Top><Left>{left}</Left>"
        f"<Width>{width}</Width><Height>{height}</Height>"
        f"<Mask>{runs(mask) if text is None else text}</Mask><Outlinks>1 2</Outlinks></Node>"
    )


def write_page(folder, writer, nodes, page=1):
    name = f"CVC-MUSCIMA_W-{writer:02}_N-{page:02}_D-ideal"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.xml"
    text = f'<Nodes dataset="MUSCIMA-pp_2.0" document="{name}">{"".join(nodes)}</Nodes>'
    path.write_text(f'<?xml version="1.0" encoding="utf-8"?>\n{text}')
    return path


@pytest.fixture
def release(tmp_path):
    """Two writers: one tile of writer 1, two of writer 6, staff lines on both."""
    folder = tmp_path / "release" / "v2.0" / "data" / "annotations"
    line = np.ones((2, 700), dtype=bool)
    write_page(
        folder,
        1,
        [
            node(0, "noteheadFull", 100, 60, DISC),
            node(1, "noteheadFull", 200, 60, DISC),
            node(2, "stem", 118, 30, BAR),
            node(3, "staffLine", 20, 80, line),
        ],
    )
    write_page(
        folder,
        6,
        [
            node(0, "stem", 384 - 3, 100, BAR),  # three of its four columns on the first tile
            node(1, "noteheadFull", 500, 101, DISC),
            node(2, "staffLine", 20, 80, line),
            node(3, "gClef", 40, 30, np.ones((20, 10), dtype=bool), text="None"),
        ],
    )
    return tmp_path / "release"


@pytest.fixture
def converted(release, tmp_path):
    return convert_muscima(release, tmp_path / "out", val_writers=[6]), tmp_path / "out"


def on(content, file_name):
    """Class names and annotations of a tile."""
    names = {category["id"]: category["name"] for category in content["categories"]}
    (image,) = [each for each in content["images"] if each["file_name"] == file_name]
    found = [a for a in content["annotations"] if a["image_id"] == image["id"]]
    return [(names[a["category_id"]], a) for a in found]


def test_a_read_page_equals_the_drawn_one(release):
    (path, _) = sorted((release / "v2.0" / "data" / "annotations").glob("*.xml"))
    objects = read_page(path)
    assert [each.name for each in objects] == ["noteheadFull", "noteheadFull", "stem", "staffLine"]
    assert (objects[0].left, objects[0].top) == (100, 60)
    assert np.array_equal(objects[0].mask, DISC)


def test_boxes_and_masks_are_halved(converted):
    contents, _ = converted
    (notehead, *_) = on(contents["train"], "W-01_N-01_0_0.png")
    assert notehead[0] == "noteheadFull" and notehead[1]["bbox"] == [50, 30, 10, 10]
    # Pixel by pixel: at least two of the four are on.
    expected = [[DISC[2 * y : 2 * y + 2, 2 * x : 2 * x + 2].sum() >= 2 for x in range(10)]
                for y in range(10)]  # fmt: skip
    rle = notehead[1]["segmentation"]
    mask = coco_mask.decode({**rle, "counts": rle["counts"].encode()})
    assert np.array_equal(mask[30:40, 50:60], np.array(expected)) and mask.sum() == np.sum(expected)
    assert notehead[1]["area"] == np.sum(expected)


def test_the_paper_between_staff_lines_stays_white(tmp_path):
    """The release has masks of the paper too; painted, they would hide the page."""
    line, space = np.ones((2, 300), dtype=bool), np.ones((20, 300), dtype=bool)
    staff = [node(0, "staffLine", 0, 80, line), node(1, "staffSpace", 0, 82, space)]
    for writer in (1, 6):
        write_page(tmp_path, writer, [*staff, node(2, "noteheadFull", 100, 60, DISC)])
    convert_muscima(tmp_path, tmp_path / "out", val_writers=[6])
    tile = np.asarray(Image.open(tmp_path / "out" / "images" / "W-01_N-01_0_0.png"))
    assert (tile[40, :150] == 0).all() and (tile[41:51, :50] == 255).all()


def test_an_object_belongs_to_the_tile_that_shows_half_of_it(converted):
    contents, _ = converted
    assert [name for name, _ in on(contents["val"], "W-06_N-01_0_0.png")] == ["stem", "gClef"]
    assert [name for name, _ in on(contents["val"], "W-06_N-01_0_1.png")] == ["noteheadFull"]
    stem = on(contents["val"], "W-06_N-01_0_0.png")[0][1]
    assert stem["bbox"] == [190, 50, 2, 20]  # two of three columns


def test_a_mask_that_is_not_given_fills_its_box(converted):
    contents, _ = converted
    clef = on(contents["val"], "W-06_N-01_0_0.png")[1][1]
    assert clef["bbox"] == [20, 15, 5, 10] and clef["area"] == 50


def test_staves_are_painted_and_not_annotated(converted):
    contents, folder = converted
    assert {c["name"] for c in contents["train"]["categories"]} == {"gClef", "noteheadFull", "stem"}
    tile = np.array(Image.open(folder / "images" / "W-01_N-01_0_0.png"))
    assert tile.shape == (192, 192)
    assert (tile[40, 10:192] == 0).all() and (tile[41] == 255).all()
    assert tile[20, 60] == 0 and tile[20, 62] == 255 and tile[100, 100] == 255


def test_tiles_without_an_object_are_left_out(converted):
    _, folder = converted
    names = {path.name for path in (folder / "images").iterdir()}
    assert names == {f"W-{page}_N-01_0_{column}.png" for page, column in
                     (("01", 0), ("06", 0), ("06", 1))}  # fmt: skip


def test_both_files_tell_the_training_counts(converted):
    contents, folder = converted
    for split, content in contents.items():
        assert json.loads((folder / f"{split}.json").read_text()) == content
        counts = {c["name"]: (c["image_count"], c["instance_count"], c["frequency"])
                  for c in content["categories"]}  # fmt: skip
        assert counts == {
            "gClef": (0, 0, "r"),
            "noteheadFull": (1, 2, "r"),
            "stem": (1, 1, "r"),
        }


def test_the_product_reads_it(converted, request):
    contents, folder = converted
    for split, content in contents.items():
        check_annotations(content, split)
        name = f"{request.node.name}_{split}"
        register_lvis_form(name, folder / f"{split}.json", folder / "images")
        records = load_lvis_form(name)
        assert sum(len(record["annotations"]) for record in records) == len(content["annotations"])
        assert MetadataCatalog.get(name).class_groups == ("r", "r", "r")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0:3 1:5", "has 8 pixels, its box 20 x 20 = 400"),
        ("0:3 1", "not made of runs"),
        ("0:-3 1:403", "not made of runs"),
        ("spam", "not made of runs"),
    ],
)
def test_damaged_masks_are_named(tmp_path, text, message):
    path = write_page(tmp_path, 1, [node(7, "stem", 0, 0, DISC, text=text)])
    with pytest.raises(UserError, match=f"node 7.*{message}"):
        read_page(path)


def test_damaged_files_are_named(tmp_path):
    path = write_page(tmp_path, 1, [node(7, "", 0, 0, DISC)])
    with pytest.raises(UserError, match="node 7 has the class ''"):
        read_page(path)
    path = write_page(tmp_path, 1, [node(7, "stem", "x", 0, DISC)])
    with pytest.raises(UserError, match="node 7: a box of whole numbers"):
        read_page(path)
    path.write_text("<CropObjectList><CropObjects/></CropObjectList>")
    with pytest.raises(UserError, match="1.0 has <CropObject>"):
        read_page(path)
    path.write_text("<Nodes>")
    with pytest.raises(UserError, match="is not XML"):
        read_page(path)


def test_a_folder_without_the_release_is_refused(tmp_path):
    with pytest.raises(MissingFileError, match="CVC-MUSCIMA_W-01_N-10_D-ideal.xml"):
        convert_muscima(tmp_path, tmp_path / "out")


@pytest.mark.parametrize("writers", [[1, 6], [7]])
def test_splits_that_would_be_empty_are_refused(release, tmp_path, writers):
    with pytest.raises(UserError, match=r"the release has \[1, 6\]"):
        convert_muscima(release, tmp_path / "out", val_writers=writers)
    assert not (tmp_path / "out").exists()


def test_validation_writers_are_a_third_of_fifty():
    assert len(set(VAL_WRITERS)) == 16 and set(VAL_WRITERS) <= set(range(1, 51))


def test_command_line_prints_sizes_and_the_checksums_of_what_it_wrote(release, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["data", "muscima", str(release), "--output", str(out), "--val-writers", "6"]) == 0
    train, val = (
        hashlib.sha256((out / f).read_bytes()).hexdigest()[:8] for f in ("train.json", "val.json")
    )
    assert capsys.readouterr().out.splitlines() == [
        f"train: 1 tiles, 3 objects, 3 classes (3 / 0 / 0 r / c / f), SHA-256 {train}",
        f"val: 2 tiles, 3 objects, 3 classes (3 / 0 / 0 r / c / f), SHA-256 {val}",
    ]
