"""Colours for classes, for instances and for text on them."""

from __future__ import annotations

import colorsys
from collections.abc import Callable

__all__ = [
    "PALETTES",
    "Color",
    "colorblind_color",
    "instance_color",
    "spread_color",
    "text_color",
]

Color = tuple[int, int, int]
"""RGB, 0 … 255."""

_GOLDEN = 0.618034
"""Multiples of it, modulo 1, spread evenly however many are taken."""


def spread_color(index: int) -> Color:
    """The ``index``-th of endlessly many colours that differ."""
    hue, value = index * _GOLDEN % 1, (1.0, 0.7, 0.85)[index % 3]
    return _rgb(hue, 0.55 + 0.4 * (index // 3 % 2), value)


_OKABE_ITO: tuple[Color, ...] = (
    (230, 159, 0),
    (86, 180, 233),
    (0, 158, 115),
    (240, 228, 66),
    (0, 114, 178),
    (213, 94, 0),
    (204, 121, 167),
    (60, 60, 60),  # for their black, under which a picture would not be seen
)


def colorblind_color(index: int) -> Color:
    """The ``index``-th colour that people with any colour vision can tell from those near it.

    The first eight are Okabe and Ito's (*Color Universal Design*, 2008); each further round of
    eight is lighter or darker in turn, for hues alone do not go further.
    """
    color, turn = _OKABE_ITO[index % 8], index // 8
    if turn == 0:
        return color
    white, part = 255 * (turn % 2), 0.25 + 0.5 * ((turn + 1) // 2 * _GOLDEN % 1)
    red, green, blue = (round(channel + part * (white - channel)) for channel in color)
    return red, green, blue


def instance_color(color: Color, index: int) -> Color:
    """The shade of the ``index``-th instance of a class: the first has the class's own."""
    if index == 0:
        return color
    hue, saturation, value = colorsys.rgb_to_hsv(*(channel / 255 for channel in color))
    turn = index * _GOLDEN % 1
    value = 0.45 + 0.55 * (((value - 0.45) / 0.55 + turn) % 1)
    return _rgb((hue + 0.2 * (turn - 0.5)) % 1, 0.35 + 0.65 * saturation, value)


def _rgb(hue: float, saturation: float, value: float) -> Color:
    red, green, blue = (round(255 * c) for c in colorsys.hsv_to_rgb(hue, saturation, value))
    return red, green, blue


def text_color(background: Color) -> Color:
    """Black or white, whichever can be read better on it: at least 4.5:1 (WCAG 2's AA)."""
    linear = [
        c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4
        for c in (channel / 255 for channel in background)
    ]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return (0, 0, 0) if (luminance + 0.05) ** 2 > 1.05 * 0.05 else (255, 255, 255)


PALETTES: dict[str, Callable[[int], Color] | None] = {
    "dataset": None,
    "spread": spread_color,
    "colorblind": colorblind_color,
}
"""The colour of a class by its contiguous id; None: the one that the dataset gives it."""
