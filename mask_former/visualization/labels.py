"""Labels on an image, each in a box of its region's colour where the region is widest."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

from mask_former.utils.colors import Color, text_color

__all__ = ["Label", "draw_labels", "font", "outlines", "place_labels"]

_THUMBNAIL = 320
"""Longer side, in pixels, of the small map on which positions for labels are searched."""


def outlines(ids: NDArray[np.int32], width: int) -> NDArray[np.bool_]:
    """Mark the pixels (H×W) whose id differs from that ``width`` pixels to the right or below."""
    lines = np.zeros(ids.shape, bool)
    lines[:, :-width] |= ids[:, width:] != ids[:, :-width]
    lines[:-width] |= ids[width:] != ids[:-width]
    return lines


class _Position(NamedTuple):
    """Position where a region is widest; lengths in pixels, area in square pixels."""

    region: int
    x: float
    y: float
    radius: float  # of the largest circle inside
    area: float  # of the part that the circle lies in


def _positions(ids: NDArray[np.int32]) -> list[_Position]:
    """Find a position in each region that is not only an outline, large regions first."""
    step = max(1, max(ids.shape) // _THUMBNAIL)
    small = np.pad(ids[::step, ::step], 1)
    inside = ~outlines(small, 1) & (small > 0)
    distance = ndimage.distance_transform_edt(inside)
    parts, _ = ndimage.label(inside)
    areas = np.bincount(parts.ravel())
    present = np.unique(small[inside])
    peaks: Any = ndimage.maximum_position(distance, small, present) if len(present) else []
    positions = [
        _Position(
            region=int(region) - 1,
            x=(column - 0.5) * step,
            y=(row - 0.5) * step,
            radius=float(distance[row, column]) * step,
            area=float(areas[parts[row, column]]) * step**2,
        )
        for region, (row, column) in zip(present, peaks, strict=True)
    ]
    return sorted(positions, key=lambda position: -position.area)


class Label(NamedTuple):
    """Label and its box: left, top, right and bottom in pixels, inclusive."""

    text: str
    color: Color
    box: tuple[float, float, float, float]


def place_labels(
    ids: NDArray[np.int32], names: Sequence[tuple[str, Color]]
) -> tuple[list[Label], int]:
    """Place labels where they cover little of their region and no other label.

    Args:
        ids: H×W; id ``i`` has the name and colour ``names[i - 1]``, and 0 has none.
        names: Names, and the colours of their boxes.

    Returns:
        The labels of all regions with enough room, large regions first, and the height of their
        letters in pixels.
    """
    rows, columns = ids.shape
    face = font(max(11, round((rows * columns) ** 0.5 / 40)))
    height = sum(face.getmetrics()) + face.size / 4
    placed: list[Label] = []
    for position in _positions(ids):
        text, color = names[position.region]
        width = face.getlength(text) + face.size / 2
        hidden = min(width, 2 * position.radius) * min(height, 2 * position.radius)
        if 3 * position.radius < height or 2 * hidden > position.area:
            continue
        if width > columns or height > rows:
            continue
        x = min(max(position.x - width / 2, 0), columns - width)
        y = min(max(position.y - height / 2, 0), rows - height)
        box = (x, y, x + width - 1, y + height - 1)
        if not any(_overlap(box, other.box) for other in placed):
            placed.append(Label(text, color, box))
    return placed, int(face.size)


def draw_labels(
    pixels: NDArray[np.uint8], ids: NDArray[np.int32], names: Sequence[tuple[str, Color]]
) -> None:
    """Draw labels on an image, in place.

    Args:
        pixels: H×W×3, RGB.
        ids: See :func:`place_labels`.
        names: See :func:`place_labels`.
    """
    labels, size = place_labels(ids, names)
    face, margin = font(size), size / 4
    for text, color, box in labels:
        left, top = int(box[0]), int(box[1])
        window = pixels[top : int(box[3]) + 2, left : int(box[2]) + 2]
        patch = Image.fromarray(window)  # a copy; of the whole image, it would be slow
        pen = ImageDraw.Draw(patch)
        x, y = box[0] - left, box[1] - top
        pen.rounded_rectangle((x, y, box[2] - left, box[3] - top), margin, fill=color)
        pen.text((x + margin, y + margin / 2), text, text_color(color), face)
        window[:] = np.asarray(patch)


def _overlap(a: Sequence[float], b: Sequence[float]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


@lru_cache
def font(size: int) -> ImageFont.FreeTypeFont:
    """Load DejaVu Sans from matplotlib, which covers more than ASCII; ``size`` in pixels."""
    import matplotlib

    path = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
    return ImageFont.truetype(str(path), size)
