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

from mask_former.utils.colors import Color, text_color

__all__ = ["Label", "draw_labels", "font", "outlines", "place_labels"]

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


class Label(NamedTuple):
    """A name and the box that it stands in: left, top, right and bottom, pixels, inclusive."""

    text: str
    color: Color
    box: tuple[float, float, float, float]


def place_labels(
    ids: NDArray[np.int32], names: Sequence[tuple[str, Color]]
) -> tuple[list[Label], int]:
    """Find places where names hide little of their region and nothing of another name.

    Args:
        ids: H×W; region ``i`` has the name and colour ``names[i - 1]``, 0 has none.
        names: names, and the colour of the box that each stands in.

    Returns:
        the labels of the regions that have room for one, those of large regions first, and the
        height of their letters in pixels.
    """
    rows, columns = ids.shape
    face = font(max(11, round((rows * columns) ** 0.5 / 40)))
    height = sum(face.getmetrics()) + face.size / 4
    placed: list[Label] = []
    for place in _places(ids):
        text, color = names[place.region]
        width = face.getlength(text) + face.size / 2
        hidden = min(width, 2 * place.radius) * min(height, 2 * place.radius)
        if 3 * place.radius < height or 2 * hidden > place.area:
            continue
        if width > columns or height > rows:
            continue
        x = min(max(place.x - width / 2, 0), columns - width)
        y = min(max(place.y - height / 2, 0), rows - height)
        box = (x, y, x + width - 1, y + height - 1)
        if not any(_overlap(box, other.box) for other in placed):
            placed.append(Label(text, color, box))
    return placed, int(face.size)


def draw_labels(
    pixels: NDArray[np.uint8], ids: NDArray[np.int32], names: Sequence[tuple[str, Color]]
) -> None:
    """Write names on a picture: see :func:`place_labels`.

    Args:
        pixels: H×W×3, RGB, which is drawn on.
        ids, names: as there.
    """
    labels, size = place_labels(ids, names)
    face, margin = font(size), size / 4
    for text, color, box in labels:
        left, top = int(box[0]), int(box[1])
        window = pixels[top : int(box[3]) + 2, left : int(box[2]) + 2]
        patch = Image.fromarray(window)  # a copy: all of a large picture would be slow
        pen = ImageDraw.Draw(patch)
        x, y = box[0] - left, box[1] - top
        pen.rounded_rectangle((x, y, box[2] - left, box[3] - top), margin, fill=color)
        pen.text((x + margin, y + margin / 2), text, text_color(color), face)
        window[:] = np.asarray(patch)


def _overlap(a: Sequence[float], b: Sequence[float]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


@lru_cache
def font(size: int) -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which comes with matplotlib and knows more than ASCII; ``size`` in pixels."""
    import matplotlib

    path = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
    return ImageFont.truetype(str(path), size)
