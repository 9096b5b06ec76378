"""The objects of an image as polygons or masks, which augmentation transforms to masks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from detectron2.data import transforms as T
from detectron2.structures.masks import polygons_to_bitmask
from numpy.typing import NDArray

from mask_former.structures import Size

from .targets import InstanceMasks

__all__ = ["InstanceShapes", "Shape", "clip_polygon"]

Shape = NDArray[Any] | list[NDArray[Any]]
"""One object: a mask, H×W, uint8, 0 or 1; or polygons, each P×2 points (x, y) in pixels, float."""

_MIN_AREA = 1e-6
"""Square pixels; a smaller area is a rounding error of the clipping."""


@dataclass(frozen=True)
class InstanceShapes:
    """The ground truth of one image, as objects that may overlap.

    Polygons are transformed before masks are made of them, so that upsampled masks are smooth.
    """

    shapes: list[Shape]
    """N objects."""
    labels: NDArray[Any]
    """N, the class id of each object."""
    crowd: NDArray[Any]
    """H×W, uint8: 1 in crowds, which are regions whose objects are not annotated separately."""
    drop_outside: bool = False
    """Drop objects that lie outside the transformed image; an object that touches it, but covers no
    pixel centre, stays. False: keep all, with empty masks."""

    def transform(self, transforms: T.Transform) -> InstanceMasks:
        """Return the masks after a transform of the image."""
        crowd = transforms.apply_segmentation(self.crowd)
        masks = np.empty((len(self.shapes), *crowd.shape), dtype=np.uint8)
        keep = np.ones(len(masks), dtype=bool)
        for index, shape in enumerate(self.shapes):
            if isinstance(shape, np.ndarray):
                masks[index] = transforms.apply_segmentation(shape)
                area = 0.0
            else:
                points = (transforms.apply_coords(polygon.copy()) for polygon in shape)
                inside = [clip_polygon(polygon, crowd.shape) for polygon in points]
                corners = [polygon.ravel() for polygon in inside if len(polygon) > 2]
                masks[index] = polygons_to_bitmask(corners, *crowd.shape)
                area = max(map(_area, inside))
            keep[index] = not self.drop_outside or area > _MIN_AREA or masks[index].any()
        return InstanceMasks(masks[keep], self.labels[keep], crowd)


def clip_polygon(polygon: NDArray[Any], size: Size) -> NDArray[Any]:
    """Clip a polygon to an image (Sutherland and Hodgman, 1974).

    The sides of the image are clipped one after the other: points beyond a side are dropped, and a
    point is added where an edge crosses it. A polygon that leaves the image and returns to it stays
    one polygon, whose parts are joined along the side. For example, clipping the triangle
    (-1, 1), (1, 0), (1, 2) at the left side gives (0, 0.5), (1, 0), (1, 2), (0, 1.5).

    detectron2's clipping needs shapely, which is not among the dependencies.

    Args:
        polygon: P×2 points (x, y) in pixels.
        size: height and width of the image.

    Returns:
        The points of the clipped polygon in the same order; none if it lies outside.
    """
    height, width = size
    for axis, sign, bound in ((0, 1, 0), (0, -1, width), (1, 1, 0), (1, -1, height)):
        distance = sign * (polygon[:, axis] - bound)  # above 0 inside
        if (distance >= 0).all():
            continue
        next_distance = np.roll(distance, -1)
        crosses = (distance < 0) != (next_distance < 0)
        span = np.where(crosses, distance - next_distance, 1)
        crossing = polygon + (distance / span)[:, None] * (np.roll(polygon, -1, axis=0) - polygon)
        crossing[:, axis] = bound  # without rounding errors
        both = np.stack([polygon, crossing], axis=1)
        polygon = both[np.stack([distance >= 0, crosses], axis=1)]
    return polygon


def _area(polygon: NDArray[Any]) -> float:
    """Compute the area with the shoelace formula; parts of opposite orientation cancel out."""
    x, y = polygon.T
    return abs(float(x @ np.roll(y, -1) - y @ np.roll(x, -1))) / 2
