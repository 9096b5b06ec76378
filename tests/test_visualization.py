"""Every region has its colour and a name that can be read, and the rest stays as it was."""

from __future__ import annotations

import time
from collections import Counter

import numpy as np
import pytest
import torch
from detectron2.data import Metadata
from detectron2.structures import Boxes, Instances
from PIL import Image

from mask_former import labels
from mask_former.colors import instance_color, spread_color, text_color
from mask_former.visualization import (
    INSTANCE_THRESHOLD,
    Classes,
    Overlay,
    Region,
    confident_classes,
    draw,
    instance_overlay,
    overlay_of,
    panoptic_overlay,
    semantic_overlay,
)

CLASSES = Classes(["sky", "road", "car"], [(70, 130, 180), (128, 64, 128), (0, 0, 142)])


def gray(height: int, width: int) -> np.ndarray:
    return np.full((height, width, 3), 100, np.uint8)


def make_instances(masks, scores, classes) -> Instances:
    masks = torch.as_tensor(np.array(masks, bool))
    return Instances(
        tuple(masks.shape[1:]),
        pred_masks=masks,
        pred_boxes=Boxes(torch.zeros(len(masks), 4)),
        scores=torch.tensor(scores),
        pred_classes=torch.tensor(classes, dtype=torch.int64),
    )


def luminance(color) -> float:
    """WCAG 2's relative luminance."""
    total = 0.0
    for channel, weight in zip(color, (0.2126, 0.7152, 0.0722), strict=True):
        c = channel / 255
        total += weight * (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4)
    return total


# Colours


def test_text_can_be_read_on_every_colour():
    steps = [*range(0, 256, 15), 117, 118, 119]
    for background in np.stack(np.meshgrid(steps, steps, steps), -1).reshape(-1, 3).tolist():
        light, dark = sorted([luminance(background), luminance(text_color(background))])[::-1]
        assert (light + 0.05) / (dark + 0.05) >= 4.5, background


def test_the_first_instance_has_the_colour_of_its_class_and_the_others_have_other_ones():
    for color in [*CLASSES.colors, (0, 0, 0), (128, 128, 128), (255, 255, 255), (220, 20, 60)]:
        shades = [instance_color(color, i) for i in range(12)]
        assert shades[0] == color
        assert all(0 <= channel <= 255 for shade in shades for channel in shade)
        for i, one in enumerate(shades):
            for other in shades[:i]:
                assert np.abs(np.subtract(one, other)).max() >= 5, (color, one, other)


def test_colours_for_classes_without_one_differ():
    colors = [spread_color(i) for i in range(150)]
    assert len(set(colors)) == 150
    assert all(0 <= channel <= 255 for color in colors for channel in color)


# Classes


def test_names_and_colours_are_the_metadatas():
    metadata = Metadata(stuff_classes=CLASSES.names, stuff_colors=[list(c) for c in CLASSES.colors])
    assert Classes.from_metadata(metadata, 3) == CLASSES


def test_thing_classes_are_taken_where_only_they_fit():
    metadata = Metadata(stuff_classes=["things", "sky"], thing_classes=["a", "b", "c"])
    assert Classes.from_metadata(metadata, 3).names == ["a", "b", "c"]


@pytest.mark.parametrize("metadata", [Metadata(), Metadata(stuff_classes=["a", "b"])])
def test_without_names_for_every_class_they_are_numbered(metadata):
    classes = Classes.from_metadata(metadata, 4)
    assert classes.names == ["class 0", "class 1", "class 2", "class 3"]
    assert len(set(classes.colors)) == 4


# Overlays


def test_a_semantic_overlay_has_one_region_a_class_that_is_there():
    class_ids = np.array([[2, 2, 0], [0, -1, 2]])
    overlay = semantic_overlay(class_ids, CLASSES)
    assert overlay.regions == [Region("sky", (70, 130, 180)), Region("car", (0, 0, 142))]
    assert overlay.ids.tolist() == [[2, 2, 1], [1, 0, 2]]


@pytest.mark.parametrize("share", [0.0, 0.4, 0.6, 1.0])
def test_pixels_are_left_out_where_the_best_class_has_too_small_a_share(share):
    scores = torch.rand(3, 5, 7, generator=torch.Generator().manual_seed(1))
    scores[:, 4, 6] = 0  # no mask at all
    class_ids = confident_classes(scores, share)
    for y in range(5):
        for x in range(7):
            at = [float(scores[c, y, x]) for c in range(3)]
            best_share = max(at) / sum(at) if sum(at) else 0
            assert class_ids[y, x] == (at.index(max(at)) if best_share >= share else -1)


def test_a_panoptic_overlay_has_one_region_a_segment_and_things_carry_their_score():
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


def test_instances_below_the_score_are_not_painted_and_small_ones_lie_on_large_ones():
    masks = np.zeros((4, 4, 6), bool)
    masks[0, :, :] = True  # large and sure
    masks[1, :2, :2] = True  # small and less sure
    masks[2, :2, :2] = True  # the same pixels, less sure still
    masks[3, :, 5] = True  # not sure enough
    instances = make_instances(masks, [0.9, 0.7, 0.6, 0.4], [0, 2, 1, 2])
    overlay = instance_overlay(instances, CLASSES, 0.5)
    assert [region.label for region in overlay.regions] == ["sky 90%", "car 70%", "road 60%"]
    expected = np.ones((4, 6))
    expected[:2, :2] = 2
    assert overlay.ids.tolist() == expected.tolist()


def test_the_order_of_instances_does_not_matter():
    rng = np.random.default_rng(3)
    masks = rng.random((6, 5, 7)) < np.linspace(0.2, 0.8, 6)[:, None, None]
    scores, classes = [0.9, 0.8, 0.7, 0.6, 0.55, 0.51], [0, 1, 2, 0, 1, 2]
    one = instance_overlay(make_instances(masks, scores, classes), CLASSES, 0.0)
    order = rng.permutation(6)
    permuted = make_instances(masks[order], np.array(scores)[order], np.array(classes)[order])
    other = instance_overlay(permuted, CLASSES, 0.0)
    assert (one.ids == other.ids).all() and one.regions == other.regions


def test_no_instances_at_all_paint_nothing():
    instances = make_instances(np.zeros((0, 4, 6)), [], [])
    assert instance_overlay(instances, CLASSES, 0.5).regions == []


def test_the_threshold_goes_where_the_kind_of_result_wants_it():
    masks = np.ones((2, 3, 3), bool)
    results = {
        "instances": make_instances(masks, [0.8, INSTANCE_THRESHOLD - 0.1], [0, 1]),
        "sem_seg": torch.tensor([0.5, 0.3, 0.2]).view(3, 1, 1).expand(3, 3, 3),
        "panoptic_seg": (
            torch.ones(3, 3, dtype=torch.int32),
            [{"id": 1, "isthing": False, "category_id": 1, "score": 0.1}],
        ),
    }
    counts = {
        (kind, threshold): len(overlay_of(kind, results, CLASSES, threshold).regions)
        for kind in ("instance", "semantic", "panoptic")
        for threshold in (None, 0.0, 0.6, 0.9)
    }
    expected = {"instance": [1, 2, 1, 0], "semantic": [1, 1, 0, 0], "panoptic": [1, 1, 1, 1]}
    assert counts == {
        (kind, threshold): count
        for kind, row in expected.items()
        for threshold, count in zip((None, 0.0, 0.6, 0.9), row, strict=True)
    }


def test_a_result_that_the_model_does_not_give_is_named():
    with pytest.raises(ValueError, match=r"no panoptic result, only \['sem_seg'"):
        overlay_of("panoptic", {"sem_seg": torch.zeros(3, 2, 2)}, CLASSES)


# Drawing


def test_a_region_is_painted_and_what_is_in_none_is_left_as_it_was():
    image = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    ids = np.zeros((40, 60), np.int32)
    ids[10:13, 5:50] = 1  # too thin for a label
    before = image.copy()
    picture = draw(image, Overlay(ids, [Region("road", (128, 64, 128))]), opacity=0.5)
    assert (image == before).all()
    outlined = {(y, x) for y in (9, 12) for x in range(5, 50)} | {
        (y, x) for y in range(10, 13) for x in (4, 49)
    }
    for y in range(40):
        for x in range(60):
            if (y, x) in outlined:
                assert (picture[y, x] >= 150).all()  # white shines through
            elif ids[y, x]:
                expected = (image[y, x] + np.array([128, 64, 128])) / 2
                assert np.abs(picture[y, x] - expected).max() <= 1
            else:
                assert (picture[y, x] == image[y, x]).all()


def test_the_picture_is_enlarged_by_the_scale():
    ids = np.zeros((20, 30), np.int32)
    ids[:, 15:] = 1
    picture = draw(gray(20, 30), Overlay(ids, [Region("a", (255, 0, 0))]), scale=4)
    assert picture.shape == (80, 120, 3)
    assert (picture[10, 10] == 100).all() and (picture[70, 100] == (177, 50, 50)).all()


def test_image_and_result_of_different_sizes_are_refused():
    with pytest.raises(ValueError, match=r"image is \(20, 30\), the result \(20, 31\)"):
        draw(gray(20, 30), Overlay(np.zeros((20, 31), np.int32), []))


def drawn_boxes(monkeypatch, ids, regions):
    """The boxes of the labels that are drawn, by label."""
    boxes = []
    pen = type(labels.ImageDraw.Draw(Image.new("RGB", (1, 1))))
    original_box, original_text = pen.rounded_rectangle, pen.text
    texts = []

    def note_box(self, box, *args, **kwargs):
        boxes.append(box)
        original_box(self, box, *args, **kwargs)

    def note_text(self, xy, text, *args, **kwargs):
        texts.append(text)
        original_text(self, xy, text, *args, **kwargs)

    monkeypatch.setattr(pen, "rounded_rectangle", note_box)
    monkeypatch.setattr(pen, "text", note_text)
    draw(gray(*ids.shape), Overlay(ids, regions))
    return dict(zip(texts, boxes, strict=True))


def test_labels_lie_inside_the_picture_and_never_on_each_other(monkeypatch):
    rng = np.random.default_rng(0)
    for size in ((120, 400), (300, 300), (60, 60), (7, 300), (1, 1)):
        coarse = rng.integers(0, 9, (3, 4))
        rows = np.arange(size[0]) * 3 // size[0]
        columns = np.arange(size[1]) * 4 // size[1]
        ids = coarse[rows][:, columns].astype(np.int32)
        regions = [Region(f"a rather long name {i}", spread_color(i)) for i in range(8)]
        boxes = list(drawn_boxes(monkeypatch, ids, regions).values())
        assert boxes or size != (300, 300)
        for i, (left, top, right, bottom) in enumerate(boxes):
            assert left >= 0 and top >= 0 and right < size[1] and bottom < size[0]
            for other in boxes[:i]:
                apart = right <= other[0] or other[2] <= left
                assert apart or bottom <= other[1] or other[3] <= top


def test_a_label_lies_on_its_region_and_small_or_thin_regions_have_none(monkeypatch):
    ids = np.zeros((200, 300), np.int32)
    ids[20:120, 30:150] = 1
    ids[150:156, :] = 2  # thin
    ids[60:70, 250:262] = 3  # small
    regions = [Region(name, (0, 0, 142)) for name in ("car", "pole", "sign")]
    boxes = drawn_boxes(monkeypatch, ids, regions)
    assert list(boxes) == ["car"]
    left, top, right, bottom = boxes["car"]
    assert (ids[int(top) : int(bottom) + 1, int(left) : int(right) + 1] == 1).all()


def test_a_name_that_is_wider_than_the_picture_is_left_out(monkeypatch):
    regions = [Region("a name that is rather long", (0, 0, 142))]
    assert not drawn_boxes(monkeypatch, np.ones((300, 60), np.int32), regions)
    assert drawn_boxes(monkeypatch, np.ones((300, 300), np.int32), regions)


def test_a_label_goes_to_the_widest_part_of_a_region_in_parts(monkeypatch):
    ids = np.zeros((200, 300), np.int32)
    ids[10:40, 10:60] = ids[100:190, 150:290] = 1
    left, top, *_ = drawn_boxes(monkeypatch, ids, [Region("car", (0, 0, 142))])["car"]
    assert left > 150 and top > 100


def test_names_beyond_ascii_are_drawn():
    assert labels.font(12).getmask("ß").getbbox() != labels.font(12).getmask("\uffff").getbbox()


def test_the_same_result_is_always_drawn_the_same():
    ids = np.random.default_rng(0).integers(0, 4, (10, 12)).repeat(9, 0).repeat(9, 1)
    segments = [
        {"id": i, "isthing": True, "category_id": 2, "score": 0.5, "area": 0} for i in (1, 2, 3)
    ]
    pictures = [draw(gray(90, 108), panoptic_overlay(ids, segments, CLASSES)) for _ in range(2)]
    assert (pictures[0] == pictures[1]).all()
    assert len(Counter(map(tuple, pictures[0].reshape(-1, 3).tolist()))) > 4


def test_a_picture_of_480x360_is_drawn_well_below_a_second():
    ids = np.random.default_rng(0).integers(0, 60, (18, 24)).repeat(20, 0).repeat(20, 1)
    overlay = Overlay(
        ids.astype(np.int32), [Region(f"class {i}", spread_color(i)) for i in range(59)]
    )
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        draw(gray(360, 480), overlay)
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 0.5
