"""Drawn images, and their masks and boxes."""

import dataclasses

import cv2
import numpy as np
import pytest
from pycocotools import mask as mask_util

from logn_d2.glyphs.drawing import draw_image, outline
from logn_d2.glyphs.plan import ImagePlan, image_generator, plan_split
from logn_d2.glyphs.sizes import SIZES
from logn_d2.glyphs.vocabulary import select_vocabulary

DEMO = SIZES["demo"]
# Flat and sharp: every pixel that is not background belongs to the object.
PLAIN = dataclasses.replace(
    DEMO, background=0.0, blur=0.0, noise=0.0, distractors=(0, 0), occlusion_rate=0.0, contrast=90.0
)


@pytest.fixture(scope="module")
def characters():
    return select_vocabulary(DEMO.num_classes, DEMO.similarity)


def rasterize(polygons, px):
    rle = mask_util.merge(mask_util.frPyObjects(polygons, px, px))
    return mask_util.decode(rle).astype(bool)


def fill_holes(mask):
    """Everything that the background cannot reach from the border."""
    padded = np.pad(mask.astype(np.uint8), 1)
    cv2.floodFill(padded, None, (0, 0), 2)
    return (padded != 2)[1:-1, 1:-1]


def iou(a, b):
    return (a & b).sum() / max((a | b).sum(), 1)


def test_polygons_match_the_visible_ink(characters):
    overlaps = []
    for plan in plan_split(DEMO, 0, "train")[:60]:
        _, objects = draw_image(plan, characters, DEMO, image_generator(0, "train", plan.index))
        for drawn in objects:
            mask = fill_holes(drawn.visible > drawn.visible.max() / 2)
            overlaps.append(iou(rasterize(drawn.polygons, DEMO.image_px), mask))
    # Strokes are two to five pixels wide: a quarter of a pixel on either side is some percent.
    assert np.median(overlaps) > 0.93
    assert np.quantile(overlaps, 0.02) > 0.75


def test_masks_cover_the_pixels_that_were_painted(characters):
    for index in range(40):
        plan = ImagePlan(index, ((index * 3, True),), (), ())
        pixels, (drawn,) = draw_image(plan, characters, PLAIN, image_generator(0, "val", index))
        background = np.median(pixels.reshape(-1, 3), axis=0)
        distance = np.abs(pixels - background).sum(axis=2)
        solid = distance > 0.5 * distance.max()
        mask = rasterize(drawn.polygons, PLAIN.image_px)
        near = cv2.dilate(mask.astype(np.uint8), np.ones((3, 3), np.uint8)).astype(bool)
        assert (solid & ~near).sum() <= 4  # a speck that the outline leaves out
        assert (distance[drawn.visible > 0.5] > 15).mean() > 0.95


def test_boxes_and_areas_are_those_of_the_polygons(characters):
    plan = plan_split(DEMO, 0, "train")[5]
    _, objects = draw_image(plan, characters, DEMO, image_generator(0, "train", 5))
    for drawn in objects:
        mask = rasterize(drawn.polygons, DEMO.image_px)
        rows, columns = np.nonzero(mask)
        left, top, width, height = drawn.bbox
        assert abs(left - columns.min()) <= 1 and abs(top - rows.min()) <= 1
        assert abs(left + width - columns.max() - 1) <= 1
        assert abs(top + height - rows.max() - 1) <= 1
        assert drawn.area == pytest.approx(mask.sum(), rel=0.15, abs=6)


def test_every_planned_object_is_drawn_and_stays_visible(characters):
    size = dataclasses.replace(DEMO, occlusion_rate=1.0, distractors=(6, 9))
    for plan in plan_split(size, 1, "train")[:40]:
        _, objects = draw_image(plan, characters, size, image_generator(1, "train", plan.index))
        assert [(o.class_index, o.annotated) for o in objects] == list(plan.objects)
        for drawn in objects:
            assert drawn.visible.sum() >= size.min_visible * drawn.full_area - 0.1
            assert drawn.visible_area == pytest.approx(float(drawn.visible.sum()), abs=0.1)
            assert drawn.polygons and all(len(p) >= 6 for p in drawn.polygons)
            points = np.concatenate([np.reshape(p, (-1, 2)) for p in drawn.polygons])
            assert points.min() >= 0 and points.max() <= size.image_px


def test_occlusion_takes_from_masks(characters):
    def share_visible(rate):
        size = dataclasses.replace(DEMO, occlusion_rate=rate, distractors=(0, 0))
        shares = []
        for plan in plan_split(size, 0, "val")[:30]:
            _, objects = draw_image(plan, characters, size, image_generator(0, "val", plan.index))
            shares += [o.visible.sum() / o.full_area for o in objects]
        return np.mean(shares)

    assert share_visible(1.0) < share_visible(0.0) - 0.05


def test_same_generator_draws_the_same_pixels(characters):
    plan = plan_split(DEMO, 0, "val")[7]
    first, second = (
        draw_image(plan, characters, DEMO, image_generator(0, "val", 7))[0] for _ in range(2)
    )
    assert (first == second).all() and first.dtype == np.uint8


def test_crowded_image_still_shows_everything(characters):
    size = dataclasses.replace(SIZES["tiny"], name="crowd", num_classes=150, similarity=0.8)
    plan = ImagePlan(0, tuple((c, True) for c in range(25)), (), ())
    _, objects = draw_image(plan, characters, size, image_generator(0, "train", 0))
    assert len(objects) == 25 and all(o.polygons for o in objects)


def test_outline_of_a_rectangle_is_the_rectangle():
    visible = np.zeros((40, 50), dtype=np.float32)
    visible[10:20, 5:35] = 1
    (polygon,) = outline(visible)
    points = np.reshape(polygon, (-1, 2))
    assert np.abs(points.min(axis=0) - [5, 10]).max() <= 0.25
    assert np.abs(points.max(axis=0) - [35, 20]).max() <= 0.25


def test_outline_keeps_parts_fills_holes_and_leaves_out_specks():
    visible = np.zeros((40, 40), dtype=np.float32)
    visible[5:15, 5:15], visible[8:12, 8:12] = 1, 0
    visible[25:35, 25:35] = 1
    visible[2, 38] = 1
    assert len(outline(visible)) == 2
    assert rasterize(outline(visible), 40)[10, 10]


def test_outline_reaches_the_border_and_not_beyond():
    (polygon,) = outline(np.ones((16, 16), dtype=np.float32))
    assert min(polygon) >= 0 and max(polygon) <= 16 and max(polygon) > 15.5


def test_outline_of_a_stroke_thinner_than_a_pixel_is_not_lost():
    visible = np.zeros((20, 20), dtype=np.float32)
    visible[4:16, 9] = 0.4
    assert outline(visible)
    assert outline(np.zeros((20, 20), dtype=np.float32)) == []
