"""Image files that would stop a training are recognised by their headers and ends."""

import numpy as np
import pytest
from PIL import Image

from logn_d2.data import image_problem


@pytest.fixture(params=["jpg", "png"])
def record(request, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (32, 40, 3), dtype=np.uint8)
    path = tmp_path / f"a.{request.param}"
    Image.fromarray(pixels).save(path)
    return {"file_name": str(path), "height": 32, "width": 40}


def test_an_intact_file_has_no_problem(record):
    assert image_problem(record) is None


@pytest.mark.parametrize("kept", [0.0, 0.5, 0.98])
def test_a_file_that_ends_early_is_named(record, kept):
    with open(record["file_name"], "rb+") as file:
        file.truncate(int(kept * file.seek(0, 2)))
    assert record["file_name"] in image_problem(record)


def test_a_wrong_size_is_reported_with_both_sizes(record):
    problem = image_problem({**record, "width": 41})
    assert "has 40 x 32 pixels, its json says 41 x 32" in problem


def test_a_page_of_html_is_no_image(record):
    with open(record["file_name"], "w") as file:
        file.write("<html>404</html>")
    assert "is not a readable image" in image_problem(record)


def test_a_photograph_that_was_turned_has_the_size_that_it_is_shown_with(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    path = tmp_path / "turned.jpg"
    Image.new("RGB", (40, 32)).save(path, exif=exif)
    assert image_problem({"file_name": str(path), "height": 40, "width": 32}) is None


def test_a_missing_file_is_named():
    assert image_problem({"file_name": "nowhere.png"}) == "nowhere.png is missing"
