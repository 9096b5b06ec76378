"""Check that an instance's mask covers a pixel and does not reach beyond the image."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from mask_former.structures import Size

from ..formats.coco_instances import decode_segmentation

__all__ = ["instance_area"]

TOLERANCE = 1.0
"""Number of pixels by which rounding may move a polygon beyond the image."""


def instance_area(annotation: dict[str, Any], size: Size, where: str) -> tuple[int, str | None]:
    """Count the pixels that an instance covers.

    Args:
        annotation: a COCO annotation with ``segmentation``; see ``decode_segmentation``.
        size: height and width of the image in pixels.
        where: file and annotation, for the messages.

    Returns:
        The number of pixels, and a message if a polygon reaches beyond the image, else None.

    Raises:
        ValueError: if the mask is missing, malformed, empty, or of another size than the image.
    """
    segmentation = annotation.get("segmentation")
    area = int(decode_segmentation(segmentation, size, where).sum())
    outside = None if isinstance(segmentation, Mapping) else _outside(segmentation, size, where)
    if area == 0:
        height, width = size
        raise ValueError(
            f"{where} covers no pixel of the {width}×{height} image (width×height)"
            f"{': it lies outside' if outside else ''}. Remove it, or correct its coordinates (are "
            "they in pixels of this image?)."
        )
    return area, outside


def _outside(polygons: Any, size: Size, where: str) -> str | None:
    points = np.concatenate([np.asarray(p, dtype=np.float64).reshape(-1, 2) for p in polygons])
    if not np.isfinite(points).all():
        raise ValueError(f"{where} has a coordinate that is not a number. Remove its polygon.")
    (left, top), (right, bottom) = points.min(0), points.max(0)
    height, width = size
    beyond = max(-left, -top, right - width, bottom - height)
    if beyond <= TOLERANCE:
        return None
    return (
        f"{where} reaches {beyond:.0f} pixels beyond the {width}×{height} image (width×height): "
        f"x {left:.0f}..{right:.0f}, y {top:.0f}..{bottom:.0f}; the part outside is cut off. Was "
        "the image resized after it was annotated?"
    )
