"""Distinguishable colours, and text that is readable on them."""

from __future__ import annotations

import numpy as np
import pytest

from mask_former.data.datasets.table import TABLES, read_table
from mask_former.utils.colors import (
    PALETTES,
    colorblind_color,
    instance_color,
    spread_color,
    text_color,
)

COLORS = [(70, 130, 180), (128, 64, 128), (0, 0, 142)]
TABLE_NAMES = sorted(path.stem for path in TABLES.glob("*.json"))


def luminance(color) -> float:
    """Return the relative luminance of an RGB colour by WCAG 2, in 0 … 1."""
    total = 0.0
    for channel, weight in zip(color, (0.2126, 0.7152, 0.0722), strict=True):
        c = channel / 255
        total += weight * (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4)
    return total


def contrast(one, other) -> float:
    """Return the contrast ratio of two colours by WCAG 2, in 1 … 21."""
    light, dark = sorted([luminance(one), luminance(other)], reverse=True)
    return (light + 0.05) / (dark + 0.05)


# Text


def test_text_is_readable_on_every_colour():
    steps = [*range(0, 256, 15), 117, 118, 119]
    for background in np.stack(np.meshgrid(steps, steps, steps), -1).reshape(-1, 3).tolist():
        assert contrast(background, text_color(background)) >= 4.5, background


@pytest.mark.parametrize("palette", PALETTES)
@pytest.mark.parametrize("table", TABLE_NAMES)
def test_text_is_readable_on_the_colours_of_every_table_and_their_instances(table, palette):
    make = PALETTES[palette]
    categories = read_table(table).categories
    of_table = [tuple(c.color) for c in categories if c.color is not None]
    colors = of_table if make is None else [make(i) for i in range(len(categories))]
    for color in colors:
        for index in range(20):
            shade = instance_color(color, index)
            assert contrast(shade, text_color(shade)) >= 4.5, (color, index)


# Instances


def test_the_first_instance_has_the_colour_of_its_class_and_the_others_differ():
    for color in [*COLORS, (0, 0, 0), (128, 128, 128), (255, 255, 255), (220, 20, 60)]:
        shades = [instance_color(color, i) for i in range(12)]
        assert shades[0] == color
        assert all(0 <= channel <= 255 for shade in shades for channel in shade)
        for i, one in enumerate(shades):
            for other in shades[:i]:
                assert np.abs(np.subtract(one, other)).max() >= 5, (color, one, other)


# Palettes


@pytest.mark.parametrize("make", [spread_color, colorblind_color])
def test_the_colours_of_a_palette_differ(make):
    colors = [make(i) for i in range(150)]
    assert len(set(colors)) == 150
    assert all(0 <= channel <= 255 for color in colors for channel in color)


def simulate(color, kind):
    """Return the colour as a dichromat sees it, after Viénot, Brettel and Mollon (1999)."""
    matrix = {
        "protan": [[0.11238, 0.88762, 0], [0.11238, 0.88762, 0], [0.00401, -0.00401, 1]],
        "deutan": [[0.29275, 0.70725, 0], [0.29275, 0.70725, 0], [-0.02234, 0.02234, 1]],
    }[kind]
    linear = (np.array(color) / 255) ** 2.2
    return 255 * np.clip(np.array(matrix) @ linear, 0, 1) ** (1 / 2.2)


def closest(colors) -> float:
    """Return the RGB distance of the two most similar colours."""
    points = np.array(colors, float)
    distance = np.linalg.norm(points[:, None] - points, axis=-1)
    return float(distance[np.triu_indices(len(points), 1)].min())


@pytest.mark.parametrize("kind", ["protan", "deutan"])
def test_the_palette_for_colour_blindness_stays_distinguishable(kind):
    assert closest([simulate(colorblind_color(i), kind) for i in range(8)]) > 35
    assert closest([simulate(colorblind_color(i), kind) for i in range(16)]) > 15
