"""Names on a picture: each in the widest place of its region, in a box of the region's colour."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

from .colors import Color, text_color

__all__ = ["draw_labels", "font", "outlines"]

_THUMBNAIL = 320
"""Longer side, in pixels, of the map on which places for labels are looked for."""


def outlines(ids: NDArray[np.int32], width: int) -> NDArray[np.bool_]:
    """H×W: the pixels within ``width`` of another id to their right or below."""
    lines = np.zeros(ids.shape, bool)
    lines[:, :-width] |= ids[:, width:] != ids[:, :-width]
    lines[:-width] |= ids[width:] != ids[:-width]
    return lines


class _Place(NamedTuple):
    """Where a region is widest, in pixels."""

    region: int
    x: float
    y: float
    radius: float  # of the largest circle inside
    area: float  # of the part that the circle lies in


def _places(ids: NDArray[np.int32]) -> list[_Place]:
    """A place for each region that has an inside, those of large regions first."""
    step = max(1, max(ids.shape) // _THUMBNAIL)
    small = np.pad(ids[::step, ::step], 1)
    inside = ~outlines(small, 1) & (small > 0)
    distance = ndimage.distance_transform_edt(inside)
    parts, _ = ndimage.label(inside)
    areas = np.bincount(parts.ravel())
    present = np.unique(small[inside])
    peaks: Any = ndimage.maximum_position(distance, small, present) if len(present) else []
    places = [
        _Place(
            region=int(region) - 1,
            x=(column - 0.5) * step,
            y=(row - 0.5) * step,
            radius=float(distance[row, column]) * step,
            area=float(areas[parts[row, column]]) * step**2,
        )
        for region, (row, column) in zip(present, peaks, strict=True)
    ]
    return sorted(places, key=lambda place: -place.area)


def draw_labels(
    canvas: Image.Image, ids: NDArray[np.int32], labels: Sequence[tuple[str, Color]]
) -> None:
    """Write names where they hide little of their region and nothing of another name.

    Args:
        canvas: an RGB picture, which is drawn on.
        ids: of its size; region ``i`` has the name and colour ``labels[i - 1]``, 0 has none.
        labels: names, and the colour of the box that each stands in.
    """
    face = font(max(11, round((canvas.width * canvas.height) ** 0.5 / 40)))
    pen = ImageDraw.Draw(canvas)
    ascent, descent = face.getmetrics()
    margin = face.size / 4
    height = ascent + descent + margin
    taken: list[tuple[float, float, float, float]] = []
    for place in _places(ids):
        label, color = labels[place.region]
        width = face.getlength(label) + 2 * margin
        hidden = min(width, 2 * place.radius) * min(height, 2 * place.radius)
        if 3 * place.radius < height or 2 * hidden > place.area:
            continue
        if width > canvas.width or height > canvas.height:
            continue
        x = min(max(place.x - width / 2, 0), canvas.width - width)
        y = min(max(place.y - height / 2, 0), canvas.height - height)
        box = (x, y, x + width - 1, y + height - 1)
        if any(_overlap(box, other) for other in taken):
            continue
        taken.append(box)
        pen.rounded_rectangle(box, margin, fill=color)
        pen.text((x + margin, y + margin / 2), label, text_color(color), face)


def _overlap(a: Sequence[float], b: Sequence[float]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


@lru_cache
def font(size: int) -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which comes with matplotlib and knows more than ASCII; ``size`` in pixels."""
    import matplotlib

    path = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
    return ImageFont.truetype(str(path), size)
