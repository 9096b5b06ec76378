"""Colours of classes, of instances, and of text on top of them."""

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
"""RGB values, 0 … 255."""

_GOLDEN = 0.618034
"""Golden ratio: its first n multiples, modulo 1, are spread evenly for any n."""


def spread_color(index: int) -> Color:
    """Return colour number ``index`` of an endless sequence of different colours."""
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
    (60, 60, 60),  # instead of their black, which would hide the image below
)


def colorblind_color(index: int) -> Color:
    """Return colour number ``index`` of a sequence for people with any colour vision.

    Each colour is distinct from the few before and after it. The first eight are those
    of Okabe and Ito (*Color Universal Design*, 2008). Each further group of eight mixes them with
    white or, every second time, black, because there are no further distinct hues.
    """
    color, group = _OKABE_ITO[index % 8], index // 8
    if group == 0:
        return color
    white, part = 255 * (group % 2), 0.25 + 0.5 * ((group + 1) // 2 * _GOLDEN % 1)
    red, green, blue = (round(channel + part * (white - channel)) for channel in color)
    return red, green, blue


def instance_color(color: Color, index: int) -> Color:
    """Return the shade of instance number ``index`` of a class; number 0 has the class's colour.

    Args:
        color: Colour of the class.
        index: Number of the instance among those of its class.
    """
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
    """Return black or white, whichever has the higher contrast: at least 4.5:1 (WCAG 2, AA)."""
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
"""Functions from a contiguous class id to its colour; None: the colours of the dataset."""
