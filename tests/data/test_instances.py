"""Polygons are clipped to the image, and become masks after the transform."""

from __future__ import annotations

import numpy as np
import pytest
from detectron2.data import transforms as T
from pycocotools import mask as coco_mask

from mask_former.data.instances import InstanceShapes, clip_polygon

SIZE = HEIGHT, WIDTH = (8, 10)
NO_CROWD = np.zeros(SIZE, np.uint8)
NOTHING = T.NoOpTransform()


def is_inside(x, y, polygon):
    """Count the edges that cross the ray to the right of a point: an odd number means inside."""
    crossings = 0
    for (x0, y0), (x1, y1) in zip(polygon, np.roll(polygon, -1, axis=0), strict=True):
        if (y0 > y) != (y1 > y):
            crossings += x < x0 + (y - y0) / (y1 - y0) * (x1 - x0)
    return crossings % 2 == 1


def random_polygon(seed):
    """A polygon without intersections, convex or not, around a point near the image."""
    rng = np.random.default_rng(seed)
    angles = np.sort(rng.uniform(0, 2 * np.pi, rng.integers(3, 12)))
    radius = rng.uniform(1, 9, len(angles))
    centre = rng.uniform(-2, 12, 2)
    return centre + np.stack([radius * np.cos(angles), radius * np.sin(angles)], axis=1)


@pytest.mark.parametrize("seed", range(20))
def test_a_clipped_polygon_covers_the_points_of_the_image_that_the_polygon_covers(seed):
    polygon = random_polygon(seed)
    clipped = clip_polygon(polygon, SIZE)
    for y in np.linspace(-1.93, 9.9, 14):
        for x in np.linspace(-1.91, 11.9, 16):
            in_image = 0 < x < WIDTH and 0 < y < HEIGHT
            assert is_inside(x, y, clipped) == (in_image and is_inside(x, y, polygon))
    assert not len(clipped) or (clipped.min() >= 0 and (clipped.max(0) <= (WIDTH, HEIGHT)).all())


def test_a_polygon_inside_the_image_is_not_changed():
    polygon = np.array([[0.0, 0], [10, 0], [9.5, 8], [3, 2.25]])
    assert clip_polygon(polygon, SIZE) is polygon


def test_the_worked_example_of_the_docstring():
    clipped = clip_polygon(np.array([[-1.0, 1], [1, 0], [1, 2]]), SIZE)
    assert clipped.tolist() == [[0, 0.5], [1, 0], [1, 2], [0, 1.5]]


def square(left, top, side):
    return np.array(
        [[left, top], [left + side, top], [left + side, top + side], [left, top + side]]
    )


INSIDE = [square(2.0, 1.0, 4.0)]
OUTSIDE = [square(-5.0, 2.0, 3.0)]
AROUND_THE_CORNER = [np.array([[-2.0, 9], [-2, -2], [12, -2], [12, -1], [-1, -1], [-1, 9]])]
SLIVER = [square(9.95, 2.0, 5.0)]  # covers no pixel centre
TWO_PARTS = [square(-5.0, 2.0, 3.0), square(1.0, 1.0, 2.0)]
EMPTY_MASK = np.zeros(SIZE, np.uint8)
MASK = np.eye(*SIZE, dtype=np.uint8)


@pytest.mark.parametrize("drop_outside", [False, True])
def test_only_objects_outside_the_image_are_dropped_if_asked(drop_outside):
    shapes = [INSIDE, OUTSIDE, AROUND_THE_CORNER, SLIVER, TWO_PARTS, EMPTY_MASK, MASK]
    objects = InstanceShapes(shapes, np.arange(7), NO_CROWD, drop_outside)
    found = objects.transform(NOTHING)
    assert found.labels.tolist() == ([0, 3, 4, 6] if drop_outside else list(range(7)))
    areas = dict(zip(found.labels.tolist(), found.masks.sum((1, 2)).tolist(), strict=True))
    assert (areas[0], areas[3], areas[4], areas[6]) == (16, 0, 4, 8)


@pytest.mark.parametrize("seed", range(5))
def test_masks_are_those_of_transformed_polygons_and_transformed_masks(seed):
    """pycocotools clips polygons itself, but rounds the corners of clipped edges differently."""
    mask = (np.random.default_rng(seed).random(SIZE) < 0.5).astype(np.uint8)
    crowd = np.eye(*SIZE, dtype=np.uint8)
    transforms = T.TransformList(
        [T.HFlipTransform(WIDTH), T.ResizeTransform(*SIZE, 20, 23), T.CropTransform(3, 2, 15, 16)]
    )
    polygon = random_polygon(seed)
    objects = InstanceShapes([[polygon], mask], np.array([7, 5]), crowd)
    found = objects.transform(transforms)
    moved = transforms.apply_coords(polygon.copy()).ravel().tolist()
    expected = coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects([moved], 16, 15)))
    assert found.labels.tolist() == [7, 5]
    assert np.count_nonzero(found.masks[0] != expected) <= 3
    assert (found.masks[1] == transforms.apply_segmentation(mask)).all()
    assert (found.crowd == transforms.apply_segmentation(crowd)).all()
    assert (found.masks.shape, found.masks.dtype) == ((2, 16, 15), np.uint8)


def test_an_image_without_objects_has_no_mask():
    found = InstanceShapes([], np.zeros(0, np.int64), NO_CROWD).transform(NOTHING)
    assert found.masks.shape == (0, *SIZE) and found.labels.shape == (0,)


def test_polygons_are_not_modified():
    polygon = random_polygon(0)
    before = polygon.copy()
    InstanceShapes([[polygon]], np.array([0]), NO_CROWD).transform(T.HFlipTransform(WIDTH))
    assert (polygon == before).all()
