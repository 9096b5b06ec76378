"""Legends: a line with swatch, name and share of the pixels for each class, in columns."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from .labels import font

__all__ = ["LegendRow", "add_legend", "draw_legend"]


class LegendRow(NamedTuple):
    """One line of a legend."""

    swatch: NDArray[np.uint8]
    """Pattern, h×w×3, RGB, resized to the size of a letter; 1×1×3 is a plain colour."""
    name: str
    share: float
    """Share of the pixels, in [0, 1]."""

    @property
    def percent(self) -> str:
        """The share as text."""
        return f"{self.share:.1%}" if self.share >= 0.0005 else "< 0.1%"


def _column_width(rows: Sequence[LegendRow], text: int) -> int:
    """Compute the width of swatch, name, share and the gaps between them, in pixels."""
    face = font(text)
    names = max((face.getlength(row.name) for row in rows), default=0)
    shares = max((face.getlength(row.percent) for row in rows), default=0)
    return round(text + names + shares + 5 * _gap(text))


def _gap(text: int) -> int:
    return round(text * 8 / 15)


def draw_legend(rows: Sequence[LegendRow], text: int = 15, columns: int = 1) -> Image.Image:
    """Draw rows on white, one column after another.

    Args:
        rows: The rows.
        text: Height of letters, in pixels.
        columns: Maximum number of columns.
    """
    face, gap, width = font(text), _gap(text), _column_width(rows, text)
    lines = max(1, math.ceil(len(rows) / columns))
    columns = max(1, math.ceil(len(rows) / lines))  # no column stays empty
    legend = Image.new("RGB", (columns * width, lines * (text + gap)), "white")
    pen = ImageDraw.Draw(legend)
    for index, row in enumerate(rows):
        x, y = index // lines * width, index % lines * (text + gap)
        top = y + round(text * 2 / 15)
        swatch = Image.fromarray(row.swatch).resize((text, text), Image.Resampling.NEAREST)
        legend.paste(swatch, (x, top))
        pen.rectangle((x, top, x + text - 1, top + text - 1), outline="black")
        pen.text((x + text + gap, y), row.name, "black", face)
        pen.text((x + width - 2 * gap, y), row.percent, "black", face, anchor="ra")
    return legend


def add_legend(image: NDArray[np.uint8], rows: Sequence[LegendRow]) -> NDArray[np.uint8]:
    """Add a legend to the right of an image or below it, whichever takes less room.

    Args:
        image: H×W×3, RGB.
        rows: Rows of the legend; if empty, the image is returned unchanged.

    Returns:
        (H + …)×W×3 or H×(W + …)×3, RGB, with the image at the top left; if the image is smaller
        than its legend, both sides grow.
    """
    if not rows:
        return image
    height, width = image.shape[:2]
    text = max(11, round((height * width) ** 0.5 / 50))
    gap, line = _gap(text), text + _gap(text)
    lines = max(1, (height - 2 * gap) // line)
    columns = max(1, (width - 2 * gap) // _column_width(rows, text))
    side = draw_legend(rows, text, math.ceil(len(rows) / lines))
    below = draw_legend(rows, text, columns)
    right = (width + side.width + 2 * gap, max(height, side.height + 2 * gap))
    down = (max(width, below.width + 2 * gap), height + below.height + 2 * gap)
    is_right = right[0] * right[1] < down[0] * down[1]
    legend, size = (side, right) if is_right else (below, down)
    x, y = (width + gap, gap) if is_right else (gap, height + gap)
    canvas = np.full((size[1], size[0], 3), 255, np.uint8)
    canvas[:height, :width] = image
    canvas[y : y + legend.height, x : x + legend.width] = np.asarray(legend)
    return canvas
