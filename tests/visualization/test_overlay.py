"""Every region has its colour and a readable name, and all other pixels are unchanged."""

from __future__ import annotations

import time
from collections import Counter

import numpy as np
import pytest

from mask_former.data.datasets.classes import Classes
from mask_former.utils.colors import spread_color
from mask_former.visualization import labels
from mask_former.visualization.overlay import (
    Overlay,
    Region,
    draw,
    mask_overlay,
    panoptic_overlay,
    semantic_overlay,
)

CLASSES = Classes(
    ["sky", "road", "car"], [(70, 130, 180), (128, 64, 128), (0, 0, 142)], [False, False, True]
)


def gray(height: int, width: int) -> np.ndarray:
    return np.full((height, width, 3), 100, np.uint8)


# Overlays


def test_a_semantic_overlay_has_one_region_for_each_class_in_the_map():
    class_ids = np.array([[2, 2, 0], [0, -1, 2]])
    overlay = semantic_overlay(class_ids, CLASSES)
    assert overlay.regions == [Region("sky", (70, 130, 180)), Region("car", (0, 0, 142))]
    assert overlay.ids.tolist() == [[2, 2, 1], [1, 0, 2]]


def test_a_panoptic_overlay_has_one_region_per_segment_and_scores_of_things():
    ids = np.array([[7, 7, 3], [3, 0, 9]], np.int32)
    segments = [
        {"id": 3, "isthing": True, "category_id": 2, "score": 0.914},
        {"id": 7, "isthing": False, "category_id": 0, "score": 0.99},
        {"id": 9, "isthing": True, "category_id": 2, "score": 0.5},
    ]
    overlay = panoptic_overlay(ids, segments, CLASSES)
    assert overlay.ids.tolist() == [[2, 2, 1], [1, 0, 3]]
    assert [region.label for region in overlay.regions] == ["car 91%", "sky", "car 50%"]
    assert overlay.regions[0].color == CLASSES.colors[2] != overlay.regions[2].color


def test_an_empty_panoptic_result_paints_nothing():
    overlay = panoptic_overlay(np.zeros((4, 6), np.int32), [], CLASSES)
    assert overlay.regions == [] and not overlay.ids.any()
    assert (draw(gray(4, 6), overlay) == gray(4, 6)).all()


def test_small_masks_cover_large_ones_and_the_first_of_equal_ones_is_on_top():
    masks = np.zeros((3, 4, 6), bool)
    masks[0] = True
    masks[1, :2, :2] = masks[2, :2, :2] = True
    overlay = mask_overlay(masks, [0, 2, 2], CLASSES, [0.9, 0.7, None])
    assert [region.label for region in overlay.regions] == ["sky 90%", "car 70%", "car"]
    assert overlay.class_ids == [0, 2, 2]
    expected = np.ones((4, 6))
    expected[:2, :2] = 2
    assert overlay.ids.tolist() == expected.tolist()


# Drawing


def test_regions_are_painted_and_all_other_pixels_unchanged():
    image = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    ids = np.zeros((40, 60), np.int32)
    ids[10:13, 5:50] = 1  # too thin for a label
    before = image.copy()
    drawing = draw(image, Overlay(ids, [Region("road", (128, 64, 128))]), opacity=0.5)
    assert (image == before).all()
    outlined = {(y, x) for y in (9, 12) for x in range(5, 50)} | {
        (y, x) for y in range(10, 13) for x in (4, 49)
    }
    for y in range(40):
        for x in range(60):
            if (y, x) in outlined:
                assert (drawing[y, x] >= 150).all()  # white shines through
            elif ids[y, x]:
                expected = (image[y, x] + np.array([128, 64, 128])) / 2
                assert np.abs(drawing[y, x] - expected).max() <= 1
            else:
                assert (drawing[y, x] == image[y, x]).all()


def test_the_image_is_upsampled_by_the_scale():
    ids = np.zeros((20, 30), np.int32)
    ids[:, 15:] = 1
    drawing = draw(gray(20, 30), Overlay(ids, [Region("a", (255, 0, 0))]), scale=4)
    assert drawing.shape == (80, 120, 3)
    assert (drawing[10, 10] == 100).all() and (drawing[70, 100] == (178, 50, 50)).all()


def test_image_and_result_of_different_sizes_are_refused():
    with pytest.raises(ValueError, match=r"image is \(20, 30\) .*result is \(20, 31\)"):
        draw(gray(20, 30), Overlay(np.zeros((20, 31), np.int32), []))


def boxes_of(ids, regions):
    """Return the boxes (left, top, right, bottom) of the drawn labels, by label."""
    placed, _ = labels.place_labels(ids, regions)
    return {label.text: label.box for label in placed}


def test_labels_are_inside_the_image_and_never_overlap():
    rng = np.random.default_rng(0)
    for size in ((120, 400), (300, 300), (60, 60), (7, 300), (1, 1)):
        coarse = rng.integers(0, 9, (3, 4))
        rows = np.arange(size[0]) * 3 // size[0]
        columns = np.arange(size[1]) * 4 // size[1]
        ids = coarse[rows][:, columns].astype(np.int32)
        regions = [Region(f"a rather long name {i}", spread_color(i)) for i in range(8)]
        boxes = list(boxes_of(ids, regions).values())
        assert boxes or size != (300, 300)
        for i, (left, top, right, bottom) in enumerate(boxes):
            assert left >= 0 and top >= 0 and right < size[1] and bottom < size[0]
            for other in boxes[:i]:
                apart = right <= other[0] or other[2] <= left
                assert apart or bottom <= other[1] or other[3] <= top


def test_a_label_is_inside_its_region_and_small_or_thin_regions_have_none():
    ids = np.zeros((200, 300), np.int32)
    ids[20:120, 30:150] = 1
    ids[150:156, :] = 2  # thin
    ids[60:70, 250:262] = 3  # small
    regions = [Region(name, (0, 0, 142)) for name in ("car", "pole", "sign")]
    boxes = boxes_of(ids, regions)
    assert list(boxes) == ["car"]
    left, top, right, bottom = boxes["car"]
    assert (ids[int(top) : int(bottom) + 1, int(left) : int(right) + 1] == 1).all()


def test_a_name_wider_than_the_image_is_left_out():
    regions = [Region("a name that is rather long", (0, 0, 142))]
    assert not boxes_of(np.ones((300, 60), np.int32), regions)
    assert boxes_of(np.ones((300, 300), np.int32), regions)


def test_the_label_of_a_disconnected_region_is_in_its_widest_part():
    ids = np.zeros((200, 300), np.int32)
    ids[10:40, 10:60] = ids[100:190, 150:290] = 1
    left, top, *_ = boxes_of(ids, [Region("car", (0, 0, 142))])["car"]
    assert left > 150 and top > 100


def test_names_with_non_ascii_characters_are_drawn():
    assert labels.font(12).getmask("ß").getbbox() != labels.font(12).getmask("\uffff").getbbox()


def test_drawing_is_deterministic():
    ids = np.random.default_rng(0).integers(0, 4, (10, 12)).repeat(9, 0).repeat(9, 1)
    segments = [
        {"id": i, "isthing": True, "category_id": 2, "score": 0.5, "area": 0} for i in (1, 2, 3)
    ]
    drawings = [draw(gray(90, 108), panoptic_overlay(ids, segments, CLASSES)) for _ in range(2)]
    assert (drawings[0] == drawings[1]).all()
    assert len(Counter(map(tuple, drawings[0].reshape(-1, 3).tolist()))) > 4


def test_labels_are_written_in_black_or_white_on_the_colour_of_their_region():
    ids = np.ones((120, 300), np.int32)
    for color, text in (((0, 0, 142), 255), ((240, 228, 66), 0)):
        region = Region("a name", color)
        drawing = draw(gray(120, 300), Overlay(ids, [region]))
        left, top, right, bottom = map(int, boxes_of(ids, [region])["a name"])
        box = drawing[top : bottom + 1, left : right + 1].reshape(-1, 3)
        assert (box == color).all(1).mean() > 0.5 and (box == text).all(1).any()


def large_scene(height=1500, width=2000, count=40):
    """Return an image and an overlay of wavy regions of 40 classes, partly unpainted."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:height, :width].astype(np.float32)
    coarse = rng.integers(0, count + 1, (12, 16))
    rows = np.clip((y + 60 * np.sin(x / 120)) * 12 / height, 0, 11).astype(np.intp)
    columns = np.clip((x + 60 * np.sin(y / 90)) * 16 / width, 0, 15).astype(np.intp)
    regions = [Region(f"class {i}", spread_color(i)) for i in range(count)]
    image = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    return image, Overlay(coarse[rows, columns].astype(np.int32), regions)


def plain_blend(image, overlay):
    """Blend without outlines and labels, in straightforward numpy."""
    colors = np.array([(0, 0, 0), *(region.color for region in overlay.regions)], np.float32)
    blended = (0.5 * image + 0.5 * colors[overlay.ids]).astype(np.uint8)
    blended[overlay.ids == 0] = image[overlay.ids == 0]
    return blended


def test_drawing_a_large_image_costs_less_than_blending_it_in_plain_numpy():
    """It takes about half. Measured interleaved and in CPU time, because other jobs may run."""
    image, overlay = large_scene()
    seconds: dict[object, list[float]] = {draw: [], plain_blend: []}
    for _ in range(3):
        for function, spent in seconds.items():
            start = time.process_time()
            function(image, overlay)
            spent.append(time.process_time() - start)
    assert min(seconds[draw]) < min(seconds[plain_blend])
