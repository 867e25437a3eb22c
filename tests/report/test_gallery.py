"""Which images are shown, and which objects count as found."""

from __future__ import annotations

import base64
import io

import numpy as np
from PIL import Image

from logn_d2.lvis.detections import Detections
from logn_d2.lvis.ground_truth import LvisGroundTruth
from logn_d2.report import Gallery, Results, make_gallery
from logn_d2.report.shown import matched, shown_detections

Pair = tuple[Detections, Detections]


def _read_image(image_id: int) -> np.ndarray:
    return np.full((64, 96, 3), image_id, dtype=np.uint8)


def test_as_many_detections_are_shown_as_there_are_objects(truth: LvisGroundTruth) -> None:
    apart = [[8, 8, 20, 24], [50, 20, 24, 24], [0, 40, 10, 10], [70, 0, 10, 10]]
    many = Detections([1] * 4 + [3], [0] * 5, [0.2, 0.8, 0.9, 0.3, 0.1], [*apart, apart[0]])
    shown = shown_detections(truth, many)
    assert shown.image_id.tolist() == [1, 1, 3] and shown.score.tolist() == [0.9, 0.8, 0.1]


def test_one_class_is_shown_for_one_place(truth: LvisGroundTruth) -> None:
    box = [[8, 8, 20, 24], [9, 8, 20, 24], [50, 20, 24, 24], [8, 8, 20, 24]]
    same = Detections([1, 1, 1, 2], [0, 5, 7, 0], [0.5, 0.6, 0.1, 0.4], box)
    shown = shown_detections(truth, same)
    assert list(zip(shown.image_id, shown.category, strict=True)) == [(1, 5), (1, 7), (2, 0)]


def test_found_needs_the_class_and_half_of_the_union(
    truth: LvisGroundTruth, detections: Pair
) -> None:
    found, hits = matched(truth, detections[0])
    assert found.tolist() == [True, False] + [True] * 10 and hits.all()
    other = Detections([1, 1], [3, 0], [0.9, 0.8], [[8, 8, 20, 24], [40, 8, 20, 24]])
    found, hits = matched(truth, other)
    assert not found.any() and not hits.any()


def test_gains_come_before_losses_with_counts_over_all_images(gallery: Gallery) -> None:
    assert [entry.image_id for entry in gallery.entries] == [1, 2]
    assert gallery.entries[0].gained and not gallery.entries[0].lost
    assert gallery.entries[1].lost and not gallery.entries[1].gained
    assert (gallery.gained, gallery.lost) == ((1, 1), (1, 1))
    assert (gallery.num_images, gallery.num_objects, gallery.num_rare) == (6, 12, 6)


def test_pictures_are_images_of_the_shape_of_the_original(gallery: Gallery) -> None:
    for entry in gallery.entries:
        head, _, content = entry.picture.partition(",")
        assert head == "data:image/jpeg;base64"
        picture = Image.open(io.BytesIO(base64.b64decode(content)))
        assert picture.size == (entry.width, entry.height) == (96, 64)
        assert entry.before != entry.after and len(entry.objects) == 2


def test_half_of_the_room_is_for_losses(truth: LvisGroundTruth, results: Results) -> None:
    box = truth.box
    everything = Detections(truth.image_ids[truth.image], truth.category, np.full(12, 0.5), box)
    rare_only = everything.take(truth.category > 0)
    mixed = everything.take((truth.category == 0) | (truth.image < 2))
    classes = results.classes
    both = make_gallery(truth, mixed, rare_only, _read_image, classes, max_images=2)
    assert [len(entry.gained) - len(entry.lost) for entry in both.entries] == [0, -1]
    gains = make_gallery(truth, mixed, everything, _read_image, classes, max_images=3)
    assert len(gains.entries) == 3 and not any(entry.lost for entry in gains.entries)
    losses = make_gallery(truth, everything, mixed, _read_image, classes, max_images=3)
    assert len(losses.entries) == 3 and not any(entry.gained for entry in losses.entries)


def test_no_detections_and_no_masks_are_fine(truth: LvisGroundTruth, results: Results) -> None:
    some = Detections([1], [0], [0.5], [[8, 8, 20, 24]])
    classes = results.classes
    gallery = make_gallery(truth, Detections.empty(), some, _read_image, classes)
    assert len(gallery.entries) == 1
    same = make_gallery(truth, some, some, _read_image, classes)
    assert same.entries == () and same.gained == same.lost == (0, 0)
