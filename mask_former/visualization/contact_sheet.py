"""Contact sheets: many training examples as small images on one sheet."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from .examples import Example
from .labels import font
from .overlay import draw

__all__ = [
    "CELL",
    "GAP",
    "PADDING",
    "TEXT",
    "VOID",
    "Hatch",
    "draw_sheet",
    "hatch",
    "paint",
    "sheet_cell",
]

CELL = 360
"""Longer side of an image on the contact sheet, in pixels."""
TEXT, GAP = 15, 8
"""Height of letters and width of the gaps between images, in pixels."""


class Hatch(NamedTuple):
    """Pattern of pixels without a target: grey values in 0 … 255, and direction of the lines."""

    ground: int
    line: int
    slope: int


VOID, PADDING = Hatch(128, 255, 1), Hatch(0, 96, -1)


def hatch(pixels: NDArray[np.uint8], where: NDArray[np.bool_], style: Hatch) -> None:
    """Draw a half-transparent pattern on an image (H×W×3, in place) where a mask (H×W) is True."""
    y, x = np.ogrid[: where.shape[0], : where.shape[1]]
    lines = (x + style.slope * y) % 10 < 2
    gray = np.where(lines, style.line, style.ground).astype(np.uint8)[..., None]
    pixels[where] = (pixels // 2 + gray // 2)[where]


def paint(example: Example, factor: float) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Resize an image by a factor; return it without and with its targets, each h×w×3, RGB."""
    height, width = example.padding.shape
    h, w = max(1, round(height * factor)), max(1, round(width * factor))
    rows, columns = np.arange(h) * height // h, np.arange(w) * width // w
    ids, padding = (a[rows][:, columns] for a in (example.overlay.ids, example.padding))
    image = np.asarray(Image.fromarray(example.image).resize((w, h)))
    overlay = replace(example.overlay, ids=ids)
    scaled = replace(example, image=image, overlay=overlay, padding=padding)
    marked = image.copy()
    hatch(marked, scaled.void, VOID)
    hatch(marked, padding, PADDING)
    return image, draw(marked, overlay)


def sheet_cell(example: Example) -> NDArray[np.uint8]:
    """Draw an example with its targets at the size of a sheet's cell: h×w×3, RGB."""
    return paint(example, CELL / max(example.padding.shape))[1]


def draw_sheet(cells: Sequence[tuple[str, NDArray[np.uint8]]]) -> Image.Image:
    """Arrange small images (h×w×3) under their names, in rows and columns of one size."""
    columns = math.ceil(math.sqrt(len(cells)))
    face, top = font(TEXT), TEXT + 2 * GAP
    height, width = (max(image.shape[axis] for _, image in cells) + GAP for axis in (0, 1))
    size = (columns * width + GAP, math.ceil(len(cells) / columns) * (height + top) + GAP)
    sheet = Image.new("RGB", size, "white")
    pen = ImageDraw.Draw(sheet)
    for index, (name, image) in enumerate(cells):
        x, y = GAP + index % columns * width, GAP + index // columns * (height + top)
        while face.getlength(name) > width - GAP:
            name = f"…{name[2:]}"
        pen.text((x, y), name, "black", face)
        sheet.paste(Image.fromarray(image), (x, y + TEXT + GAP))
    return sheet
