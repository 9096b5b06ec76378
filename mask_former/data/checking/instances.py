"""An instance's mask, checked: does it cover a pixel, and does it leave the image."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ..formats.coco_instances import decode_segmentation

__all__ = ["instance_area"]

TOLERANCE = 1.0
"""Pixels that a polygon may reach beyond the image: rounding does that."""


def instance_area(
    annotation: dict[str, Any], size: tuple[int, int], where: str
) -> tuple[int, str | None]:
    """The pixels that an instance covers.

    Args:
        annotation: COCO's, with `segmentation`: see `decode_segmentation`.
        size: height and width of the image in pixels.
        where: file and annotation, for the messages.

    Returns:
        the number of pixels, and, of a polygon that leaves the image, a message that says how far.

    Raises:
        ValueError: there is no mask, it is malformed or another image's, or it covers no pixel.
    """
    segmentation = annotation.get("segmentation")
    area = int(decode_segmentation(segmentation, size, where).sum())
    outside = None if isinstance(segmentation, Mapping) else _reach(segmentation, size, where)
    if area == 0:
        height, width = size
        raise ValueError(
            f"{where} covers no pixel of the {width}×{height} image (width×height)"
            f"{': it lies outside' if outside else ''}. Take it out, or mend its coordinates (are "
            "they in pixels of this image?)."
        )
    return area, outside


def _reach(polygons: Any, size: tuple[int, int], where: str) -> str | None:
    points = np.concatenate([np.asarray(p, dtype=np.float64).reshape(-1, 2) for p in polygons])
    if not np.isfinite(points).all():
        raise ValueError(f"{where} has a coordinate that is no number. Take its polygon out.")
    (left, top), (right, bottom) = points.min(0), points.max(0)
    height, width = size
    beyond = max(-left, -top, right - width, bottom - height)
    if beyond <= TOLERANCE:
        return None
    return (
        f"{where} reaches {beyond:.0f} pixels beyond the {width}×{height} image (width×height): "
        f"x {left:.0f}..{right:.0f}, y {top:.0f}..{bottom:.0f}; what is outside is cut off. Is the "
        "image of the size that was annotated?"
    )
